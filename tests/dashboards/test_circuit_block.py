"""The block of a circuit: every size as the search cuts it, and what its nodes do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dashboards.circuit_parts import CLASSES, feature_graph, found, prompts
from mechlab.circuits.ablation import Ablation
from mechlab.circuits.search.found import clean_up
from mechlab.circuits.search.prune import top_edges
from mechlab.circuits.weights.attention import attention_patterns
from mechlab.circuits.weights.direct import direct_logits
from mechlab.dashboards.circuit_block import circuit_block, graph_block
from mechlab.dashboards.circuit_heads import node_panels
from mechlab.dashboards.drawing import SHOWN
from mechlab.data.tasks import Task
from mechlab.models.compiled import compiled_subject, compiled_task
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import load_model
from tiny import save_tiny_model


def edges_at(block, n) -> set[tuple[str, str]]:
    """What the page draws at a size; None is the circuit that was found."""
    edges = block["edges"]
    rows = zip(edges["source"], edges["reader"], edges["joins"], edges["found"], strict=True)
    return {
        (source, reader)
        for source, reader, joins, own in rows
        if (own if n is None else joins is not None and joins <= n)
    }


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_every_size_is_what_the_search_would_cut(ablation):
    circuit = replace(found(), ablation=Ablation(ablation))
    block = json.loads(json.dumps(circuit_block(circuit), allow_nan=False))
    assert block["size"]["most"] == SHOWN
    for n in [*range(1, 60), 100, SHOWN]:
        mask = clean_up(circuit.graph, top_edges(circuit.graph, circuit.scores, n), ablation)
        assert edges_at(block, n) == {(e.source, e.reader) for e in circuit.graph.edges(mask)}, n


@pytest.mark.parametrize("method", ["eap-ig", "path"])
def test_the_circuit_found_is_drawn_whole_with_its_scores(method):
    circuit = found(method)
    block = json.loads(json.dumps(circuit_block(circuit), allow_nan=False))
    assert edges_at(block, None) == {(edge.source, edge.reader) for edge in circuit.edges}
    assert block["size"]["missing"] == 0
    scores = dict(
        zip(
            zip(block["edges"]["source"], block["edges"]["reader"], strict=True),
            block["edges"]["score"],
            strict=True,
        )
    )
    for edge in circuit.edges:
        assert scores[edge.source, edge.reader] == pytest.approx(edge.score, rel=1e-3)
    sizes = [abs(score) for score in block["edges"]["score"]]
    assert sizes == sorted(sizes, reverse=True)


def test_measured_sizes_agree_with_what_is_drawn():
    circuit = found()
    block = circuit_block(circuit)
    assert [curve["name"] for curve in block["curves"]] == ["held-out prompts", "prompts it was chosen on"]
    for curve in block["curves"]:
        for n_top, n_edges, _ in curve["points"]:
            if 0 < n_top <= block["size"]["most"]:
                assert len(edges_at(block, n_top)) == n_edges
    assert block["curves"][1]["points"][-1][2] == pytest.approx(1.0, abs=1e-3)


def test_facts_scores_and_classes():
    circuit = found()
    block = circuit_block(circuit)
    assert dict(block["facts"])["ablation"] == "resample"
    assert dict(block["facts"])["edges"].startswith(f"{circuit.n_edges} of {circuit.graph.n_edges}")
    first = block["scores"][0]
    assert first["name"] == "faithfulness"
    assert first["value"] == pytest.approx(circuit.faithfulness.value, rel=1e-3)
    assert first["null"]["n"] == 4
    nodes = {node["name"]: node for node in block["nodes"]}
    assert {name: node["class"] for name, node in nodes.items() if "class" in node} == CLASSES
    for effect in circuit.heads.effects:
        assert nodes[effect.node]["noising"] == pytest.approx(effect.noising, rel=1e-3)
        assert nodes[effect.node]["attribution"] == pytest.approx(effect.attribution, rel=1e-3)
    assert "a9.h9" not in nodes
    other = circuit_block(circuit, classes={"m1": "x"})
    assert {node["name"]: node.get("class") for node in other["nodes"]}["m1"] == "x"


def test_what_nodes_do_on_the_prompts():
    subject, _, judge = prompts()
    circuit = found()
    block = json.loads(json.dumps(circuit_block(circuit, subject, judge), allow_nan=False))
    assert block["of"] == "24 held-out prompts of ioi"
    forward = DecomposedForward(subject.module)
    direct = direct_logits(subject.module, judge).sources
    patterns = list(attention_patterns(forward, judge.clean))
    end, io = judge.positions["end"], judge.positions["IO"]
    heads = 0
    for node in block["nodes"]:
        if node["name"] == "logits":
            assert "direct" not in node
            continue
        assert node["direct"]["value"] == pytest.approx(
            float(direct[circuit.graph.source(node["name"])].mean()), rel=1e-3, abs=1e-4
        )
        if not node["name"].startswith("a"):
            assert "patterns" not in node
            continue
        heads += 1
        layer, head = (int(part[1:]) for part in node["name"].split("."))
        pattern = patterns[layer][:, head]
        for prompt, rows in enumerate(node["patterns"]):
            assert [len(row) for row in rows] == list(range(1, pattern.shape[1] + 1))
            for at, row in enumerate(rows):
                assert row == pytest.approx((100 * pattern[prompt, at, : at + 1]).tolist(), abs=0.51)
        to_io = [float(pattern[i, end[i], io[i]]) for i in range(len(judge))]
        assert dict(node["places"])["IO"] == pytest.approx(sum(to_io) / len(to_io), rel=1e-3, abs=1e-6)
        naive: dict[str, list[float]] = {}
        for i, tokens in enumerate(judge.clean.tolist()):
            for token in set(tokens):
                share = sum(float(pattern[i, end[i], k]) for k, t in enumerate(tokens) if t == token)
                naive.setdefault(subject.token_text(token), []).append(share)
        totals = sorted((sum(each) for each in naive.values()), reverse=True)[: len(node["tokens"])]
        for (number, share, n), total in zip(node["tokens"], totals, strict=True):
            own = naive[block["strings"][number]]
            assert n == len(own)
            assert share == pytest.approx(sum(own) / n, rel=1e-3, abs=1e-6)
            assert sum(own) == pytest.approx(total, rel=1e-4)
        for context in node["contexts"]:
            tokens = [block["strings"][number] for number in context["t"]]
            assert tokens == [subject.token_text(token) for token in judge.clean[context["d"]].tolist()]
            for key, share in context["a"]:
                assert share == pytest.approx(float(pattern[context["d"], context["c"], key]), rel=1e-3)
    assert heads >= 8


def test_prompts_of_another_draw_are_not_called_held_out():
    subject, select, _ = prompts()
    assert circuit_block(found(), subject, select)["of"] == "24 prompts of ioi"


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_panels_of_shared_keys_and_parallel_blocks(tmp_path, architecture):
    subject = load_model(str(save_tiny_model(tmp_path / architecture, architecture)))
    clean = torch.randint(3, 20, (5, 7), generator=torch.Generator().manual_seed(1))
    task = Task(
        name="random", clean=clean, corrupt=clean, answers=clean[:, 1], wrong=clean[:, 2],
        positions={"end": torch.full((5,), 6)}, prompts=tuple("abcde"), corrupt_prompts=tuple("abcde"),
    )  # fmt: skip
    panels = node_panels(subject, task, ["a0.h0", "a1.h3", "m1"], patterns=9)
    assert set(panels.nodes) == {"a0.h0", "a1.h3", "m1"}
    assert panels.prompts == [
        [panels.strings.index(subject.token_text(t)) for t in row] for row in clean.tolist()
    ]
    head = panels.nodes["a1.h3"]
    assert len(head["patterns"]) == 5
    assert all(sum(row) == pytest.approx(100, abs=4) for rows in head["patterns"] for row in rows)
    assert head["places"] == []


def test_a_compiled_model_reads_at_several_positions():
    subject = compiled_subject("reverse")
    task = compiled_task(subject.module, 8, length=5)
    panels = node_panels(subject, task, ["a0.h0", "m0", "embed"])
    assert {"direct", "patterns", "tokens"} <= set(panels.nodes["a0.h0"])
    rows = panels.nodes["a0.h0"]["patterns"][0]
    assert {len(row) for row in rows} == {len(rows)}  # attends to what comes later, too


def test_a_circuit_larger_than_the_drawing_says_what_is_missing():
    circuit = found()
    block = circuit_block(replace(circuit, mask=circuit.graph.real))
    assert block["size"]["missing"] == circuit.graph.n_edges - SHOWN
    assert len(edges_at(block, None)) == SHOWN


def test_a_circuit_without_edges():
    circuit = found()
    empty = replace(circuit, mask=torch.zeros_like(circuit.mask), scores=torch.zeros_like(circuit.scores))
    block = json.loads(json.dumps(circuit_block(empty), allow_nan=False))
    assert block["nodes"] == []
    assert block["size"]["most"] == 0


def test_a_graph_of_features():
    block = json.loads(
        json.dumps(graph_block(feature_graph(), "a prompt", {"prompt": "a b"}), allow_nan=False)
    )
    nodes = {node["name"]: node for node in block["nodes"]}
    assert nodes["blocks.2.hook_resid_post/f1@1"]["feature"] == 1
    assert nodes["blocks.2.hook_resid_post/f1@1"]["site"] == "blocks.2.hook_resid_post"
    assert nodes["blocks.1.hook_resid_post/error@1"]["kind"] == "what a dictionary misses"
    heights = [nodes[name]["y"] for name in ("embed@0", "blocks.1.hook_resid_post/f7@0", "logits/t9@1")]
    assert heights == sorted(heights, reverse=True)
    assert len({(node["x"], node["y"]) for node in block["nodes"]}) == len(block["nodes"])
    assert edges_at(block, None) == {(e.source, e.reader) for e in feature_graph().edges()}
    assert len(edges_at(block, 2)) == 2
    assert block["edges"]["score"][0] == 2.0
    assert [label for label, _ in block["labels"]] == [
        "input",
        "1.post",
        "2.post",
        "output",
    ]
