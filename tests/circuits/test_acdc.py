"""ACDC: the fast search is the plain loop."""

from __future__ import annotations

import json

import pytest
import torch
from naive import corrupt_sources, naive_logits

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import metric_named
from mechlab.circuits.search import acdc as module
from mechlab.circuits.search.acdc import acdc, acdc_scores, edge_order
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward


def naive_acdc(forward, task, threshold, *, metric, signed=True, order="reverse", seed=0, zero=False):
    """Every edge in turn tested on all of the model; no edge goes untested."""
    graph, measure = Graph(forward.shape), metric_named(metric)
    other = corrupt_sources(forward, task)
    other = torch.zeros_like(other) if zero else other
    positions = task.positions["end"]
    clean = forward.run(task.clean, positions=positions).logits

    def value(mask):
        logits = naive_logits(forward, task.clean, positions, other, mask)
        return float(measure(logits, task, clean).double().mean())

    mask, current = graph.real.clone(), value(graph.real)
    for row, column in edge_order(graph, order, seed).tolist():
        mask[row, column] = False
        without = value(mask)
        worse = current - without
        if (worse if signed else abs(worse)) < threshold:
            current = without
        else:
            mask[row, column] = True
    return mask, current


@pytest.fixture
def job(random_module, random_task):
    def make(architecture="gpt2", seed=0, n=2):
        return DecomposedForward(random_module(architecture, seed)), random_task(seed, n=n, pos=4)

    return make


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("gpt2", {"threshold": 0.01, "metric": "negative_kl"}),
        ("llama", {"threshold": 0.1, "metric": "logit_difference", "order": "random", "seed": 3}),
        ("neox", {"threshold": 0.1, "metric": "logit_difference", "signed": False}),
        ("llama", {"threshold": 0.05, "metric": "logit_difference", "order": "forward", "zero": True}),
    ],
)
def test_equals_the_plain_loop(model, settings, job) -> None:
    forward, task = job(model)
    expected, end = naive_acdc(forward, task, **settings)
    rest = {name: value for name, value in settings.items() if name != "zero"}
    found = acdc(forward, task, ablation=Ablation("zero") if "zero" in settings else None, ahead=4, **rest)
    graph = Graph(forward.shape)
    left = torch.ones_like(expected)
    for row, column, _ in found.record["removed"]:
        left[row, column] = False
    assert torch.equal(left & graph.real, expected)
    assert 0 < found.n_edges <= found.n_top == int(expected.sum()) < graph.n_edges
    assert found.record["end"] == pytest.approx(end, abs=1e-4)


@pytest.mark.parametrize(
    ("seed", "metric", "threshold"), [(0, "negative_kl", 0.03), (1, "logit_difference", 0.1)]
)
def test_looking_ahead_changes_no_circuit(seed, metric, threshold, job) -> None:
    forward, task = job("llama", seed)
    guess = torch.rand(Graph(forward.shape).real.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    one = acdc(forward, task, threshold, metric=metric, ahead=1)
    assert one.calls == one.rows
    for ahead, guessed in ((2, None), (64, None), (7, guess), (64, one.mask)):
        many = acdc(forward, task, threshold, metric=metric, ahead=ahead, guess=guessed)
        assert torch.equal(many.mask, one.mask)
        assert [step[:2] for step in many.record["removed"]] == [step[:2] for step in one.record["removed"]]
        torch.testing.assert_close(many.scores, one.scores, atol=1e-4, rtol=1e-3)
        assert many.calls <= one.calls
        if guessed is one.mask and one.n_top == one.n_edges:
            assert many.rows == one.rows  # every prediction came true


def test_history_and_scores(job) -> None:
    forward, task = job("neox")
    found = acdc(forward, task, 0.05)
    graph = Graph(forward.shape)
    record = found.record
    tested = [value for *_, value in record["removed"] if value is not None]
    assert record["start"] == pytest.approx(0, abs=1e-6)
    assert record["end"] == tested[-1]
    # What stays was missed by at least the threshold, and what fell by less.
    assert (found.scores[found.mask] >= 0.05).all()
    assert (found.scores[graph.real & ~found.mask] < 0.05).all() or found.n_top > found.n_edges
    assert len(record["removed"]) + found.n_top == graph.n_edges
    json.dumps(record)


def test_threshold_ends(job) -> None:
    forward, task = job()
    nothing = acdc(forward, task, 1e9)
    assert nothing.n_top == 0
    # All heads are out of reach once no edge into the logits is left, so only those are tested.
    assert nothing.rows >= forward.shape.n_sources
    assert sum(value is not None for *_, value in nothing.record["removed"]) == forward.shape.n_sources
    everything = acdc(forward, task, -1e9)
    assert torch.equal(everything.mask, Graph(forward.shape).real)


def test_orders_are_reverse_topological(architecture, random_module) -> None:
    graph = Graph(DecomposedForward(random_module(architecture)).shape)
    stage_of = {
        column: number
        for number, stage in enumerate(graph.shape.stages)
        for column in range(stage.readers.start, stage.readers.stop)
    }
    seen = []
    for order, seed in (("reverse", 0), ("forward", 0), ("random", 0), ("random", 1)):
        edges = edge_order(graph, order, seed)
        stages = [stage_of[column] for column in edges[:, 1].tolist()]
        assert stages == sorted(stages, reverse=True)
        assert sorted(edges.tolist()) == graph.real.nonzero().tolist()
        seen.append(edges.tolist())
    assert all(seen[i] != seen[j] for i in range(4) for j in range(i))
    assert seen[0][0] == [graph.shape.n_sources - 1, graph.shape.n_readers - 1]
    with pytest.raises(MechlabError, match="unknown order"):
        edge_order(graph, "sideways")


def test_batches_do_not_matter(job) -> None:
    forward, task = job(n=5)
    whole, parts = (acdc(forward, task, 0.05, batch_size=size) for size in (5, 2))
    assert torch.equal(whole.mask, parts.mask)


def test_goes_on_from_a_checkpoint(job, tmp_path, monkeypatch) -> None:
    forward, task = job()
    expected = acdc(forward, task, 0.05, ahead=4)
    store = tmp_path / "acdc.json"
    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)

    def stop(done: int, wanted: int) -> None:
        if done > wanted // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        acdc(forward, task, 0.05, ahead=4, checkpoint=store, progress=stop)
    before = len(json.loads(store.read_text())["decisions"])
    assert before > 0
    found = acdc(forward, task, 0.05, ahead=4, checkpoint=store)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.scores, expected.scores)
    assert found.record == expected.record
    again = acdc(forward, task, 0.05, checkpoint=store)
    assert (again.calls, again.record) == (found.calls, found.record)
    with pytest.raises(MechlabError, match="another model, task or setting"):
        acdc(forward, task, 0.06, checkpoint=store)
    with pytest.raises(MechlabError, match="another model, task or setting"):
        acdc(job(seed=1)[0], task, 0.05, checkpoint=store)
    store.write_text("{")
    with pytest.raises(MechlabError, match="cannot be read"):
        acdc(forward, task, 0.05, checkpoint=store)


def test_scores_are_the_largest_threshold_survived(job, tmp_path) -> None:
    forward, task = job()
    grid = [0.01, 1.0, 0.1]
    scores, runs = acdc_scores(forward, task, grid, checkpoints=tmp_path / "runs", ahead=8)
    assert [run.record["threshold"] for run in runs] == [1.0, 0.1, 0.01]
    expected = torch.zeros_like(scores)
    for threshold in sorted(grid):
        expected[acdc(forward, task, threshold).mask] = threshold
    assert torch.equal(scores, expected)
    assert len(list((tmp_path / "runs").iterdir())) == 3
    for bad in (0.0, float("nan")):
        with pytest.raises(MechlabError, match="above 0"):
            acdc_scores(forward, task, [0.1, bad])
    # Thresholds that are almost the same have checkpoints of their own.
    _, runs = acdc_scores(forward, task, [1.0, 1.0 + 1e-9], checkpoints=tmp_path / "near")
    assert len(runs) == len(list((tmp_path / "near").iterdir())) == 2


def test_mistakes_are_named(job) -> None:
    forward, task = job()
    with pytest.raises(MechlabError, match="unknown metric"):
        acdc(forward, task, 0.1, metric="kl")
    with pytest.raises(MechlabError, match="at least 1"):
        acdc(forward, task, 0.1, ahead=0)
    with pytest.raises(MechlabError, match="not a number"):
        acdc(forward, task, float("nan"))


def test_checkpoints_of_nearly_the_same_model_are_refused(job, random_module, tmp_path) -> None:
    forward, task = job()
    acdc(forward, task, 0.05, checkpoint=tmp_path / "acdc.json")
    module = random_module("gpt2")
    module.transformer.h[1].mlp.c_proj.weight.data[0] *= 1.01
    with pytest.raises(MechlabError, match="another model"):
        acdc(DecomposedForward(module), task, 0.05, checkpoint=tmp_path / "acdc.json")


@pytest.mark.parametrize("trace", ["1", "[1, 2]", "[[1], [2, 3]]", '[["a"]]'])
def test_a_damaged_checkpoint_is_refused(trace, job, tmp_path) -> None:
    store = tmp_path / "acdc.json"
    store.write_text(f'{{"decisions": [], "trace": {trace}, "calls": 0, "rows": 0, "settings": {{}}}}')
    with pytest.raises(MechlabError, match="delete it"):
        acdc(*job(), 0.05, checkpoint=store)
    with pytest.raises(MechlabError, match="cannot be read"):
        acdc(*job(), 0.05, checkpoint=tmp_path)
