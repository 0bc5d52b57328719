"""Influence in an attribution graph, pruning by it, and how much of the graph errors carry.

Source: Ameisen et al. (2025), *Circuit Tracing*. With |A| divided by its column sums to Â and logits
weighted by probability w, the influence of a node is what it gives the logits over all paths,

    B = Â + Â² + … = (I − Â)⁻¹ − I,     influence = B w

(Â has no cycles, so the series ends after at most as many terms as layers and two more; no inverse
is taken). Pruning keeps the nodes that make up a share of all influence, then the edges that make up
a share of the scores Â[s, r] · (influence[r] + w[r]), then drops what no longer leads anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.features.graph import FeatureGraph
from mechlab.errors import MechlabError


@dataclass(frozen=True)
class GraphScores:
    """What of a graph features explain, both between 0 and 1 (1: errors do nothing).

    Attributes:
        replacement: share of the influence that starts at embeddings and not at errors; paths that
            reach the logits from a token by features (or directly).
        completeness: share of a node's input that comes from features and embeddings and not from
            errors, averaged over nodes by influence.
    """

    replacement: float
    completeness: float


def normalised(graph: FeatureGraph) -> Float[Tensor, "n_sources n_readers"]:
    """Â: absolute scores, each column divided by its sum (a column of zeros stays)."""
    scores = graph.scores.abs()
    total = scores.sum(0)
    return scores / torch.where(total > 0, total, 1)


def influence(graph: FeatureGraph) -> Float[Tensor, "node"]:
    """Influence of every node on the logits; of a logit, its weight (share of probability)."""
    found = graph.of_kind("logit") * graph.values("score")
    return found + _carried(graph, normalised(graph), found)


def total_effects(graph: FeatureGraph) -> Float[Tensor, "n_sources logit"]:
    """What each source adds to each logit over all paths of the replacement model, in logits.

    A feature that loses its activation lowers those it feeds in proportion: with N[s, r] =
    A[s, r] / value_r, the effects are (I − N)⁻¹ A at the logits. Features are taken to stay active.
    """
    values = graph.values()[graph.readers]
    logit = graph.of_kind("logit")
    share = torch.where(logit[graph.readers], graph.scores, graph.scores / values)
    columns = logit.nonzero()[:, 0]
    start = torch.zeros(len(graph.nodes), len(columns))
    start[columns, torch.arange(len(columns))] = 1.0
    return _carried(graph, share, start)[graph.sources]


def _carried(
    graph: FeatureGraph, matrix: Float[Tensor, "n_sources n_readers"], start: Float[Tensor, "node *column"]
) -> Float[Tensor, "node *column"]:
    """(M + M² + …) start, node by node."""
    total, now = torch.zeros_like(start), start
    for _ in range(len(graph.nodes)):
        sent = matrix @ now[graph.readers]
        now = torch.zeros_like(start)
        now[graph.sources] = sent
        total = total + now
        if not bool(now.any()):
            return total
    raise MechlabError("graph has a cycle", None, "readers must act after the sources of their edges")


def prune(graph: FeatureGraph, nodes: float = 0.8, edges: float = 0.98) -> FeatureGraph:
    """The part of a graph that carries most of the influence; ``score`` of its nodes is influence.

    Args:
        nodes: share of the influence of all features and errors that those kept make up. Embeddings
            and logits are kept whatever theirs.
        edges: share of the edge scores among them that the edges kept make up.

    Features and errors that then lead to no logit, and features without input, are dropped too.
    Raises MechlabError for shares outside 0 to 1.
    """
    for name, share in (("nodes", nodes), ("edges", edges)):
        if not 0.0 <= share <= 1.0:
            raise MechlabError(f"share of {name} is out of range", share, "between 0 and 1")
    found = influence(graph)
    inner = graph.of_kind("feature", "error")
    graph = graph.part(~inner | smallest_share(torch.where(inner, found, 0), nodes))
    reach = influence(graph)
    scores = normalised(graph) * reach[graph.readers]
    graph = graph.part(torch.ones(len(graph.nodes), dtype=torch.bool), smallest_share(scores, edges))
    kept = _alive(graph)
    while not bool(kept.all()):
        graph = graph.part(kept)
        kept = _alive(graph)
    return graph.with_scores(influence(graph))


def _alive(graph: FeatureGraph) -> Bool[Tensor, "node"]:
    """Which nodes have the edges that they need: out of features and errors, into features."""
    there = graph.scores != 0
    leaves, enters = (torch.zeros(len(graph.nodes), dtype=torch.bool) for _ in range(2))
    leaves[graph.sources], enters[graph.readers] = there.any(1), there.any(0)
    feature, inner = graph.of_kind("feature"), graph.of_kind("feature", "error")
    return (leaves | ~inner) & (enters | ~feature)


def smallest_share(scores: Float[Tensor, "*shape"], share: float) -> Bool[Tensor, "*shape"]:
    """The fewest scores, largest first, that make up ``share`` of their sum; ties all come in.

    Scores are not negative; zeros are never taken. Without a sort, which runs out of memory on
    large graphs: floats that are not negative are ordered as their bits are, so the smallest score
    to be taken is found by halving, 31 sums at most.
    """
    wanted = share * float(scores.sum(dtype=torch.float64))
    scores = scores.to(torch.float32)
    low, high = 1, 0x7F800000  # the smallest positive float, and infinity
    # Largest bar whose scores suffice; with bar low all that are not zero are taken.
    while high - low > 1:
        middle = (low + high) // 2
        bar = torch.tensor(middle, dtype=torch.int32).view(torch.float32).to(scores.device)
        enough = float(torch.where(scores >= bar, scores, 0).sum(dtype=torch.float64)) >= wanted
        low, high = (middle, high) if enough else (low, middle)
    return scores >= torch.tensor(low, dtype=torch.int32).view(torch.float32).to(scores.device)


def graph_scores(graph: FeatureGraph) -> GraphScores:
    """Replacement and completeness score of a graph that is not pruned.

    NaN where no influence reaches the logits.
    """
    found = influence(graph)
    token = float(found[graph.of_kind("embedding")].sum())
    error = float(found[graph.of_kind("error")].sum())
    whole = found[graph.readers]
    missing = normalised(graph)[graph.of_kind("error")[graph.sources]].sum(0)
    completeness = 1 - float((missing * whole).sum()) / (float(whole.sum()) or float("nan"))
    return GraphScores(token / (token + error or float("nan")), completeness)
