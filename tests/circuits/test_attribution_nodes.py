"""Scores of nodes against slow references, and AtP* where plain attribution patching is blind."""

from __future__ import annotations

import pytest
import torch
from reading import difference, masked_logits
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from mechlab.circuits.ablation import make_ablation
from mechlab.circuits.attribution import (
    METHODS,
    NodeScores,
    edge_scores,
    edges_of_nodes,
    node_attribution,
    node_scores,
)
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import metric_named
from mechlab.circuits.runs import paired_runs
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Stage

NODE_METHODS = [name for name, method in METHODS.items() if method.level == "node"]


def source_gradients(forward, task, held: int = -1) -> Tensor:
    """Gradient at every source's output, the outputs of one layer held."""
    leaves: list[Tensor] = []

    def write(stage: Stage, outputs: Tensor) -> Tensor:
        leaves.append(torch.zeros_like(outputs).requires_grad_())
        outputs = outputs + leaves[-1]
        return outputs.detach() if stage.layer == held and stage.kind != "embed" else outputs

    run = forward.run(task.clean, positions=task.positions["end"], write=write)
    total = difference(run.logits, task).sum()
    return torch.cat(torch.autograd.grad(total, leaves, materialize_grads=True))


def outputs_of(forward, tokens) -> Tensor:
    return forward.run(tokens, keep=True).sources


def test_sources_of_atp_are_sums_of_edges(architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, 1)), random_task(1)
    nodes = node_attribution(forward, task, batch_size=4)
    edges = edge_scores(forward, task, method="eap")
    torch.testing.assert_close(nodes.sources, node_scores(edges), atol=1e-5, rtol=1e-3)


def test_readers_of_atp(architecture, random_module, random_task) -> None:
    """Gradient times change at queries, keys, values and normalised streams of the two runs."""
    forward, task = DecomposedForward(random_module(architecture, 2)), random_task(2)
    x = forward.embed(task.clean).requires_grad_()
    run = forward.run(x=x, positions=task.positions["end"], trace=True)
    other = forward.run(task.corrupt, trace=True)
    parts = [part for trace in run.traces for part in trace.parts]
    before = [part for trace in other.traces for part in trace.parts]
    gradients = torch.autograd.grad(difference(run.logits, task).sum(), parts)
    expected = [
        ((a - b) * g).sum((0, 1, -1)).detach().reshape(-1)
        for a, b, g in zip(parts, before, gradients, strict=True)
    ]
    found = node_attribution(forward, task).readers
    torch.testing.assert_close(found, torch.cat(expected) / len(task), atol=1e-4, rtol=1e-3)


def test_activation_times_gradient(architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, 3)), random_task(3)
    product = (outputs_of(forward, task.clean) * source_gradients(forward, task)).sum((2, 3)).detach()
    for method, expected in (("act-grad", product.mean(1)), ("hisp", product.abs().mean(1))):
        found = node_attribution(forward, task, method=method).sources
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    # Under zero ablation the source is what is removed, so AtP is the same product.
    zero = node_attribution(forward, task, ablation=make_ablation(forward, "zero")).sources
    torch.testing.assert_close(zero, product.mean(1), atol=1e-4, rtol=1e-3)


def test_holding_layers(architecture, random_module, random_task) -> None:
    """GradDrop of sources: mean of absolute scores over the layers but the source's own."""
    forward, task = DecomposedForward(random_module(architecture, 4)), random_task(4)
    gap = outputs_of(forward, task.clean) - outputs_of(forward, task.corrupt)
    shape = forward.shape
    layer_of = [-1] + [layer for layer in range(shape.n_layers) for _ in range(shape.n_heads + 1)]
    total, counts = torch.zeros(shape.n_sources), torch.zeros(shape.n_sources)
    for held in range(shape.n_layers):
        scores = (gap * source_gradients(forward, task, held)).sum((2, 3)).abs().mean(1).detach()
        elsewhere = torch.tensor([layer != held for layer in layer_of])
        total += scores * elsewhere
        counts += elsewhere
    found = node_attribution(forward, task, method="atp*").sources
    torch.testing.assert_close(found, total / counts, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("part", ["q", "k"])
def test_star_sees_through_a_saturated_softmax(part, random_module, random_task) -> None:
    """One head of the last layer attends to one position only; its gradient is gone, its effect is not."""
    module, task = random_module("gpt2", 2), random_task(2, n=16)
    module.transformer.h[2].attn.c_attn.weight.data[:, :6] *= 60  # queries of head 0
    forward = DecomposedForward(module)
    graph = Graph(forward.shape)
    column = graph.reader(f"a2.h0.{part}")
    mask = graph.real.clone()
    mask[:, column] = False
    pair = next(paired_runs(forward, task, metric_named("logit_difference")))
    logits = masked_logits(forward, pair.clean, pair.corrupt.sources, mask[None], task.positions["end"])
    exact = float((pair.clean.metric - pair.metric(logits[0])).abs().mean())
    plain = float(node_attribution(forward, task).readers[column].abs())
    star = float(node_attribution(forward, task, method="atp*").readers[column])
    assert exact > 0.1
    assert plain < 0.25 * exact
    assert star == pytest.approx(exact, rel=0.25)


def test_star_groups_queries_of_a_shared_key(random_module, random_task) -> None:
    """Where scores are tiny the softmax is linear: AtP* of queries and keys is AtP, per prompt."""
    module, task = random_module("llama", 7).double(), random_task(7, n=1)
    embedding = module.model.embed_tokens.weight.data
    changed = int(task.corrupt[0, 2])
    task.corrupt[0] = task.clean[0]
    task.corrupt[0, 2] = changed
    embedding[changed] = embedding[task.clean[0, 2]] + 1e-5 * torch.ones(24)
    forward = DecomposedForward(module)
    last = forward.shape.readers_per_layer * (forward.shape.n_layers - 1)
    rows = slice(last, last + 6)  # queries and keys of the last layer, which no held layer follows
    plain = node_attribution(forward, task).readers[rows]
    star = node_attribution(forward, task, method="atp*").readers[rows]
    torch.testing.assert_close(star, plain.abs(), rtol=1e-3, atol=1e-12)


def test_star_of_a_single_layer(random_task) -> None:
    """No other layer to hold: sources have their plain |scores|, not nothing."""
    config = GPT2Config(n_embd=24, n_layer=1, n_head=4, vocab_size=30, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    forward, task = DecomposedForward(GPT2LMHeadModel(config).eval()), random_task(1, n=1)
    star = node_attribution(forward, task, method="atp*")
    assert (star.sources > 0).all()
    torch.testing.assert_close(star.sources, node_attribution(forward, task).sources.abs())


def test_edges_have_the_score_of_their_weaker_end(random_module) -> None:
    graph = Graph(DecomposedForward(random_module("gpt2")).shape)
    generator = torch.Generator().manual_seed(0)
    nodes = NodeScores(*(torch.randn(n, generator=generator) for n in graph.real.shape))
    edges = edges_of_nodes(graph, nodes)
    for source, reader in graph.real.nonzero().tolist():
        a, b = float(nodes.sources[source]), float(nodes.readers[reader])
        ends = ([] if source == 0 else [a]) + ([] if reader == graph.shape.n_readers - 1 else [b])
        if ends:
            assert float(edges[source, reader]) == min(ends, key=abs)
    assert float(edges[0, -1]) >= float(edges.abs().max())
    assert not edges[~graph.real].any()


@pytest.mark.parametrize("method", NODE_METHODS)
def test_node_methods_rank_edges(method, architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture)), random_task()
    edges = edge_scores(forward, task, method=method, batch_size=4)
    expected = edges_of_nodes(Graph(forward.shape), node_attribution(forward, task, method=method))
    torch.testing.assert_close(edges, expected, atol=1e-5, rtol=1e-4)


def test_mistakes_are_named(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2")), random_task()
    with pytest.raises(MechlabError, match="not a method of nodes: eap"):
        node_attribution(forward, task, method="eap")
    with pytest.raises(MechlabError, match="need a method of edges"):
        edge_scores(forward, task, method="atp", by_prompt=True)
