"""Completeness and minimality, next to knock-outs made one at a time."""

from __future__ import annotations

import math

import pytest
import torch

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.evaluate import random_circuits, run_circuits
from mechlab.circuits.evaluation.completeness import circuit_nodes, completeness
from mechlab.circuits.evaluation.minimality import _added, minimality
from mechlab.circuits.graph import Graph
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward


@pytest.fixture
def case(random_module, random_task):
    """A forward, a task and a circuit of about a third of the edges."""
    forward, task = DecomposedForward(random_module("llama", 3)), random_task(3, n=8)
    return forward, task, random_circuits(Graph(forward.shape), 80, 1, seed=1)[0]


@pytest.mark.parametrize("kind", ["resample", "zero"])
def test_knockouts_one_at_a_time(case, kind) -> None:
    forward, task, mask = case
    graph, ablation = Graph(forward.shape), Ablation(kind)
    names = [graph.sources[row] for row in circuit_nodes(graph, mask)]
    classes = {"first": names[:2], "absent": [], "last": names[-1:]}
    found = completeness(forward, task, mask, classes=classes, subsets=4, greedy=2, ablation=ablation, seed=5)
    ways = [each.way for each in found.knockouts]
    assert ways == ["random"] * 4 + ["class"] * 2 + ["greedy"] * 2
    assert [each.name for each in found.knockouts if each.way == "class"] == ["first", "last"]
    distances = []
    for each in found.knockouts:
        rows = [graph.source(name) for name in each.nodes]
        both = torch.stack([mask, graph.real])
        both[:, rows] = False
        values, whole, empty = run_circuits(forward, task, both, ablation=ablation)
        assert [each.circuit, each.model] == pytest.approx(values.mean(1).tolist(), abs=1e-4)
        kept = slice(1, None, 2) if each.way == "greedy" else slice(None)
        gap = float((whole - empty)[kept].sum())
        distances.append(abs(float((values[0] - values[1])[kept].sum())) / gap)
        assert each.incompleteness.value == pytest.approx(distances[-1], abs=1e-4)
    assert found.mean.value == pytest.approx(sum(distances[:4]) / 4, abs=1e-4)
    assert found.mean.null is not None
    # The greedy search takes the worst node of all, then the worst one beside it.
    first, second = found.knockouts[-2:]
    assert second.nodes[:1] == first.nodes
    single = torch.stack([m for row in circuit_nodes(graph, mask) for m in (mask, graph.real)]).clone()
    for i, row in enumerate(circuit_nodes(graph, mask)):
        single[2 * i : 2 * i + 2, row] = False
    values, _, _ = run_circuits(forward, task, single, ablation=ablation)
    seen = (values[::2] - values[1::2])[:, ::2].sum(1).abs()
    assert first.nodes == (names[int(seen.argmax())],)


def test_the_whole_model_is_complete(case) -> None:
    forward, task, _ = case
    found = completeness(forward, task, Graph(forward.shape).real, subsets=3, greedy=1)
    for each in found.knockouts:
        assert each.incompleteness.value == pytest.approx(0, abs=1e-4)
    assert found.mean.null is not None
    assert found.mean.null.value == pytest.approx(0, abs=1e-4)


def test_removals_one_at_a_time(case) -> None:
    forward, task, mask = case
    graph = Graph(forward.shape)
    found = minimality(forward, task, mask, controls=6, seed=2)
    values, whole, empty = run_circuits(forward, task, mask[None])
    gap = float((whole - empty).sum())
    for part in (*found.edges[:8], *found.edges[-3:], *found.nodes):
        less = mask.clone()
        if "→" in part.part:
            source, reader = part.part.split(" → ")
            less[graph.source(source), graph.reader(reader)] = False
        else:
            less[graph.source(part.part)] = False
        without, _, _ = run_circuits(forward, task, less[None])
        assert part.score.value == pytest.approx(float((values - without).sum()) / gap, abs=1e-3)
    assert len(found.edges) == mask.sum()
    sizes = [abs(each.score.value) for each in found.edges]
    assert sizes == sorted(sizes, reverse=True)
    assert found.null.n == 6
    assert found.matter == pytest.approx(sum(size > found.threshold for size in sizes) / len(sizes))


def test_control_edges_are_new_and_live(case) -> None:
    forward, _, mask = case
    graph = Graph(forward.shape)
    larger, smaller = _added(graph, mask, 10, seed=0)
    for more, less in zip(larger, smaller, strict=True):
        assert (more & ~less).sum() == 1
        assert not (mask & more & ~less).any()
        assert not (less & ~more).any()
        assert torch.equal(graph.connected(more), more)  # every edge on a path


def test_a_circuit_of_all_edges_leaves_no_control(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2")), random_task(n=4)
    found = minimality(forward, task, Graph(forward.shape).real, controls=3)
    assert math.isnan(found.threshold)
    assert math.isnan(found.matter)
    assert found.null.n == 0


def test_mistakes(case) -> None:
    forward, task, mask = case
    with pytest.raises(MechlabError, match="nothing to knock out: 0 nodes"):
        completeness(forward, task, torch.zeros_like(mask))
    with pytest.raises(MechlabError, match=r"model has no source: a0.hh"):
        completeness(forward, task, mask, classes={"x": ["a0.hh"]})
    with pytest.raises(MechlabError, match="unknown metric: logits"):
        minimality(forward, task, mask, metric="logits")
