"""Scores of all edges, by any method.

One backward pass, walked stage by stage (``backward``), gives the gradient at the stream through each
reader alone; one matrix product with the differences of the sources gives the scores of its edges.
Nothing is approximated beyond the method itself. EAP costs two forwards, this backward, and the products.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution.axes import Axes
from mechlab.circuits.attribution.backward import walk_back
from mechlab.circuits.attribution.ends import Ends, make_ends
from mechlab.circuits.attribution.integrated import activation_scores
from mechlab.circuits.attribution.methods import gradient_points, method_named
from mechlab.circuits.attribution.nodes import edges_of_nodes, node_attribution
from mechlab.circuits.attribution.routes import route_scores
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, batches
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward

# Elements of the gradients of one stage's readers, for all points that share a run: 16 MB of float32.
_ELEMENTS = 1 << 22


def edge_scores(
    forward: DecomposedForward,
    task: Task,
    *,
    method: str = "eap-ig",
    steps: int = 5,
    grid: str = "midpoint",
    ablation: Ablation | None = None,
    metric: str | None = None,
    by_prompt: bool = False,
    by_position: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "..."]:
    """Scores of all edges ``[n_sources, n_readers]``, mean over prompts, in the metric's units.

    0 where there is no edge. A method of nodes gives edges the score of their weaker end
    (``edges_of_nodes``). Scores of "ifr" are shares of a stream; it looks at neither ablation nor metric.

    Args:
        method: one of ``METHODS``.
        steps, grid: points of integrated gradients, see ``gradient_points``.
        ablation: what removed edges carry; resample when None.
        by_prompt: keep the prompts, ``[n, n_sources, n_readers]``; their mean is the plain score. A
            bootstrap resamples these.
        by_position: keep the positions at which the edge is read, last, ``[n_sources, n_readers, pos]``;
            their sum is the plain score.
        batch_size: prompts of a batch. Gradient points share a run while it is small.

    Raises MechlabError for an unknown method, grid or metric, a metric without gradient, an ablation that
    does not fit the prompts, or a method of nodes by prompt or position.
    """
    level = method_named(method).level
    if level == "node":
        if by_prompt or by_position:
            raise MechlabError("scores by prompt or position need a method of edges", method, "use eap-ig")
        nodes = node_attribution(
            forward, task, method=method, ablation=ablation, metric=metric, batch_size=batch_size
        )
        return edges_of_nodes(Graph(forward.shape), nodes)
    points = gradient_points(method, steps, grid)
    measure = metric_named(metric or default_metric(task))
    axes = Axes(by_prompt, by_position)
    found: list[Tensor] = []
    for batch in batches(task, batch_size, forward.device):
        if method == "ifr":
            scores = route_scores(forward, batch, axes)
        elif method == "eap-ig-activations":
            scores = activation_scores(forward, batch, points, measure, ablation, axes, batch_size)
        else:
            ends = make_ends(forward, batch, measure, ablation, points, narrow=not by_position)
            scores = _gradient_scores(forward, ends, points, axes)
        scores = scores.float().cpu()
        if by_prompt or not found:
            found.append(scores)
        else:
            found[0] += scores
    return axes.finish(torch.cat(found) if by_prompt else found[0] / len(task))


def _gradient_scores(
    forward: DecomposedForward, ends: Ends, points: tuple[float, ...], axes: Axes
) -> Float[Tensor, "_prompt n_sources n_readers _pos"]:
    """Scores of a batch with gradients on the path of the embeddings, a mean over its points."""
    shape, n = forward.shape, len(ends.task)
    scores = axes.zeros(ends.difference, shape.n_readers)
    together = max(1, _ELEMENTS // (ends.high.numel() * shape.readers_per_layer))
    inner = [point for point in points if point not in ends.runs]
    groups: list[tuple[float, ...]] = [(point,) for point in ends.runs]
    groups += [tuple(inner[first : first + together]) for first in range(0, len(inner), together)]
    for group in groups:
        run = ends.traced(group)
        for step in walk_back(forward, run, ends.total(run)):
            stage, pulled = step.trace.stage, step.pulled
            if len(group) > 1:
                pulled = pulled.view(len(pulled), len(group), n, *pulled.shape[2:]).sum(1)
            difference = ends.difference[: stage.upstream]
            if step.trace.positions is not None:
                difference = difference[:, torch.arange(n)[:, None], step.trace.positions[:n]]
            scores[:, : stage.upstream, stage.readers] += axes.contract(difference, pulled)
    return scores / len(points)
