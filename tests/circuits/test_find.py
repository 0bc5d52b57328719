"""Finding a circuit from end to end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution import METHODS, backward, clean, edge_scores, edges, ends, integrated
from mechlab.circuits.circuit import Circuit, task_fingerprint
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.find import find_circuit, passes, require_task, size_grid, top_edges
from mechlab.circuits.graph import Graph
from mechlab.circuits.search.sought import Sought
from mechlab.data.tasks import make_task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Shape
from mechlab.models.subject import bundled_path, load_model

SIZES = (5, 20, 60, 100, 150)
needs_fable = pytest.mark.skipif(
    not (bundled_path() / "config.json").is_file(), reason="the bundled model is not there"
)


@pytest.fixture
def job(random_module, random_task, as_subject):
    """A subject and two sets of prompts on which its metric is higher on clean prompts."""
    module = random_module("llama", 6)
    forward = DecomposedForward(module)
    tasks = []
    for seed in (6, 7):
        task = random_task(seed, n=10)
        _, whole, empty = run_circuits(forward, task, Graph(forward.shape).real[None])
        flip = whole < empty
        answers = torch.where(flip, task.wrong, task.answers)
        tasks.append(replace(task, answers=answers, wrong=torch.where(flip, task.answers, task.wrong)))
    return as_subject(module), *tasks


def test_find_circuit(job) -> None:
    subject, train, test = job
    seen = []
    circuit = find_circuit(
        subject,
        train,
        test,
        target=0.8,
        controls=4,
        checked=5,
        sizes=SIZES,
        progress=lambda *at: seen.append(at),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    chosen = next(point for point in circuit.curve if point.n_top == circuit.n_top)
    assert chosen.faithfulness >= 0.8
    assert all(p.faithfulness < 0.8 for p in circuit.curve if p.n_top < circuit.n_top)
    assert circuit.curve[-1].n_edges == circuit.graph.n_edges
    assert circuit.curve[-1].faithfulness == pytest.approx(1, abs=1e-4)
    assert chosen.n_edges == circuit.n_edges <= circuit.n_top
    assert torch.equal(circuit.graph.connected(circuit.mask), circuit.mask)
    assert (circuit.model, circuit.held_out) == (subject.fingerprint, task_fingerprint(test))
    assert circuit.faithfulness.n == len(test)
    assert circuit.faithfulness.null is not None
    assert circuit.faithfulness.null.n == 4
    assert len(circuit.heads.effects) == 5
    assert len(list(circuit.edges)) == circuit.n_edges


def test_same_seed_same_circuit(job) -> None:
    first, second = (find_circuit(*job, seed=3, controls=2, checked=2, sizes=(60,)) for _ in range(2))
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.mask, second.mask)
    assert first.faithfulness == second.faithfulness


def test_save_and_load(job, tmp_path) -> None:
    circuit = find_circuit(*job, method="eap", controls=2, checked=3, sizes=(10, 40))
    assert [point.n_top for point in circuit.curve] == [10, 40, circuit.graph.n_edges]
    artifact = circuit.save(tmp_path / "circuit")
    assert artifact.manifest.inputs["model"] == circuit.model
    back = Circuit.load(tmp_path / "circuit")
    for name in vars(circuit):
        mine, read = getattr(circuit, name), getattr(back, name)
        assert torch.equal(mine, read) if isinstance(mine, torch.Tensor) else mine == read, name
    assert circuit.save(tmp_path / "circuit").manifest.fingerprint == artifact.manifest.fingerprint
    with pytest.raises(MechlabError, match="another settings"):
        replace(circuit, settings={"target": 0.5}).save(tmp_path / "circuit")


def test_top_edges_and_grid() -> None:
    graph = Graph(Shape(2, 2, 2, parallel=False))
    scores = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(0))
    mask = top_edges(graph, scores, 12)
    assert mask.sum() == 12
    assert not (mask & ~graph.real).any()
    assert scores[mask].abs().min() >= scores[graph.real & ~mask].abs().max()
    assert torch.equal(top_edges(graph, scores, graph.n_edges), graph.real)
    grid = size_grid(graph.n_edges)
    assert grid[0] == 1
    assert grid[-1] == graph.n_edges
    assert list(grid) == sorted(set(grid))


def test_mistakes_are_named(job) -> None:
    subject, train, test = job
    with pytest.raises(MechlabError, match="in both the selection and the held-out set"):
        find_circuit(subject, train, train)
    with pytest.raises(MechlabError, match="different tasks"):
        find_circuit(subject, train, replace(test, name="other"))
    with pytest.raises(MechlabError, match="target faithfulness"):
        find_circuit(subject, train, test, target=1.5)
    with pytest.raises(MechlabError, match="does not do the task random"):
        find_circuit(subject, replace(train, answers=train.wrong, wrong=train.answers), test)
    with pytest.raises(MechlabError, match="does not do the task random"):
        require_task(subject, replace(train, answers=train.wrong, wrong=train.answers))
    require_task(subject, train)


@pytest.mark.parametrize("kind", ["resample", "zero"])
@pytest.mark.parametrize("method", METHODS)
def test_passes_are_counted(method, kind, random_module, random_task, monkeypatch) -> None:
    """Rows run forward and walked back, over the rows of one batch."""
    forward, task = DecomposedForward(random_module("gpt2")), random_task(0, n=4)
    rows = []

    def run(self, tokens=None, **words):
        if words.get("start", 0) < self.shape.n_layers:  # the logits alone are no pass
            rows.append(len(words["x"] if tokens is None else tokens))
        return plain_run(self, tokens, **words)

    def beside(forward, x, rest, *words, **more):
        rows.append(len(x) + len(rest))
        return plain_beside(forward, x, rest, *words, **more)

    def walk(forward, run, total, **words):
        rows.append(len(run.logits))
        return plain_walk(forward, run, total, **words)

    plain_run, plain_walk, plain_beside = DecomposedForward.run, backward.walk_back, ends.run_beside
    monkeypatch.setattr(DecomposedForward, "run", run)
    monkeypatch.setattr(ends, "run_beside", beside)
    for module in (edges, integrated, clean):
        monkeypatch.setattr(module, "walk_back", walk)
    Sought(forward, task, "logit_difference", Ablation(kind), 3).scores(method)
    assert sum(rows) == passes(method, 3, forward.shape, kind) * len(task)


def test_activation_times_gradient_is_not_attribution_patching(job) -> None:
    found = {
        method: find_circuit(*job, method=method, top=20, controls=0, checked=1).scores
        for method in ("atp", "act-grad")
    }
    assert not torch.allclose(found["atp"], found["act-grad"], rtol=0.1)
    plain = edge_scores(DecomposedForward(job[0].module), job[1], method="act-grad")
    torch.testing.assert_close(found["act-grad"], plain)


@pytest.mark.parametrize("method", ["eap", "atp", "atp*", "act-grad", "hisp"])
def test_a_flat_metric_is_refused(method, job) -> None:
    for metric in ("negative_kl", "negative_l2"):
        with pytest.raises(MechlabError, match=f"{metric} is flat on the clean run"):
            find_circuit(*job, method=method, metric=metric)


def test_sizes_that_are_none(job) -> None:
    for threshold in (float("nan"), float("inf"), -1.0):
        with pytest.raises(MechlabError, match="threshold must be a finite number"):
            find_circuit(*job, threshold=threshold)
    with pytest.raises(MechlabError, match="number of controls must be at least 0: -1"):
        find_circuit(*job, controls=-1)


@needs_fable
def test_circuit_of_the_bundled_model() -> None:
    subject = load_model("fable", device="cpu")
    train, test = (make_task("ioi", subject.tokenizer, n=64, split=s) for s in ("train", "test"))
    circuit = find_circuit(subject, train, test)
    assert circuit.n_edges < circuit.graph.n_edges / 2
    assert circuit.faithfulness.value > 0.6
    assert circuit.faithfulness.beats_null
    assert circuit.faithfulness.null is not None
    assert abs(circuit.faithfulness.null.value) < 0.2


@pytest.mark.gpu
def test_find_circuit_on_cuda(job) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    subject, train, test = job
    on_cpu = find_circuit(subject, train, test, controls=2, checked=3, sizes=SIZES)
    subject.module.cuda()
    on_cuda = find_circuit(subject, train, test, controls=2, checked=3, sizes=SIZES)
    torch.testing.assert_close(on_cuda.scores, on_cpu.scores, atol=1e-3, rtol=1e-2)
    assert on_cuda.faithfulness.value == pytest.approx(on_cpu.faithfulness.value, abs=0.02)
