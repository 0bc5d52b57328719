"""Scores of all edges, by any method.

All heads share one normalised stream, so one ordinary backward pass gives the gradients at queries,
keys, values and MLP inputs; each reader's weights and norm are pulled back in closed form, and one
matrix product per stage gives the scores of its edges. Nothing is approximated beyond the method itself.

EAP costs a forward without and one with gradient, a backward to the q, k, v and MLP inputs alone, and
the products. With m gradient points their gradients are added up before the product.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution.axes import Axes
from mechlab.circuits.attribution.ends import Ends, make_ends, rows
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
        batch_size: rows of a batch; gradient points share a batch while they fit in it.

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
            ends = make_ends(forward, batch, measure, ablation, points)
            scores = _gradient_scores(forward, ends, points, axes, batch_size)
        scores = scores.float().cpu()
        if by_prompt or not found:
            found.append(scores)
        else:
            found[0] += scores
    return axes.finish(torch.cat(found) if by_prompt else found[0] / len(task))


def _gradient_scores(
    forward: DecomposedForward, ends: Ends, points: tuple[float, ...], axes: Axes, batch_size: int
) -> Float[Tensor, "_prompt n_sources n_readers _pos"]:
    """Scores of a batch with gradients on the path of the embeddings, a mean over its points."""
    n, scores = len(ends.task), axes.zeros(ends.difference, forward.shape.n_readers)
    together = max(1, batch_size // n)
    inner = [point for point in points if point not in ends.runs]
    groups: list[tuple[float, ...]] = [(point,) for point in ends.runs]
    groups += [tuple(inner[first : first + together]) for first in range(0, len(inner), together)]
    for here in groups:
        run = ends.traced(here)
        gradients = iter(ends.gradients(run, [part for trace in run.traces for part in trace.parts]))
        copies = [slice(copy * n, (copy + 1) * n) for copy in range(len(here))]
        for trace in run.traces:
            stage, own = trace.stage, [next(gradients) for _ in trace.parts]
            pulled = [forward.pull_back(rows(trace, copy), tuple(g[copy] for g in own)) for copy in copies]
            for more in pulled[1:]:
                pulled[0] += more
            scores[:, : stage.upstream, stage.readers] += axes.contract(
                ends.difference[: stage.upstream], pulled[0]
            )
    return scores / len(points)
