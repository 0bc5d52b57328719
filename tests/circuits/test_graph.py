"""The graph of sources, readers and edges."""

from __future__ import annotations

import pytest
import torch

from mechlab.circuits.graph import Edge, Graph, from_json
from mechlab.errors import MechlabError
from mechlab.models.forward import Shape

SHAPES = [
    Shape(n_layers=3, n_heads=4, n_key_value_heads=4, parallel=False),
    Shape(n_layers=3, n_heads=4, n_key_value_heads=4, parallel=True),
    Shape(n_layers=2, n_heads=4, n_key_value_heads=2, parallel=False),
    Shape(n_layers=1, n_heads=1, n_key_value_heads=1, parallel=False),
]


def random_mask(graph: Graph, seed: int, share: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return graph.real & (torch.rand(graph.real.shape, generator=generator) < share)


@pytest.mark.parametrize(
    ("layers", "heads", "edges"),
    # GPT-2 small, and the two compiled tracr models (reverse, proportion).
    [(12, 12, 32_491), (4, 1, 77), (2, 1, 23)],
)
def test_edge_counts_of_known_graphs(layers: int, heads: int, edges: int) -> None:
    assert Graph(Shape(layers, heads, heads, parallel=False)).n_edges == edges


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_follow_the_order_of_layers(shape: Shape) -> None:
    graph = Graph(shape)

    def place(name: str) -> float:
        if name == "embed":
            return -1.0
        if name == "logits":
            return float(shape.n_layers)
        layer = int(name[1:].split(".")[0])
        return layer + (0.5 if name.startswith("m") and not shape.parallel else 0.0)

    assert graph.real.shape == (shape.n_sources, shape.n_readers)
    for row, source in enumerate(graph.sources):
        for column, reader in enumerate(graph.readers):
            assert bool(graph.real[row, column]) == (place(source) < place(reader))


def test_names_of_grouped_queries() -> None:
    graph = Graph(SHAPES[2])
    assert graph.sources[:7] == ("embed", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0", "a1.h0")
    assert graph.readers[:9] == (
        *(f"a0.h{head}.q" for head in range(4)),
        *("a0.h0.k", "a0.h1.k", "a0.h0.v", "a0.h1.v"),
        "m0",
    )
    fed = {graph.sources[i] for i in graph.feeds[graph.reader("a0.h1.k")].nonzero().flatten().tolist()}
    assert fed == {"a0.h2", "a0.h3"}
    head = graph.nodes[graph.source("a1.h3")]
    assert [graph.readers[i] for i in head.readers] == ["a1.h3.q", "a1.h1.k", "a1.h1.v"]
    assert graph.nodes[-1].name == "logits"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_connected_keeps_exactly_the_edges_on_a_path(shape: Shape, seed: int) -> None:
    graph = Graph(shape)
    mask = random_mask(graph, seed, 0.15)
    kept = graph.connected(mask)

    def leads(reader: int) -> bool:
        if graph.readers[reader] == "logits":
            return True
        nexts = graph.feeds[reader].nonzero().flatten().tolist()
        return any(leads(r) for s in nexts for r in mask[s].nonzero().flatten().tolist())

    def reached(source: int) -> bool:
        return source == 0 or any(
            reached(s)
            for r in graph.feeds[:, source].nonzero().flatten().tolist()
            for s in mask[:, r].nonzero().flatten().tolist()
        )

    for source, reader in mask.nonzero().tolist():
        assert bool(kept[source, reader]) == (reached(source) and leads(reader))
    assert not (kept & ~mask).any()
    assert torch.equal(graph.connected(kept), kept)


def test_json_round_trip() -> None:
    graph = Graph(SHAPES[2])
    mask, scores = random_mask(graph, 0, 0.3), torch.randn(graph.real.shape)
    again, back = from_json(graph.to_json(mask, scores))
    assert again == graph
    assert torch.equal(back, mask)
    first = next(iter(graph.edges(mask, scores)))
    assert isinstance(first, Edge)
    assert first.score == pytest.approx(float(scores[graph.source(first.source), graph.reader(first.reader)]))


def test_mistakes_are_named() -> None:
    graph = Graph(SHAPES[0])
    with pytest.raises(MechlabError, match=r"no source: a1\.h9 \(did you mean a1\.h"):
        graph.source("a1.h9")
    with pytest.raises(MechlabError, match=r"no reader: logit \(did you mean logits"):
        graph.reader("logit")
    with pytest.raises(MechlabError, match="no such edge: m2 → m1"):
        graph.mask([("m2", "m1")])
    sizes = '{"n_layers": "2", "n_heads": 1, "n_key_value_heads": 1, "parallel": false}'
    for text in ("{}", f'{{"shape": {sizes}, "edges": [["embed", "logits", null]]}}'):
        with pytest.raises(MechlabError, match="cannot be read"):
            from_json(text)


@pytest.mark.parametrize("seed", range(3))
def test_connected_by_position_keeps_the_logits(architecture, seed, random_module, random_task) -> None:
    """Edges that the connected part lacks change nothing under resampling."""
    from reading import masked_logits

    from mechlab.circuits.metrics import logit_difference
    from mechlab.circuits.runs import paired_runs
    from mechlab.models.forward import DecomposedForward

    forward = DecomposedForward(random_module(architecture, seed).double())
    graph = Graph(forward.shape)
    pair = next(iter(paired_runs(forward, random_task(seed, n=2, pos=5), logit_difference)))
    generator = torch.Generator().manual_seed(seed)
    for share in (0.1, 0.4):
        mask = torch.rand(*graph.real.shape, 5, generator=generator) < share
        both = torch.stack([mask, graph.connected(mask)])
        assert not (both[1] & ~mask).any()
        logits = masked_logits(forward, pair.clean, pair.corrupt.sources, both, pair.task.positions["end"])
        torch.testing.assert_close(logits[0], logits[1])


def test_connected_by_position_moves_forward_only(random_module) -> None:
    graph = Graph(Shape(1, 1, 1, parallel=False))
    mask = torch.zeros(*graph.real.shape, 3, dtype=torch.bool)
    embed, head = graph.source("embed"), graph.source("a0.h0")
    mask[embed, graph.reader("a0.h0.v"), 1] = True
    mask[head, graph.reader("logits"), :] = True
    found = graph.connected(mask)
    assert found[head, graph.reader("logits")].tolist() == [False, True, True]
    assert found[embed, graph.reader("a0.h0.v"), 1]
    both_ways = graph.connected(mask, causal=False)
    assert both_ways[head, graph.reader("logits")].tolist() == [True, True, True]
    query = torch.zeros_like(mask)
    query[embed, graph.reader("a0.h0.q"), 1] = True
    query[head, graph.reader("logits"), :] = True
    assert graph.connected(query)[head, graph.reader("logits")].tolist() == [False, True, False]
