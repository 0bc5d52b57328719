"""Scores of nodes: what every source writes and every reader reads, from one gradient on the clean run.

A node's activation a is a source's output, or what a reader makes of the stream: a head's query, key or
value before rotation, the normalised stream of an MLP or the logits. A reader's ablated activation is what
it makes of the stream with every source ablated (on the corrupt prompts, under resample ablation). Sums
run over positions.

    atp       (a − a_ablated) · ∂m/∂a. For sources this is the sum over the edges of "eap".
    act-grad  a · ∂m/∂a
    hisp      mean over prompts of |a · ∂m/∂a| (Michel et al. 2019, *Are sixteen heads really better than
              one?*, eq. 5, without their norm over a layer). Given an ablation, both take
              a − a_ablated for a, as Conmy et al. (2023) do.
    atp*      AtP with two repairs, see ``star``
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution.clean import CleanRun
from mechlab.circuits.attribution.ends import make_ends
from mechlab.circuits.attribution.methods import METHODS, method_named
from mechlab.circuits.attribution.star import star_scores
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, batches
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.forward import DecomposedForward


@dataclass(frozen=True)
class NodeScores:
    """Scores of every node, in the metric's units.

    Attributes:
        sources: of what is written: embed, heads, MLPs.
        readers: of what is read: queries, keys, values, MLP inputs, logits.
    """

    sources: Float[Tensor, "n_sources"]
    readers: Float[Tensor, "n_readers"]


def node_scores(scores: Float[Tensor, "n_sources n_readers"]) -> Float[Tensor, "n_sources"]:
    """Node attribution patching from edge scores: a source's gradient is the sum over its readers."""
    return scores.sum(1)


def edges_of_nodes(graph: Graph, nodes: NodeScores) -> Float[Tensor, "n_sources n_readers"]:
    """Edge scores from node scores: an edge has the score of its weaker end, by absolute value.

    Ranking edges so is ranking nodes: the edges above a threshold are those between the nodes above it,
    which is how node methods enter comparisons of circuits (NAP in Mueller et al. 2025, *MIB*). "embed" and
    the logits are in every circuit and limit no edge; the edge between them has the largest score.
    """
    source = nodes.sources[:, None].expand(graph.real.shape)
    reader = nodes.readers.expand(graph.real.shape)
    scores = torch.where(source.abs() <= reader.abs(), source, reader)
    scores[0], scores[:, -1] = nodes.readers, nodes.sources
    scores[0, -1] = torch.cat([nodes.sources[1:], nodes.readers[:-1]]).abs().max()
    return torch.where(graph.real, scores, torch.zeros_like(scores))


def node_attribution(
    forward: DecomposedForward,
    task: Task,
    *,
    method: str = "atp",
    ablation: Ablation | None = None,
    metric: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> NodeScores:
    """Scores of all nodes by a method of nodes, mean over prompts.

    Args:
        ablation: what removed nodes become; resample when None, but nothing (a_ablated = 0) for
            "act-grad" and "hisp".

    Raises MechlabError for an unknown method or metric, a method of edges, a metric without gradient, or an
    ablation that does not fit the prompts.
    """
    if method_named(method).level != "node":
        names = [name for name, chosen in METHODS.items() if chosen.level == "node"]
        raise MechlabError("not a method of nodes", method, near(method, names))
    measure = metric_named(metric or default_metric(task))
    plain = ablation is None and method in ("act-grad", "hisp")
    used = Ablation("zero") if plain else ablation
    n_sources, n_readers = forward.shape.n_sources, forward.shape.n_readers
    total = torch.zeros(n_sources + n_readers)
    for batch in batches(task, batch_size, forward.device):
        clean = CleanRun(forward, make_ends(forward, batch, measure, used, (1.0,)), to_zero=plain)
        scores = star_scores(clean) if method == "atp*" else clean.scores()
        total += (scores.abs() if method == "hisp" else scores).sum(1).float().cpu()
    total /= len(task)
    return NodeScores(total[:n_sources], total[n_sources:])
