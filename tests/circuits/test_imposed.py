"""The model with an imposed circuit: what is claimed of it, and that training gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechlab.circuits.attribution import edge_scores
from mechlab.circuits.causal.check_imposed import check_imposed
from mechlab.circuits.causal.impose import Home, impose
from mechlab.circuits.causal.imposed import (
    CAUSAL,
    EDGES,
    HOMES,
    imposed_problem,
    imposed_task,
    load_imposed,
    save_imposed,
    train_imposed,
    truth,
)
from mechlab.circuits.causal.problem import part_of
from mechlab.circuits.evaluate import faithfulness
from mechlab.circuits.evaluation.roc import edge_roc
from mechlab.circuits.graph import Graph
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import load_model


@pytest.fixture(scope="module")
def subject():
    return load_imposed()


@pytest.fixture(scope="module")
def check(subject):
    return check_imposed(subject, n=128)


@pytest.fixture(scope="module")
def graph(subject):
    return Graph(DecomposedForward(subject.module).shape)


def test_it_does_the_task_on_inputs_it_never_saw(check) -> None:
    assert check.accuracy.value >= 0.99
    assert check.accuracy.n == 128


@pytest.mark.parametrize("variable", list(HOMES))
def test_every_variable_lives_where_it_was_put(check, variable) -> None:
    assert check.interchange[variable].value >= 0.95
    assert check.interchange[variable].beats_null


def test_no_other_node_matters(check) -> None:
    assert len(check.other_nodes) == 3 * 5 - 4
    assert max(abs(effect) for effect in check.other_nodes.values()) < 0.03
    assert min(check.nodes[home.source] for home in HOMES.values()) > 0.2


def test_the_truth_is_what_exact_ablation_of_every_edge_finds(check, graph) -> None:
    circuit = truth(graph)
    assert int(circuit.sum()) == len(EDGES)
    assert torch.equal(check.edges > 0.1, circuit)
    assert float(check.edges[~circuit].abs().max()) < 0.03
    assert torch.equal(graph.connected(circuit), circuit)


def test_the_circuit_alone_does_what_the_model_does(subject, graph) -> None:
    forward = DecomposedForward(subject.module)
    score = faithfulness(forward, imposed_task(n=128, seed=4), truth(graph))
    assert score.value == pytest.approx(1.0, abs=0.03)


def test_integrated_gradients_find_it(subject, graph) -> None:
    forward = DecomposedForward(subject.module)
    scores = edge_scores(forward, imposed_task(n=128, seed=2), method="eap-ig")
    assert edge_roc(graph, scores.abs(), truth(graph)).auc >= 0.95


def test_prompt_pairs_are_held_out_and_differ_in_their_answers() -> None:
    task = imposed_task(n=60, seed=1)
    letters = "pqrstuvw"
    for prompts, tokens, answers in (
        (task.prompts, task.clean, task.answers),
        (task.corrupt_prompts, task.corrupt, task.wrong),
    ):
        for prompt, row, answer in zip(prompts, tokens, answers, strict=True):
            a, b, c, d = (letters.index(letter) for letter in prompt.split()[:4])
            assert part_of({"a": a, "b": b, "c": c, "d": d}) == "test"
            assert c != d
            assert row.tolist() == [0, *(2 + x for x in (a, b, c, d)), 1]
            assert int(answer) == 2 + (c if a == b else d)
    assert bool((task.answers != task.wrong).all())
    assert 0.3 < sum(p.split()[0] == p.split()[1] for p in task.prompts) / 60 < 0.8
    with pytest.raises(MechlabError, match="split validatoin"):
        imposed_task(split="validatoin")


def test_a_tokenizer_reads_the_prompts(subject) -> None:
    task = imposed_task(n=8)
    assert torch.equal(torch.stack([subject.tokens(prompt) for prompt in task.prompts]), task.clean)


def test_causal_model_answers() -> None:
    assert CAUSAL.run({"a": 1, "b": 1, "c": 2, "d": 3})["answer"] == 2
    assert CAUSAL.run({"a": 1, "b": 4, "c": 2, "d": 3})["answer"] == 3
    assert CAUSAL.run({"a": 1, "b": 4, "c": 2, "d": 3}, {"first": 4})["answer"] == 2


def test_same_seed_same_weights_and_a_checkpoint_keeps_them(tmp_path: Path) -> None:
    one, two = (train_imposed(seed=1, steps=4) for _ in range(2))
    prompts = imposed_task(n=4).clean
    assert torch.equal(one.logits(prompts), two.logits(prompts))
    save_imposed(one, tmp_path / "model")
    assert torch.equal(load_model(tmp_path / "model").logits(prompts), one.logits(prompts))
    with pytest.raises(MechlabError, match="not empty"):
        save_imposed(one, tmp_path / "model")


@pytest.mark.parametrize(
    ("homes", "edges", "message"),
    [
        ({"furst": Home("m0", 2)}, EDGES, "no variable: furst .did you mean first"),
        ({"first": Home("m9", 2)}, EDGES, "no source: m9"),
        ({"first": Home("m0", 2)}, [("m2", "m0")], "no such edge"),
    ],
)
def test_what_cannot_be_imposed_is_refused(random_module, homes, edges, message) -> None:
    with pytest.raises(MechlabError, match=message):
        impose(random_module("gpt2"), imposed_problem(), homes, edges, steps=1)


def test_only_gpt2_can_be_imposed_on(random_module) -> None:
    with pytest.raises(MechlabError, match="only GPT-2"):
        impose(random_module("llama"), imposed_problem(), HOMES, EDGES, steps=1)


@pytest.mark.slow
def test_training_with_another_seed_imposes_the_same_circuit(graph) -> None:
    check = check_imposed(train_imposed(seed=3))
    assert check.accuracy.value >= 0.99
    assert min(score.value for score in check.interchange.values()) >= 0.95
    assert torch.equal(check.edges > 0.1, truth(graph))
    assert max(abs(effect) for effect in check.other_nodes.values()) < 0.05
