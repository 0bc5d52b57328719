"""A graph whose nodes are dictionary latents, what dictionaries miss, tokens and outputs.

Rows are the nodes that write (sources), columns those that read (readers); a latent is both.
Scores form one dense matrix ``[n_sources, n_readers]``, as in the graph of heads and MLPs; an
edge is there where its score is not zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.circuits.graph import Edge
from mechlab.errors import MechlabError, near

KINDS = ("embedding", "feature", "error", "logit")


@dataclass(frozen=True)
class FeatureNode:
    """One node.

    Attributes:
        kind: "embedding" (all that enters at a position), "feature" (a latent), "error" (what a
            dictionary misses at a site) or "logit" (an output, or the metric itself).
        site: hook name; "embed" and "logits" for embeddings and outputs.
        layer: of the site; -1 for embeddings, the number of layers for outputs.
        position: in the prompt; None where positions are summed.
        index: latent of a feature, token of an embedding or an output; None for errors and the metric.
        value: activation of a feature, logit (less the mean logit) of an output.
        constant: the part of ``value`` that comes from no source (biases).
        score: the node's effect, or its influence; the weight of an output.
    """

    kind: str
    site: str
    layer: int
    position: int | None = None
    index: int | None = None
    value: float | None = None
    constant: float | None = None
    score: float | None = None

    @property
    def name(self) -> str:
        """As in "blocks.2.hook_resid_post/f123@5": site, latent (or "error") and position."""
        unit = {"feature": f"/f{self.index}", "error": "/error"}.get(self.kind, "")
        if self.kind == "logit" and self.index is not None:
            unit = f"/t{self.index}"
        return self.site + unit + ("" if self.position is None else f"@{self.position}")


@dataclass(frozen=True)
class FeatureGraph:
    """Nodes and the scores of their edges.

    Attributes:
        nodes: every node, in the order in which they act.
        sources, readers: the node of each row and column.
        scores: in units of the metric, or of the reader's ``value``; 0 where there is no edge.
    """

    nodes: tuple[FeatureNode, ...]
    sources: Int[Tensor, "n_sources"]
    readers: Int[Tensor, "n_readers"]
    scores: Float[Tensor, "n_sources n_readers"]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each node."""
        return tuple(node.name for node in self.nodes)

    def edges(self) -> Iterator[Edge]:
        """The edges, by source and then reader."""
        sources, readers = self.sources.tolist(), self.readers.tolist()
        for row, column in self.scores.nonzero().tolist():
            score = float(self.scores[row, column])
            yield Edge(self.names[sources[row]], self.names[readers[column]], score)

    def node(self, name: str) -> int:
        """Number of a node; MechlabError offers near names when there is none."""
        if name not in self.names:
            raise MechlabError("graph has no node", name, near(name, self.names))
        return self.names.index(name)

    @cached_property
    def rows(self) -> Int[Tensor, "node"]:
        """Row of each node; -1 for those that write nothing."""
        return _places(self.sources, len(self.nodes))

    @cached_property
    def columns(self) -> Int[Tensor, "node"]:
        """Column of each node; -1 for those that read nothing."""
        return _places(self.readers, len(self.nodes))

    def of_kind(self, *kinds: str) -> Bool[Tensor, "node"]:
        """Which nodes are of these kinds; MechlabError for a kind that does not exist."""
        for kind in kinds:
            if kind not in KINDS:
                raise MechlabError("unknown kind of node", kind, near(kind, KINDS))
        return torch.tensor([node.kind in kinds for node in self.nodes], dtype=torch.bool)

    def values(self, field: str = "value") -> Float[Tensor, "node"]:
        """``value``, ``constant`` or ``score`` of every node, 0 where it has none."""
        return torch.tensor([getattr(node, field) or 0.0 for node in self.nodes])

    def with_scores(self, scores: Float[Tensor, "node"]) -> FeatureGraph:
        """The same graph with other scores of its nodes."""
        pairs = zip(self.nodes, scores.tolist(), strict=True)
        return replace(self, nodes=tuple(replace(node, score=score) for node, score in pairs))

    def part(
        self,
        nodes: Bool[Tensor, "node"],
        edges: Bool[Tensor, "n_sources n_readers"] | None = None,
    ) -> FeatureGraph:
        """The graph of some of the nodes and, among these, some of the edges."""
        number = torch.cumsum(nodes, 0) - 1
        rows, columns = nodes[self.sources], nodes[self.readers]
        scores = self.scores if edges is None else torch.where(edges, self.scores, 0)
        return FeatureGraph(
            tuple(node for node, kept in zip(self.nodes, nodes.tolist(), strict=True) if kept),
            number[self.sources[rows]],
            number[self.readers[columns]],
            scores[rows][:, columns],
        )

    def to_json(self) -> str:
        """The graph as JSON: nodes, rows, columns, and one [row, column, score] per edge."""
        at = self.scores.nonzero()
        edges = [
            [row, column, score]
            for (row, column), score in zip(at.tolist(), self.scores[tuple(at.T)].tolist(), strict=True)
        ]
        nodes = [{"name": node.name, **asdict(node)} for node in self.nodes]
        fields = {
            "nodes": nodes,
            "sources": self.sources.tolist(),
            "readers": self.readers.tolist(),
            "edges": edges,
        }
        return json.dumps(fields) + "\n"


def from_json(text: str) -> FeatureGraph:
    """The graph that ``FeatureGraph.to_json`` wrote; MechlabError when it cannot be read."""
    try:
        fields = json.loads(text)
        for node in fields["nodes"]:
            node.pop("name")
        nodes = tuple(FeatureNode(**node) for node in fields["nodes"])
        sources, readers = (torch.tensor(fields[key], dtype=torch.long) for key in ("sources", "readers"))
        scores = torch.zeros(len(sources), len(readers))
        for row, column, score in fields["edges"]:
            scores[row, column] = score
        graph = FeatureGraph(nodes, sources, readers, scores)
        _ = graph.rows, graph.columns  # looked at, so that numbers of no node are found here
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise MechlabError(
            "feature graph cannot be read", error, "it needs nodes, sources, readers and edges"
        ) from error
    return graph


def _places(numbers: Tensor, count: int) -> Tensor:
    places = torch.full((count,), -1, dtype=torch.long)
    places[numbers] = torch.arange(len(numbers))
    return places
