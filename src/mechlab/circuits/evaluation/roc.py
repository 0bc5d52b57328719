"""Edge and node scores against a known circuit: the ROC curve and two areas under it.

Every distinct score is a threshold; edges of equal score enter together, so ties make one straight
piece of the curve. The two areas differ in that piece:

    trapezoid     joins the points by straight lines: the chance that a true edge outscores a false
                  one, a tie counting half (Mann & Whitney)
    pessimistic   keeps the lower point up to the next: ties count nothing (Conmy et al. 2023)

A method that ranks a fifth of the true edges first and ties all others has .600 and .200. So
both are given. Scores are ranked as they are: pass ``scores.abs()`` where the sign is no evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.graph import Graph
from mechlab.errors import MechlabError


@dataclass(frozen=True)
class Roc:
    """One ROC curve.

    Attributes:
        false, true: rates of false and true positives, from (0, 0) to (1, 1).
        auc: area by trapezoids.
        pessimistic: area under the lower steps.
    """

    false: tuple[float, ...]
    true: tuple[float, ...]
    auc: float
    pessimistic: float


def roc(scores: Float[Tensor, "item"], truth: Bool[Tensor, "item"]) -> Roc:
    """The ROC curve of scored items. MechlabError when there is no true or no false item, or a NaN."""
    if truth.all() or not truth.any():
        raise MechlabError("ROC needs true and false items", f"{int(truth.sum())} of {len(truth)} are true")
    if scores.isnan().any():
        raise MechlabError("ROC needs scores that are numbers", f"{int(scores.isnan().sum())} are not")
    _, group = torch.unique(scores.cpu(), return_inverse=True)
    group = group.max() - group  # highest score first
    truth = truth.cpu()
    rates = []
    for items in (~truth, truth):
        counts = torch.bincount(group[items], minlength=int(group.max()) + 1)
        rates.append(torch.cat([counts.new_zeros(1), counts.cumsum(0)]).double() / int(items.sum()))
    false, true = rates
    steps = false.diff()
    return Roc(
        false=tuple(false.tolist()),
        true=tuple(true.tolist()),
        auc=float((steps * (true[1:] + true[:-1]) / 2).sum()),
        pessimistic=float((steps * true[:-1]).sum()),
    )


def edge_roc(
    graph: Graph,
    scores: Float[Tensor, "n_sources n_readers"],
    truth: Bool[Tensor, "n_sources n_readers"],
) -> Roc:
    """ROC over all edges of a model. Raises MechlabError as ``roc`` does."""
    return roc(scores.cpu()[graph.real], truth.cpu()[graph.real])


def node_roc(
    graph: Graph,
    scores: Float[Tensor, "n_sources n_readers"],
    truth: Bool[Tensor, "n_sources n_readers"],
) -> Roc:
    """ROC over heads and MLPs: a node is as high as the highest edge that touches it.

    That is: at every threshold the nodes of a circuit are those its edges touch. Raises
    MechlabError as ``roc`` does.
    """
    found = torch.where(graph.real, scores.cpu().double(), -torch.inf)
    return roc(_nodes(graph, found), _nodes(graph, (truth.cpu() & graph.real).double()) > 0)


def _nodes(graph: Graph, edges: Float[Tensor, "n_sources n_readers"]) -> Float[Tensor, "node"]:
    """The largest value among the edges out of and into each head and MLP."""
    values = [
        torch.cat([edges[node.source], edges[:, list(node.readers)].flatten()]).max()
        for node in graph.nodes
        if node.source is not None and node.readers
    ]
    return torch.stack(values)
