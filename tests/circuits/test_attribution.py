"""Edge attribution against slow references and against what it must add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reading import difference
from torch import Tensor

from mechlab.circuits.attribution import edge_scores, gradient_points, node_scores
from mechlab.circuits.find import top_edges
from mechlab.circuits.graph import Graph
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Stage

EMBEDDING_METHODS = ("eap", "eap-corrupt", "eap-mean", "eap-ig")


def naive_scores(forward, task, points) -> Tensor:
    """One gradient copy of the stream per reader, one dot product per edge."""
    graph = Graph(forward.shape)
    clean = forward.run(task.clean, keep=True).sources
    corrupt = forward.run(task.corrupt, keep=True).sources
    low, high = forward.embed(task.corrupt), forward.embed(task.clean)
    found = torch.zeros(graph.real.shape)
    for point in points:
        copies: list[Tensor] = []

        def read(stage: Stage, stream: Tensor, copies: list[Tensor] = copies) -> Tensor:
            for _ in range(stage.readers.stop - stage.readers.start):
                copies.append(stream.clone().requires_grad_())
            return torch.stack(copies[stage.readers.start :])

        run = forward.run(x=low + point * (high - low), positions=task.positions["end"], read=read)
        gradients = torch.autograd.grad(difference(run.logits, task).sum(), copies)
        for source, reader in graph.real.nonzero().tolist():
            found[source, reader] += ((clean[source] - corrupt[source]) * gradients[reader]).sum()
    return found / len(points) / len(task)


@pytest.mark.parametrize("method", EMBEDDING_METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_fast_equals_slow(architecture, method, seed, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, seed)), random_task(seed)
    fast = edge_scores(forward, task, method=method, steps=3, metric="logit_difference")
    slow = naive_scores(forward, task, gradient_points(method, 3))
    torch.testing.assert_close(fast, slow, atol=1e-4 * float(slow.abs().max()), rtol=1e-3)


def test_first_order_effect_of_every_edge(architecture, random_module, random_task) -> None:
    """EAP is the derivative of the metric when one edge moves from clean towards corrupt."""
    module = random_module(architecture, 3).double()
    forward, task = DecomposedForward(module), random_task(3, n=2)
    graph = Graph(forward.shape)
    scores = edge_scores(forward, task, method="eap")
    clean = forward.run(task.clean, keep=True).sources
    gap = clean - forward.run(task.corrupt, keep=True).sources
    generator = torch.Generator().manual_seed(0)
    edges = graph.real.nonzero()
    step = 1e-5
    for source, reader in edges[torch.randperm(len(edges), generator=generator)[:15]].tolist():
        values = []
        for sign in (1, -1):

            def read(stage: Stage, stream: Tensor, sign=sign, source=source, reader=reader) -> Tensor:
                streams = stream.repeat(stage.readers.stop - stage.readers.start, 1, 1, 1)
                if stage.readers.start <= reader < stage.readers.stop:
                    streams[reader - stage.readers.start] += sign * step * gap[source]
                return streams

            run = forward.run(task.clean, positions=task.positions["end"], read=read)
            values.append(float(difference(run.logits, task).mean()))
        slope = (values[0] - values[1]) / (2 * step)
        assert float(scores[source, reader]) == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_edges_of_a_source_sum_to_its_node_score(architecture, random_module, random_task) -> None:
    """Gradient × difference at every source's output, with a leaf added where it is written."""
    forward, task = DecomposedForward(random_module(architecture, 1)), random_task(1)
    leaves: list[Tensor] = []

    def write(stage: Stage, outputs: Tensor) -> Tensor:
        leaves.append(torch.zeros_like(outputs).requires_grad_())
        return outputs + leaves[-1]

    run = forward.run(task.clean, positions=task.positions["end"], write=write)
    gradient = torch.cat(torch.autograd.grad(difference(run.logits, task).sum(), leaves))
    gap = forward.run(task.clean, keep=True).sources - forward.run(task.corrupt, keep=True).sources
    expected = (gradient * gap).flatten(1).sum(1) / len(task)
    scores = edge_scores(forward, task, method="eap")
    torch.testing.assert_close(node_scores(scores), expected, atol=1e-4, rtol=1e-3)


def test_mlp_node_score_through_the_module_itself(architecture, random_module, random_task) -> None:
    module, task = random_module(architecture, 2), random_task(2)
    forward = DecomposedForward(module)
    layers = module.transformer.h if architecture == "gpt2" else module.base_model.layers
    outputs: list[Tensor] = []
    handles = [
        layer.mlp.register_forward_hook(lambda _m, _i, out: outputs.append(out.requires_grad_()) or out)
        for layer in layers
    ]
    logits = module(task.clean).logits[:, -1]
    clean = list(outputs)
    outputs.clear()
    module(task.corrupt)
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(difference(logits, task).sum(), clean)
    expected = [
        float((g * (a - b)).detach().sum()) / len(task)
        for g, a, b in zip(gradients, clean, outputs, strict=True)
    ]
    rows = [Graph(forward.shape).source(f"m{layer}") for layer in range(len(layers))]
    found = node_scores(edge_scores(forward, task, method="eap"))[rows]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=1e-3)


def test_integrated_gradients_are_complete(architecture, random_module, random_task) -> None:
    """The embedding's edges sum to m(clean) − m(corrupt) as the steps grow."""
    forward, task = DecomposedForward(random_module(architecture, 4)), random_task(4)
    ends = [
        difference(forward.run(tokens, positions=task.positions["end"]).logits, task).mean()
        for tokens in (task.clean, task.corrupt)
    ]
    gap = float(ends[0] - ends[1])
    errors = [
        abs(float(edge_scores(forward, task, method="eap-ig", steps=steps)[0].sum()) - gap)
        for steps in (2, 8, 32)
    ]
    assert errors[2] < 0.02 * abs(gap)
    assert errors[2] < errors[0]


def test_points_and_their_mean(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2")), random_task()
    clean, corrupt, both = (edge_scores(forward, task, method=m) for m in EMBEDDING_METHODS[:3])
    torch.testing.assert_close(both, (clean + corrupt) / 2)
    assert gradient_points("eap-ig", 2) == (0.25, 0.75)


def test_no_score_without_an_edge_or_a_difference(architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture)), random_task()
    scores = edge_scores(forward, task)
    assert not scores[~Graph(forward.shape).real].any()
    assert not edge_scores(forward, replace(task, corrupt=task.clean)).any()


def test_batches_do_not_matter(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("llama")), random_task(n=7)
    torch.testing.assert_close(
        edge_scores(forward, task, batch_size=3), edge_scores(forward, task, batch_size=7)
    )


def test_permuting_heads_permutes_scores(random_module, random_task) -> None:
    task, order = random_task(5), torch.tensor([2, 0, 3, 1])
    module, permuted = random_module("gpt2", 5), random_module("gpt2", 5)
    columns = (order[:, None] * 6 + torch.arange(6)).flatten()
    attn = permuted.transformer.h[1].attn
    three = torch.cat([columns, columns + 24, columns + 48])
    attn.c_attn.weight.data = attn.c_attn.weight[:, three]
    attn.c_attn.bias.data = attn.c_attn.bias[three]
    attn.c_proj.weight.data = attn.c_proj.weight[columns]
    graph = Graph(DecomposedForward(module).shape)
    rows, readers = torch.arange(graph.shape.n_sources), torch.arange(graph.shape.n_readers)
    rows[graph.source("a1.h0") : graph.source("m1")] = graph.source("a1.h0") + order
    for part in "qkv":
        first = graph.reader(f"a1.h0.{part}")
        readers[first : first + 4] = first + order
    scores, moved = (edge_scores(DecomposedForward(m), task) for m in (module, permuted))
    torch.testing.assert_close(moved, scores[rows][:, readers], atol=1e-5, rtol=1e-3)
    assert torch.equal(top_edges(graph, moved, 30), top_edges(graph, scores, 30)[rows][:, readers])


def test_mistakes_are_named(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2")), random_task()
    with pytest.raises(MechlabError, match=r"unknown attribution method: eap-gi \(did you mean eap-ig"):
        edge_scores(forward, task, method="eap-gi")
    with pytest.raises(MechlabError, match="unknown metric"):
        edge_scores(forward, task, metric="kl")
    with pytest.raises(MechlabError, match="at least one step"):
        edge_scores(forward, task, steps=0)
    with pytest.raises(MechlabError, match="no answer sets"):
        edge_scores(forward, task, metric="probability_difference")
