"""From which size on an edge survives the clean-up, against cleaning up every size."""

from __future__ import annotations

import pytest
import torch

from mechlab.circuits.graph import Graph
from mechlab.circuits.search.found import clean_up, joining_sizes
from mechlab.models.forward import Shape

SHAPES = (Shape(3, 4, 4, parallel=False), Shape(3, 4, 2, parallel=True), Shape(1, 2, 1, parallel=False))


@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_every_size_is_the_circuit_that_the_clean_up_leaves(shape, ablation, seed):
    graph = Graph(shape)
    edges = graph.real.nonzero()
    order = edges[torch.randperm(len(edges), generator=torch.Generator().manual_seed(seed))]
    taken = [(row, column) for row, column in order[: int(0.6 * len(order))].tolist()]
    sizes = joining_sizes(graph, taken, ablation)
    mask = torch.zeros_like(graph.real)
    for n, pair in enumerate(taken, start=1):
        mask[pair] = True
        found = torch.zeros_like(mask)
        for each, size in zip(taken, sizes, strict=True):
            found[each] = size is not None and size <= n
        assert torch.equal(found, clean_up(graph, mask, ablation)), n
    assert all(size is None or size > n for n, size in enumerate(sizes))


def test_edges_on_no_path_never_join():
    graph = Graph(SHAPES[0])
    pairs = [
        ("embed", "a1.h0.q"),
        ("m1", "logits"),
        ("embed", "logits"),
        ("a1.h0", "m2"),
        ("a2.h3", "logits"),
    ]
    edges = [(graph.source(source), graph.reader(reader)) for source, reader in pairs]
    assert joining_sizes(graph, edges) == [None, None, 3, None, None]
    assert joining_sizes(graph, edges, "mean") == [None, 2, 3, None, 5]
    assert joining_sizes(graph, []) == []
