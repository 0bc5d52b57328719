"""Two circuits side by side, and one circuit found again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechlab.circuits.circuit import Circuit
from mechlab.circuits.compare import compare
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.evaluation.stability import resampled, stability
from mechlab.circuits.find import find_again, find_circuit
from mechlab.circuits.graph import Graph
from mechlab.circuits.search.sought import STEPS
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward


@pytest.fixture(scope="module")
def found(random_module, random_task, as_subject):
    """A subject, its selection prompts, held-out prompts and a circuit."""
    module = random_module("gpt2", 6)
    forward, tasks = DecomposedForward(module), []
    for seed in (6, 7):
        task = random_task(seed, n=10)
        _, whole, empty = run_circuits(forward, task, Graph(forward.shape).real[None])
        flip = whole < empty
        answers = torch.where(flip, task.wrong, task.answers)
        tasks.append(replace(task, answers=answers, wrong=torch.where(flip, task.answers, task.wrong)))
    subject = as_subject(module)
    settings = {"method": "eap", "controls": 2, "checked": 2}
    return subject, *tasks, find_circuit(subject, *tasks, top=40, **settings)


def test_compare(found) -> None:
    _, _, _, circuit = found
    graph = circuit.graph
    pairs = [(edge.source, edge.reader) for edge in circuit.edges]
    absent = next(
        (edge.source, edge.reader)
        for edge in graph.edges(graph.real)
        if (edge.source, edge.reader) not in pairs
    )
    other = replace(circuit, mask=graph.mask([*pairs[2:], absent]))
    same = compare(circuit, circuit)
    assert (same.jaccard, same.nodes, same.left, same.right, same.differences) == (1, 1, (), (), ())
    assert same.null.high < 1
    seen = compare(circuit, replace(other, metric="negative_kl", method="acdc"))
    assert {(edge.source, edge.reader) for edge in seen.left} == set(pairs[:2])
    assert seen.shared == len(pairs) - 2
    assert [(edge.source, edge.reader) for edge in seen.right] == [absent]
    assert seen.jaccard == pytest.approx(seen.shared / (seen.shared + 3))
    assert seen.differences == ("method: eap, acdc", "metric: logit_difference, negative_kl")
    assert [layer.layer for layer in seen.layers] == ["0", "1", "2", "logits"]
    assert sum(layer.shared for layer in seen.layers) == seen.shared
    assert sum(layer.left for layer in seen.layers) == 2
    scores = [abs(edge.score) for edge in seen.left]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(MechlabError, match="another shape"):
        compare(circuit, replace(circuit, shape=replace(circuit.shape, n_layers=2)))


def test_finding_it_again(found) -> None:
    subject, train, test, circuit = found
    score = find_again(subject, circuit, train, times=3, seed=2)
    masks = [
        find_circuit(
            subject, drawn, test, method="eap", top=circuit.n_top, controls=0, checked=0, sizes=(1,)
        ).mask
        for drawn in resampled(train, 3, seed=2)
    ]
    assert score.value == pytest.approx(stability(circuit.graph, torch.stack(masks), seed=2).value)
    assert score.n == 3
    with pytest.raises(MechlabError, match="at least two circuits"):
        find_again(subject, circuit, train, times=1)


@pytest.mark.parametrize(
    ("method", "size"),
    [("acdc", {"threshold": 0.3}), ("path", {"threshold": 0.05}), ("edge-pruning", {"top": 60}),
     ("subnetwork-probing", {"threshold": 2.0}), ("hisp", {"top": 50}), ("ifr", {"threshold": 0.05})],
)  # fmt: skip
def test_every_way_of_searching_makes_an_artifact(found, tmp_path, method, size) -> None:
    subject, train, test, _ = found
    circuit = find_circuit(
        subject,
        train,
        test,
        method=method,
        steps=STEPS.get(method) and 8,
        controls=2,
        checked=2,
        sizes=(30,),
        **size,
    )
    assert circuit.method == method
    assert all(circuit.settings[name] == value for name, value in size.items())
    assert circuit.n_edges <= circuit.n_top
    if "top" in size:
        assert circuit.n_top == size["top"]
    circuit.save(tmp_path / "c")
    back = Circuit.load(tmp_path / "c")
    assert torch.equal(back.mask, circuit.mask)
    assert (back.seconds, back.calls, back.rows) == (circuit.seconds, circuit.calls, circuit.rows)
    assert back.record == circuit.record
    again = find_again(subject, back, train, times=2)
    assert 0 <= again.value <= 1


def test_sizes_that_a_method_does_not_take(found) -> None:
    subject, train, test, _ = found

    def refused(**settings) -> str:
        with pytest.raises(MechlabError) as caught:
            find_circuit(subject, train, test, **settings)
        return str(caught.value)

    assert "unknown method: eap-gi (did you mean eap-ig" in refused(method="eap-gi")
    assert "acdc takes a threshold and nothing else" in refused(method="acdc", top=5)
    assert "edge-pruning takes a top" in refused(method="edge-pruning")
    assert "size of the circuit is given twice: target and top" in refused(target=0.5, top=3)
    assert "at least one edge: 0" in refused(top=0)
    assert "eap has no steps: 3" in refused(method="eap", steps=3)
    assert "path search resamples: zero" in refused(method="path", threshold=0.1, ablation="zero")
    assert "mean ablation needs reference prompts" in refused(ablation="mean")
    assert "constants were made from" in refused(ablation="mean", reference=test)


def test_circuits_of_older_versions_are_refused_by_name(found, tmp_path) -> None:
    import json

    *_, circuit = found
    circuit.save(tmp_path / "c")
    manifest = tmp_path / "c" / "manifest.json"
    fields = json.loads(manifest.read_text())
    del fields["config"]["settings"]
    manifest.write_text(json.dumps(fields))
    with pytest.raises(MechlabError, match=r"written by an older version.*find it again"):
        Circuit.load(tmp_path / "c")
