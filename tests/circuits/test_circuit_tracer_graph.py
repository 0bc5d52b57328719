"""Attribution graphs in viewers' JSON: read back exactly, in the form that other tools write and expect."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_models import clt_over, transcoder_at
from test_attribution_graph_influence import by_hand

from mechlab.circuits.features.attribution_graph import attribution_graph
from mechlab.circuits.features.circuit_tracer import (
    circuit_tracer_graph,
    feature_number,
    read_circuit_tracer_graph,
    write_circuit_tracer_graph,
)
from mechlab.circuits.features.graph import FeatureGraph, FeatureNode
from mechlab.circuits.features.influence import normalised, prune
from mechlab.circuits.features.replacement import replacement_model
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model
from tiny import save_tiny_model

# What Neuronpedia's schema requires of each part.
METADATA = {"slug", "scan", "prompt_tokens", "prompt"}
NODE = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
LINK = {"source", "target", "weight"}


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model") / request.param, request.param))


@pytest.fixture(scope="module")
def graph(subject: Subject) -> FeatureGraph:
    dictionaries = [transcoder_at(layer, d_model=16) for layer in range(2)]
    return attribution_graph(replacement_model(subject, dictionaries, subject.tokens("the cat sat on a mat")))


def same(left: FeatureGraph, right: FeatureGraph) -> bool:
    arrays = all(torch.equal(getattr(left, k), getattr(right, k)) for k in ("sources", "readers", "scores"))
    return left.nodes == right.nodes and arrays


def test_a_graph_comes_back_exactly(subject: Subject, graph: FeatureGraph, tmp_path: Path) -> None:
    for name, each in (("whole", graph), ("pruned", prune(graph)), ("bare", prune(graph, 0.0, 0.1))):
        write_circuit_tracer_graph(each, subject, tmp_path / f"{name}.json")
        back = read_circuit_tracer_graph(tmp_path / f"{name}.json")
        assert same(back, each), name
        assert json.loads((tmp_path / f"{name}.json").read_text())["metadata"]["slug"] == name
    assert len(prune(graph).nodes) < len(graph.nodes)


def test_the_form_is_what_viewers_expect(subject: Subject, graph: FeatureGraph) -> None:
    written = circuit_tracer_graph(graph, subject, labels={(1, 3): "cats"}, node_threshold=0.8)
    assert set(written) == {"metadata", "qParams", "nodes", "links"}
    assert set(written["metadata"]) >= METADATA
    assert written["metadata"]["prompt_tokens"][1:3] == [" the", " cat"]
    ids = [node["node_id"] for node in written["nodes"]]
    assert len(set(ids)) == len(ids)
    assert len({node["jsNodeId"] for node in written["nodes"]}) == len(ids)
    for node, own in zip(written["nodes"], graph.nodes, strict=True):
        assert set(node) >= NODE
        assert isinstance(node["layer"], str)
        assert node["ctx_idx"] == own.position
        if own.kind == "feature":
            assert node["node_id"] == f"{own.layer}_{own.index}_{own.position}"
            assert node["feature"] == feature_number(own.layer, own.index or 0)
            assert node["clerp"] == ("cats" if (own.layer, own.index) == (1, 3) else "")
            assert node["activation"] == own.value
        elif own.kind == "error":
            assert (node["feature"], node["node_id"]) == (-1, f"{own.layer}_-1_{own.position}")
        elif own.kind == "embedding":
            assert (node["layer"], node["node_id"]) == ("E", f"E_{own.index}_{own.position}")
        else:
            assert node["layer"] == "3"  # two layers
            assert node["token_prob"] == own.score
    assert [node["is_target_logit"] for node in written["nodes"]].count(True) == 1
    assert all(
        set(link) == LINK and link["source"] in ids and link["target"] in ids for link in written["links"]
    )
    assert len(written["links"]) == int((graph.scores != 0).sum())


def test_numbers_of_features_tell_layers_apart() -> None:
    numbers = {feature_number(layer, feature) for layer in range(12) for feature in range(500)}
    assert len(numbers) == 12 * 500
    assert feature_number(0, 253) == 253 * 254 // 2 + 253


def test_influence_is_cumulative(subject: Subject, graph: FeatureGraph) -> None:
    """Against the definition with a dense inverse: a node's share and all larger ones."""
    written = circuit_tracer_graph(graph, subject)
    count = len(graph.nodes)
    square = torch.zeros(count, count, dtype=torch.float64)
    square[graph.sources[:, None], graph.readers[None]] = normalised(graph).double()
    logit = graph.of_kind("logit")
    weights = torch.where(logit, graph.values("score"), 0).double()
    eye = torch.eye(count, dtype=torch.float64)
    influence = (torch.linalg.inv(eye - square) - eye) @ weights
    for place, node in enumerate(written["nodes"]):
        if logit[place]:
            assert node["influence"] is None
            continue
        larger = influence > influence[place] + 1e-9
        least, most = larger * influence, (influence >= influence[place] - 1e-9) * influence
        assert float(least.sum() / influence.sum()) < node["influence"] + 1e-5
        assert node["influence"] < float(most.sum() / influence.sum()) + 1e-5
    assert max(node["influence"] or 0.0 for node in written["nodes"]) == pytest.approx(1.0)


def foreign() -> dict[str, Any]:
    """A graph as another tool writes it: features first, nothing of ours, weights as found."""

    def node(name: str, layer: str, position: int, kind: str, **more: Any) -> dict[str, Any]:
        fields = {"node_id": name, "feature": 0, "layer": layer, "ctx_idx": position, "feature_type": kind}
        return fields | {"jsNodeId": name, "clerp": "", "influence": 0.5, "activation": None} | more

    return {
        "metadata": {
            "slug": "a",
            "scan": "gemma-2-2b",
            "transcoder_list": [],
            "prompt_tokens": ["a"],
            "prompt": "a",
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            node("1_7_0", "1", 0, "cross layer transcoder", activation=2.5),
            node("0_-1_0", "0", 0, "mlp reconstruction error"),
            node("E_5_0", "E", 0, "embedding"),
            node("3_9_0", "3", 0, "logit", token_prob=0.75, is_target_logit=True),
        ],
        "links": [
            {"source": "E_5_0", "target": "1_7_0", "weight": 3},
            {"source": "0_-1_0", "target": "1_7_0", "weight": -1.0},
            {"source": "0_-1_0", "target": "3_9_0", "weight": 1.0},
            {"source": "1_7_0", "target": "3_9_0", "weight": 4.0},
        ],
    }


def test_a_graph_of_another_tool(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(foreign()))
    found, wanted = read_circuit_tracer_graph(path), by_hand()
    assert [node.name for node in found.nodes] == [node.name for node in wanted.nodes]
    assert [(e.source, e.reader, e.score) for e in found.edges()] == [
        (e.source, e.reader, e.score) for e in wanted.edges()
    ]
    assert found.nodes[2].value == 2.5
    assert found.nodes[3].score == 0.75
    assert found.nodes[3].layer == 2


@pytest.mark.parametrize(
    "break_it",
    [
        lambda content: content.pop("nodes"),
        lambda content: content["links"][0].update(source="nowhere"),
        lambda content: content["links"][0].update(weight=float("nan")),
        lambda content: content["nodes"][0].update(feature_type="attention"),
        lambda content: content["nodes"][0].update(node_id="3_9_0"),
        lambda content: content["nodes"][0].update(node_id="seven"),
        lambda content: content["nodes"][0].update(activation=float("inf")),
        lambda content: content["links"][0].update(target="E_5_0"),
        lambda content: content.update(nodes=[3]),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, break_it: Any) -> None:
    content = foreign()
    break_it(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(MechlabError, match="holds no attribution graph"):
        read_circuit_tracer_graph(tmp_path / "a.json")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="cannot be read"):
        read_circuit_tracer_graph(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(MechlabError, match="holds no attribution graph"):
        read_circuit_tracer_graph(tmp_path / "a.json")


def test_graphs_that_viewers_cannot_show_are_refused(subject: Subject, graph: FeatureGraph) -> None:
    summed = replace(graph, nodes=tuple(replace(node, position=None) for node in graph.nodes))
    metric = replace(graph, nodes=(*graph.nodes[:-1], FeatureNode("logit", "logits", 2, 5)))
    twice = replace(graph, nodes=(*graph.nodes[:-1], graph.nodes[0]))
    no_tokens = graph.part(~graph.of_kind("embedding"))
    for wrong, message in (
        (summed, "not of one prompt"),
        (metric, "not of one prompt"),
        (twice, "two nodes have one name"),
        (no_tokens, "lacks embeddings"),
    ):
        with pytest.raises(MechlabError, match=message):
            circuit_tracer_graph(wrong, subject)


def test_cross_layer_transcoders_too(tmp_path: Path) -> None:
    subject = load_model(save_tiny_model(tmp_path / "m", "gpt2"))
    made = clt_over([0, 1], d_model=16)
    graph = prune(attribution_graph(replacement_model(subject, [made], subject.tokens("a red dog ran"))))
    write_circuit_tracer_graph(graph, subject, tmp_path / "g.json", node_threshold=0.8)
    assert same(read_circuit_tracer_graph(tmp_path / "g.json"), graph)
