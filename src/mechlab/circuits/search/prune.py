"""Circuits cut out of scores: the best n edges, all above a threshold, or greedily from the logits.

Cutting ignores whether edges hang together; the clean-up afterwards drops those on no path, so a
circuit may hold fewer edges than were cut out. Both counts are reported.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.graph import Graph
from mechlab.circuits.search.found import Found, clean_up
from mechlab.errors import MechlabError, near

CUTS = ("top", "greedy", "threshold")


def top_edges(
    graph: Graph, scores: Float[Tensor, "n_sources n_readers"], n: int, *, signed: bool = False
) -> Bool[Tensor, "n_sources n_readers"]:
    """The ``n`` edges of largest |score|; ties go to earlier sources, then earlier readers.

    ``signed`` ranks by the score itself, so that edges which work against the metric come last.
    """
    edges = graph.real.nonzero()
    found = scores.cpu()[edges[:, 0], edges[:, 1]]
    order = (found if signed else found.abs()).argsort(descending=True, stable=True)
    mask = torch.zeros_like(graph.real)
    rows, columns = edges[order[: max(n, 0)]].T
    mask[rows, columns] = True
    return mask


def edges_above(
    graph: Graph, scores: Float[Tensor, "n_sources n_readers"], threshold: float, *, signed: bool = False
) -> Bool[Tensor, "n_sources n_readers"]:
    """The edges whose |score|, or with ``signed`` whose score, is at least ``threshold``."""
    found = scores.cpu() if signed else scores.cpu().abs()
    return graph.real & (found >= threshold)


def greedy_edges(
    graph: Graph, scores: Float[Tensor, "n_sources n_readers"], n: int, *, signed: bool = False
) -> Bool[Tensor, "n_sources n_readers"]:
    """``n`` edges grown from the logits backwards, best first, each into a node that is already there.

    With a source all readers of its node (queries, keys and values of a head) come within reach.
    Every edge leads to the logits, but the last ones may not be reached from "embed" yet. Fewer
    than ``n`` come back only where the model has fewer. Ties go to earlier sources, then readers.
    (The greedy selection of Hanna et al. 2024 and of the MIB benchmark, Mueller et al. 2025.)
    """
    ranks = (-(scores if signed else scores.abs())).cpu().tolist()
    mask = torch.zeros_like(graph.real)
    border: list[tuple[float, int, int]] = []
    reached = set()

    def reach(reader: int) -> None:
        if reader not in reached:
            reached.add(reader)
            for source in graph.real[:, reader].nonzero().flatten().tolist():
                heappush(border, (ranks[source][reader], source, reader))

    reach(graph.shape.n_readers - 1)
    for _ in range(n):
        if not border:
            break
        _, source, reader = heappop(border)
        mask[source, reader] = True
        for column in graph.feeds[:, source].nonzero().flatten().tolist():
            reach(column)
    return mask


def cut(
    graph: Graph,
    scores: Float[Tensor, "n_sources n_readers"],
    size: float,
    *,
    how: str = "top",
    signed: bool = False,
    ablation: str = "resample",
) -> Found:
    """A circuit cut out of edge scores and cleaned up; runs no model.

    Args:
        size: how many edges for "top" and "greedy", the least score for "threshold".
        how: one of ``CUTS``.
        signed: rank by the score; by its size otherwise.
        ablation: what edges outside the circuit will carry; decides which edges are idle.

    Raises MechlabError for an unknown ``how``, or scores or a size that are not numbers.
    """
    if math.isnan(size) or bool(scores.isnan().any()):
        raise MechlabError("size or score is not a number", size if math.isnan(size) else "scores")
    if how == "top":
        chosen = top_edges(graph, scores, int(size), signed=signed)
    elif how == "greedy":
        chosen = greedy_edges(graph, scores, int(size), signed=signed)
    elif how == "threshold":
        chosen = edges_above(graph, scores, size, signed=signed)
    else:
        raise MechlabError("unknown way to cut a circuit", how, near(how, CUTS))
    mask = clean_up(graph, chosen, ablation)
    record = {"how": how, "size": size, "signed": signed, "ablation": ablation}
    return Found("cut", mask, scores.cpu().where(graph.real, 0.0), int(chosen.sum()), 0, 0, 0.0, record)
