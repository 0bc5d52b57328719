"""The masked forward, faithfulness and its control."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reading import difference
from torch import Tensor

from mechlab.circuits.evaluate import faithfulness, random_circuits, run_circuits
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import logit_difference, negative_kl, probability_difference
from mechlab.circuits.patching import patch_nodes
from mechlab.circuits.runs import batches
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Shape, Stage

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def test_all_edges_are_the_model_and_none_the_corrupt_run(architecture, random_module, random_task) -> None:
    module, task = random_module(architecture), random_task()
    forward = DecomposedForward(module)
    real = Graph(forward.shape).real
    masks = torch.stack([real, torch.zeros_like(real)])
    values, whole, empty = run_circuits(forward, task, masks, batch_size=4)
    torch.testing.assert_close(whole, difference(module(task.clean).logits[:, -1], task), **CLOSE)
    torch.testing.assert_close(empty, difference(module(task.corrupt).logits[:, -1], task), **CLOSE)
    torch.testing.assert_close(values, torch.stack([whole, empty]), **CLOSE)


def slow_circuit(forward: DecomposedForward, task: Task, mask: Tensor) -> Tensor:
    """Each reader's stream added up source by source."""
    corrupt = forward.run(task.corrupt, keep=True).sources
    now: list[Tensor] = []
    biases: list[Tensor] = []

    def write(stage: Stage, outputs: Tensor) -> Tensor:
        now.extend(outputs)
        if stage.kind == "attention" and forward.attentions[stage.layer].output_bias is not None:
            biases.append(forward.attentions[stage.layer].output_bias)
        return outputs

    def read(stage: Stage, stream: Tensor) -> Tensor:
        upstream_biases = biases[: stage.layer] if forward.shape.parallel else biases
        streams = []
        for reader in range(stage.readers.start, stage.readers.stop):
            x = torch.zeros_like(stream) + sum(upstream_biases, torch.zeros(()))
            for source in range(stage.upstream):
                x = x + (now[source] if mask[source, reader] else corrupt[source])
            streams.append(x)
        return torch.stack(streams)

    run = forward.run(task.clean, positions=task.positions["end"], read=read, write=write)
    return difference(run.logits, task)


@pytest.mark.parametrize("seed", [0, 1])
def test_fast_equals_slow(architecture, seed, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, seed)), random_task(seed)
    graph = Graph(forward.shape)
    masks = random_circuits(graph, graph.n_edges // 2, 3, seed)
    values, _, _ = run_circuits(forward, task, masks)
    for mask, value in zip(masks, values, strict=True):
        torch.testing.assert_close(value, slow_circuit(forward, task, mask), **CLOSE)


def test_removing_all_edges_of_a_node_is_noising_it(architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, 1)), random_task(1)
    real = Graph(forward.shape).real
    nodes = list(range(1, forward.shape.n_sources))
    masks = real.repeat(len(nodes), 1, 1)
    for mask, node in zip(masks, nodes, strict=True):
        mask[node] = False
    values, whole, _ = run_circuits(forward, task, masks)
    noising = patch_nodes(forward, task, nodes, metric=logit_difference)[0]
    torch.testing.assert_close(whole - values, noising, **CLOSE)


def test_edges_on_no_path_change_nothing(architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, 2)), random_task(2)
    graph = Graph(forward.shape)
    draws = torch.rand(6, *graph.real.shape, generator=torch.Generator().manual_seed(2))
    masks = graph.real & (draws < 1 / 8)
    pruned = torch.stack([graph.connected(mask) for mask in masks])
    assert pruned.sum() < masks.sum()
    torch.testing.assert_close(
        run_circuits(forward, task, masks)[0], run_circuits(forward, task, pruned)[0], **CLOSE
    )


def test_faithfulness_of_the_whole_model_is_one(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("llama")), random_task(n=12)
    score = faithfulness(forward, task, Graph(forward.shape).real, controls=3)
    assert score.value == pytest.approx(1, abs=1e-4)
    assert score.n == 12
    assert score.null is not None
    # Random circuits of all edges are the whole model too.
    assert score.null.value == pytest.approx(1, abs=1e-4)
    empty = faithfulness(forward, task, torch.zeros_like(Graph(forward.shape).real), controls=0)
    assert empty.value == pytest.approx(0, abs=1e-4)
    assert empty.null is None


def test_faithfulness_is_a_ratio_of_means(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2", 3)), random_task(3)
    graph = Graph(forward.shape)
    mask = random_circuits(graph, 100, 1, seed=5)
    values, whole, empty = run_circuits(forward, task, mask)
    expected = float((values[0].mean() - empty.mean()) / (whole.mean() - empty.mean()))
    assert faithfulness(forward, task, mask[0], controls=2).value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shape", [Shape(3, 4, 2, parallel=True), Shape(4, 4, 4, parallel=False)])
def test_random_circuits(shape) -> None:
    graph = Graph(shape)
    masks = random_circuits(graph, 20, 5, seed=1)
    for mask in masks:
        assert mask.sum() >= 20
        assert torch.equal(graph.connected(mask), mask)
    for wanted, sizes in ((0, [0, 0]), (graph.n_edges, [graph.n_edges] * 2)):
        assert random_circuits(graph, wanted, 2).sum((1, 2)).tolist() == sizes
    assert torch.equal(masks, random_circuits(graph, 20, 5, seed=1))
    assert not torch.equal(masks, random_circuits(graph, 20, 5, seed=2))


def test_probability_difference(random_task) -> None:
    task = random_task(n=2)
    right = torch.zeros(2, 3, dtype=torch.bool)
    right[:, 0] = True
    wrong = torch.zeros(2, 3, dtype=torch.bool)
    wrong[:, 1:] = True
    sets = Task(**{**vars(task), "right_set": right, "wrong_set": wrong})
    # A fourth column pads the model's vocabulary beyond the tokenizer's.
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4]]).log()
    torch.testing.assert_close(probability_difference(logits, sets, logits), torch.tensor([0.1, -0.4]))
    rows = list(batches(sets, 1, torch.device("cpu")))
    assert [len(row) for row in rows] == [1, 1]
    assert torch.equal(rows[1].clean, task.clean[1:])


def test_divergence_of_half_precision_logits_is_summed_in_single(random_task) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, other = (3 * torch.randn(2, 5000, generator=generator).bfloat16() for _ in range(2))
    other = (clean + 0.05 * other).bfloat16()
    task = random_task(n=2)
    expected = negative_kl(other.double(), task, clean.double()).float()
    torch.testing.assert_close(negative_kl(other, task, clean), expected, rtol=1e-4, atol=1e-6)


def test_runs_that_cannot_be_are_refused(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2")), random_task()
    none = torch.zeros(0, *Graph(forward.shape).real.shape, dtype=torch.bool)
    with pytest.raises(MechlabError, match="batch size must be at least 1: 0"):
        run_circuits(forward, task, none, batch_size=0)
    with pytest.raises(MechlabError, match=r"not in the model's vocabulary: 1\d\d "):
        run_circuits(forward, replace(task, clean=task.clean + 100), none)
    long = torch.zeros(6, 2000, dtype=torch.int64)
    with pytest.raises(MechlabError, match="longer than the model's context: 2000"):
        run_circuits(forward, replace(task, clean=long, corrupt=long), none)
    module = random_module("gpt2")
    module.transformer.h[1].mlp.c_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(MechlabError, match="not finite: random"):
        run_circuits(DecomposedForward(module), task, none)
