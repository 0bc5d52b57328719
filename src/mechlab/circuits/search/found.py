"""``Found``: what every circuit search returns, and the clean-up that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.graph import Graph


@dataclass(frozen=True, eq=False)
class Found:
    """A circuit as a search left it.

    Attributes:
        method: the search.
        mask: the circuit, cleaned up (see ``clean_up``).
        scores: per edge, larger where the search held on to it more; what it measures is said by
            the search. 0 where there is no edge.
        n_top: edges that the search chose, before the clean-up.
        calls: how often the model was run; a call may run many circuits.
        rows: circuits run on all prompts, over all calls.
        seconds: wall-clock time.
        record: settings and evidence, plain JSON values.
    """

    method: str
    mask: Bool[Tensor, "n_sources n_readers"]
    scores: Float[Tensor, "n_sources n_readers"]
    n_top: int
    calls: int
    rows: int
    seconds: float
    record: dict[str, Any]

    @property
    def n_edges(self) -> int:
        """Edges of the circuit, after the clean-up."""
        return int(self.mask.sum())


def clean_up(
    graph: Graph, mask: Bool[Tensor, "n_sources n_readers"], ablation: str = "resample"
) -> Bool[Tensor, "n_sources n_readers"]:
    """The edges of a mask that can matter under an ablation.

    An edge from which the logits cannot be reached never matters. One that "embed" cannot reach is
    as idle under resample ablation, where its source has its corrupt value already; under every
    other ablation a node without inputs still writes something else than the ablation's value, so
    there its edges stay (Conmy et al. 2023 refuse the combination).
    """
    return graph.connected(mask) if ablation == "resample" else leading(graph, mask)


def leading(graph: Graph, mask: Bool[Tensor, "n_sources n_readers"]) -> Bool[Tensor, "n_sources n_readers"]:
    """The edges of a mask from which the logits can be reached."""
    mask = mask.cpu() & graph.real
    leads = torch.zeros(graph.shape.n_readers, dtype=torch.bool)
    leads[-1] = True
    for stage in reversed(graph.shape.stages):
        if stage.kind in ("attention", "mlp"):
            useful = (mask & leads).any(1)
            leads[stage.readers] = (graph.feeds[stage.readers] & useful).any(1)
    return mask & leads


def joining_sizes(
    graph: Graph, edges: Sequence[tuple[int, int]], ablation: str = "resample"
) -> list[int | None]:
    """From which size on each edge survives the clean-up, when circuits take edges in the given order.

    Edge i is among the first n edges from n = i + 1 on, but may hang in the air until others join it. It
    survives from the least n at which a path from "embed" to the logits through it is complete: the
    smallest possible largest number on such a path. None where no path is ever complete.

    Args:
        edges: (row, column) of each, all different.
    """
    never = len(edges) + 1
    into: dict[int, list[tuple[int, int]]] = {}
    out: dict[int, list[tuple[int, int]]] = {}
    for number, (row, column) in enumerate(edges, start=1):
        into.setdefault(column, []).append((number, row))
        out.setdefault(row, []).append((number, column))
    # Sources and readers are numbered in the order in which they act.
    reached = {0: 0}
    for row in sorted(out):
        feeding = (
            n for column in graph.feeds[:, row].nonzero().flatten().tolist() for n in into.get(column, ())
        )
        reached.setdefault(row, min((max(n, reached[source]) for n, source in feeding), default=never))
    leads = {graph.shape.n_readers - 1: 0}
    for column in sorted(into, reverse=True):
        fed = (n for row in graph.feeds[column].nonzero().flatten().tolist() for n in out.get(row, ()))
        leads.setdefault(column, min((max(n, leads[reader]) for n, reader in fed), default=never))
    found = [
        max(number, leads[column], reached[row] if ablation == "resample" else 0)
        for number, (row, column) in enumerate(edges, start=1)
    ]
    return [None if size == never else size for size in found]
