"""Integrated gradients over activations: every source on a path of its own.

In the clean run the output of one source is ablated + α (clean − ablated); everything after it follows,
everything else is as it was. With the gradient at every later reader,

    score[s, r] = Σ_positions (s_clean − s_ablated) · mean_α ∂m/∂x_r |_α

and Σ_r score[s, r] → m(clean) − m(clean with s ablated) as the points get dense: the exact effect of
the source, divided among its edges (Marks et al. 2024, *Sparse feature circuits*, eq. 3, for nodes;
the division among edges is the sum rule of a source's gradient).

Costs, per source and point, the layers from the source's own on, forward and backward.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution.axes import Axes
from mechlab.circuits.attribution.backward import walk_back
from mechlab.circuits.attribution.ends import repeated
from mechlab.circuits.metrics import Metric
from mechlab.circuits.runs import PairedRun, paired_runs
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward, Run, Stage


def activation_scores(
    forward: DecomposedForward,
    batch: Task,
    points: tuple[float, ...],
    metric: Metric,
    ablation: Ablation | None,
    axes: Axes,
    batch_size: int,
) -> Float[Tensor, "_prompt n_sources n_readers _pos"]:
    """Scores of a batch; runs hold as many (source, α) copies of it as ``batch_size`` rows allow."""
    pair = next(paired_runs(forward, batch, metric, len(batch)))
    other = pair.corrupt.sources if ablation is None else ablation.values(pair)
    difference, n = pair.clean.sources - other, len(batch)
    scores = axes.zeros(difference, forward.shape.n_readers)
    together = max(1, batch_size // n)
    for stage in forward.shape.stages:
        moved = [(row, a) for row in range(stage.writes.start, stage.writes.stop) for a in points]
        for first in range(0, len(moved), together):
            here = moved[first : first + together]
            sources = torch.tensor([row for row, _ in here], device=other.device)
            weights = other.new_tensor([a for _, a in here])[:, None, None, None]
            values = torch.lerp(other[sources], pair.clean.sources[sources], weights)
            run = _moved(forward, pair, stage, sources, values)
            _add(forward, pair, run, here[0][0], sources, difference, scores, axes)
    return scores / len(points)


def _moved(
    forward: DecomposedForward,
    pair: PairedRun,
    stage: Stage,
    sources: Tensor,
    values: Float[Tensor, "copy batch pos d_model"],
) -> Run:
    """The clean run in as many copies as there are sources, one source's output replaced in each."""
    copies, n = values.shape[:2]

    def write(here: Stage, outputs: Tensor) -> Tensor:
        if here != stage:
            return outputs
        outputs = outputs.reshape(len(outputs), copies, n, *outputs.shape[2:]).clone()
        outputs[sources - stage.writes.start, torch.arange(copies, device=outputs.device)] = values
        return outputs.flatten(1, 2)

    return forward.run(
        x=pair.clean.streams[stage.layer].repeat(copies, 1, 1),
        start=stage.layer,
        positions=repeated(pair.task.positions["end"], copies),
        write=write,
        apart={stage.layer},
        trace=True,
        leaves=True,
    )


def _add(
    forward: DecomposedForward,
    pair: PairedRun,
    run: Run,
    first: int,
    sources: Tensor,
    difference: Float[Tensor, "source batch pos d_model"],
    scores: Tensor,
    axes: Axes,
) -> None:
    """Add a run's scores: gradients at every reader after the moved sources."""
    assert run.logits is not None
    copies, n = len(sources), len(pair.task)
    total = torch.stack([pair.metric(part).sum() for part in torch.split(run.logits, n)]).sum()
    for step in walk_back(forward, run, total):
        stage = step.trace.stage
        if stage.upstream <= first:
            break
        pulled = step.pulled
        pulled = pulled.view(len(pulled), copies, n, *pulled.shape[2:])
        each = torch.einsum("kbpd,rkbpd->bkrp", difference[sources], pulled)
        columns = scores[:, :, stage.readers]
        columns.index_add_(1, sources, axes.reduce(each))
