"""Circuits cut out of scores, and the clean-up."""

from __future__ import annotations

import pytest
import torch

from mechlab.circuits.graph import Graph
from mechlab.circuits.search.found import clean_up, leading
from mechlab.circuits.search.prune import cut, edges_above, greedy_edges, top_edges
from mechlab.errors import MechlabError
from mechlab.models.forward import Shape

SHAPES = [Shape(2, 2, 2, parallel=False), Shape(3, 4, 2, parallel=True)]


def random_scores(graph: Graph, seed: int = 0) -> torch.Tensor:
    return torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_top_and_threshold_keep_the_largest(shape) -> None:
    graph = Graph(shape)
    scores = random_scores(graph)
    for signed in (False, True):
        mask = top_edges(graph, scores, 12, signed=signed)
        assert mask.sum() == 12
        assert not (mask & ~graph.real).any()
        ranks = scores if signed else scores.abs()
        assert ranks[mask].min() >= ranks[graph.real & ~mask].max()
        assert torch.equal(edges_above(graph, scores, float(ranks[mask].min()), signed=signed), mask)
    assert torch.equal(top_edges(graph, scores, graph.n_edges), graph.real)
    assert not top_edges(graph, scores, 0).any()


def test_ties_go_to_earlier_sources() -> None:
    graph = Graph(SHAPES[0])
    mask = top_edges(graph, torch.ones(graph.real.shape), 5)
    assert mask.nonzero().tolist() == graph.real.nonzero()[:5].tolist()


def naive_greedy(graph: Graph, ranks: torch.Tensor, n: int) -> torch.Tensor:
    """Look through all edges for the best one into a node that is there, n times."""
    mask = torch.zeros_like(graph.real)
    for _ in range(n):
        inside = graph.feeds[:, mask.any(1)].any(1)
        inside[-1] = True
        open_edges = graph.real & ~mask & inside
        if not open_edges.any():
            break
        best = ranks.masked_fill(~open_edges, -torch.inf).flatten().argmax()
        mask.view(-1)[best] = True
    return mask


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 7, 25, 10_000])
def test_greedy_equals_the_naive_search(shape, n) -> None:
    graph = Graph(shape)
    for seed in range(3):
        scores = random_scores(graph, seed)
        for signed in (False, True):
            mask = greedy_edges(graph, scores, n, signed=signed)
            assert torch.equal(mask, naive_greedy(graph, scores if signed else scores.abs(), n))
            assert torch.equal(leading(graph, mask), mask)


def test_greedy_by_hand() -> None:
    graph = Graph(Shape(1, 1, 1, parallel=False))
    scores = torch.zeros(graph.real.shape)
    scores[graph.source("a0.h0"), graph.reader("logits")] = 1
    scores[graph.source("embed"), graph.reader("a0.h0.v")] = 5
    scores[graph.source("embed"), graph.reader("m0")] = 9  # never reached: m0 leads nowhere
    scores[graph.source("m0"), graph.reader("logits")] = -1
    mask = greedy_edges(graph, scores, 2, signed=True)
    assert torch.equal(mask, graph.mask([("a0.h0", "logits"), ("embed", "a0.h0.v")]))


def test_clean_up_depends_on_the_ablation() -> None:
    graph = Graph(SHAPES[0])
    path = [("embed", "a0.h0.v"), ("a0.h0", "logits")]
    no_input, no_output = ("a0.h1", "logits"), ("embed", "a1.h1.q")
    mask = graph.mask([*path, no_input, no_output])
    assert torch.equal(clean_up(graph, mask), graph.mask(path))
    for kind in ("zero", "mean"):
        assert torch.equal(clean_up(graph, mask, kind), graph.mask([*path, no_input]))


@pytest.mark.parametrize(("how", "size"), [("top", 12.0), ("greedy", 12.0), ("threshold", 1.0)])
def test_cut_reports_both_counts(how, size) -> None:
    graph = Graph(SHAPES[0])
    scores = random_scores(graph, 3)
    found = cut(graph, scores, size, how=how)
    assert found.n_edges == int(found.mask.sum()) <= found.n_top
    assert torch.equal(graph.connected(found.mask), found.mask)
    assert not found.scores[~graph.real].any()
    assert found.record["how"] == how
    with pytest.raises(MechlabError, match="did you mean top"):
        cut(graph, scores, 3.0, how="topp")
    with pytest.raises(MechlabError, match="not a number"):
        cut(graph, scores, float("nan"))
    with pytest.raises(MechlabError, match="not a number"):
        cut(graph, torch.full_like(scores, torch.nan), 3.0)
