"""The computational graph of a model: sources, readers and the edges between them.

A circuit is a boolean matrix ``[n_sources, n_readers]`` and its scores a float matrix of
the same shape; nodes and edges are thin views. Names: sources "embed", "a2.h1" (head 1 of
layer 2), "m3" (MLP of layer 3); readers "a3.h0.q", "a3.h0.k", "a3.h0.v", "m3", "logits".
With grouped-query attention, keys and values count the key/value heads, which several
query heads share.

Edge count of a sequential model with H heads and as many key/value heads:
Σ_l [3H(1+l(H+1)) + 1+l(H+1)+H] + 1+L(H+1), 32,491 for GPT-2 small (the graph of
Conmy et al. 2023, without their q/k/v direct-computation edges).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.errors import MechlabError, near
from mechlab.models.forward import Shape, Stage


@dataclass(frozen=True)
class Edge:
    """One edge of a circuit; ``score`` is None when none was given."""

    source: str
    reader: str
    score: float | None = None


@dataclass(frozen=True)
class Node:
    """A head, MLP, "embed" or "logits": what it writes and what it reads with.

    Attributes:
        source: its row; None for "logits".
        readers: its columns; empty for "embed".
    """

    name: str
    source: int | None
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """All edges that a model of a given shape has."""

    shape: Shape

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the rows."""
        shape, names = self.shape, ["embed"]
        for layer in range(shape.n_layers):
            names += [f"a{layer}.h{head}" for head in range(shape.n_heads)] + [f"m{layer}"]
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of the columns."""
        shape, names = self.shape, []
        for layer in range(shape.n_layers):
            for part, heads in zip("qkv", _heads(shape), strict=True):
                names += [f"a{layer}.h{head}.{part}" for head in range(heads)]
            names.append(f"m{layer}")
        return (*names, "logits")

    @cached_property
    def real(self) -> Bool[Tensor, "n_sources n_readers"]:
        """Which (source, reader) pairs are edges: the source is in the stream the reader reads."""
        real = torch.zeros(self.shape.n_sources, self.shape.n_readers, dtype=torch.bool)
        for stage in self.shape.stages:
            real[: stage.upstream, stage.readers] = True
        return real

    @cached_property
    def feeds(self) -> Bool[Tensor, "n_readers n_sources"]:
        """Which sources compute from a reader directly (a shared key feeds its group of heads)."""
        shape = self.shape
        feeds = torch.zeros(shape.n_readers, shape.n_sources, dtype=torch.bool)
        for stage in shape.stages:
            if stage.kind == "mlp":
                feeds[stage.readers, stage.writes] = True
            elif stage.kind == "attention":
                blocks = [
                    torch.eye(heads, dtype=torch.bool).repeat_interleave(shape.n_heads // heads, 1)
                    for heads in _heads(shape)
                ]
                feeds[stage.readers, stage.writes] = torch.cat(blocks)
        return feeds

    @property
    def n_edges(self) -> int:
        """Number of edges of the whole model."""
        return int(self.real.sum())

    def source(self, name: str) -> int:
        """Row of a source; MechlabError offers near names when there is none."""
        return _index(name, self.sources, "source")

    def reader(self, name: str) -> int:
        """Column of a reader; MechlabError offers near names when there is none."""
        return _index(name, self.readers, "reader")

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node, "logits" last."""
        found = [
            Node(name, row, tuple(self.feeds[:, row].nonzero().flatten().tolist()))
            for row, name in enumerate(self.sources)
        ]
        return (*found, Node("logits", None, (self.shape.n_readers - 1,)))

    def edges(
        self,
        mask: Bool[Tensor, "n_sources n_readers"],
        scores: Float[Tensor, "n_sources n_readers"] | None = None,
    ) -> Iterator[Edge]:
        """The edges of a circuit, by source and then reader."""
        for row, column in (mask.cpu() & self.real).nonzero().tolist():
            score = None if scores is None else float(scores[row, column])
            yield Edge(self.sources[row], self.readers[column], score)

    def mask(self, edges: list[tuple[str, str]]) -> Bool[Tensor, "n_sources n_readers"]:
        """The circuit of these (source, reader) pairs; MechlabError for a pair that is no edge."""
        mask = torch.zeros_like(self.real)
        for source, reader in edges:
            row, column = self.source(source), self.reader(reader)
            if not self.real[row, column]:
                raise MechlabError(
                    "no such edge", f"{source} → {reader}", "the reader must act after the source"
                )
            mask[row, column] = True
        return mask

    def connected(
        self, mask: Bool[Tensor, "n_sources n_readers *pos"], *, causal: bool = True
    ) -> Bool[Tensor, "n_sources n_readers *pos"]:
        """The edges of ``mask`` that lie on a path from "embed" to the logits.

        Under resample ablation the others change nothing: a source that "embed" does not
        reach has its corrupt value already.

        With a position axis a path moves between positions only through keys and values: to later
        positions, or to all where attention is not ``causal``. Logits count at every position.
        """
        real = self.real if mask.ndim == 2 else self.real[..., None]
        each = mask.cpu() & real
        edges = each[..., None] if mask.ndim == 2 else each
        n_pos = edges.shape[2]
        reached = torch.zeros(self.shape.n_sources, n_pos, dtype=torch.bool)
        reached[0] = True
        leads = torch.zeros(self.shape.n_readers, n_pos, dtype=torch.bool)
        leads[-1] = True
        # [from, to]: which positions of a head's output a key or value at a position reaches.
        moved = torch.ones(n_pos, n_pos, dtype=torch.bool)
        moved = moved.triu() if causal else moved
        stages = [stage for stage in self.shape.stages if stage.kind in ("attention", "mlp")]
        for stage in stages:
            touched = (edges[:, stage.readers] & reached[:, None]).any(0)
            spread = _any_product(touched, moved)
            at_once = self._at_once(stage)
            reached |= _any_product(self.feeds[stage.readers][at_once].T, touched[at_once])
            reached |= _any_product(self.feeds[stage.readers][~at_once].T, spread[~at_once])
        for stage in reversed(stages):
            useful = (edges & leads).any(1)
            back = _any_product(useful, moved.T)
            at_once = self._at_once(stage)
            feeds = self.feeds[stage.readers]
            leads[stage.readers] = torch.where(
                at_once[:, None], _any_product(feeds, useful), _any_product(feeds, back)
            )
        return each & (reached[:, None] & leads).view(each.shape)

    def _at_once(self, stage: Stage) -> Bool[Tensor, "reader"]:
        """Which readers of a stage act at their own position: all but keys and values."""
        n = stage.readers.stop - stage.readers.start
        return torch.arange(n) < (self.shape.n_heads if stage.kind == "attention" else n)

    def to_json(
        self,
        mask: Bool[Tensor, "n_sources n_readers"],
        scores: Float[Tensor, "n_sources n_readers"] | None = None,
    ) -> str:
        """A circuit as JSON: the shape and one [source, reader, score] per edge."""
        edges = [[edge.source, edge.reader, edge.score] for edge in self.edges(mask, scores)]
        return json.dumps({"shape": asdict(self.shape), "edges": edges}, indent=1) + "\n"


def from_json(text: str) -> tuple[Graph, Bool[Tensor, "n_sources n_readers"]]:
    """The graph and the circuit that ``Graph.to_json`` wrote; MechlabError when it cannot be read."""
    try:
        fields = json.loads(text)
        graph = Graph(Shape(**fields["shape"]))
        pairs = [(str(source), str(reader)) for source, reader, _ in fields["edges"]]
        return graph, graph.mask(pairs)
    except (ValueError, TypeError, KeyError) as error:
        raise MechlabError("circuit JSON cannot be read", error, "it needs a shape and edges") from error


def _any_product(
    left: Bool[Tensor, "row inner"], right: Bool[Tensor, "inner column"]
) -> Bool[Tensor, "row column"]:
    """Whether any inner index is true on both sides."""
    return left.float() @ right.float() > 0


def _heads(shape: Shape) -> tuple[int, int, int]:
    """Number of query, key and value readers in a layer."""
    return shape.n_heads, shape.n_key_value_heads, shape.n_key_value_heads


def _index(name: str, names: tuple[str, ...], kind: str) -> int:
    if name not in names:
        raise MechlabError(f"model has no {kind}", name, near(name, names))
    return names.index(name)
