"""Information flow routes: how much of what a reader reads each source makes up (no gradient).

With y the stream and x_s the output of a source in it (Ferrando & Voita 2024, *Information flow routes:
automatically interpreting language models at scale*, section 2),

    proximity(s) = max(‖y‖₁ − ‖y − x_s‖₁, 0),   importance(s) = proximity(s) / Σ_s' proximity(s')

per prompt and position. All readers of a stage read one stream, so a source's edges to them score alike.
The paper sums a head's output over the positions it attends to, one route each, and follows routes
down from the last token; here, as in MIB, a head is one source, and importance is averaged over all
positions, for the logits over those that the task reads.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.attribution.axes import Axes
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward, Stage

_TOGETHER = 16


@torch.no_grad()
def route_scores(
    forward: DecomposedForward, batch: Task, axes: Axes
) -> Float[Tensor, "_prompt n_sources n_readers _pos"]:
    """Importances of a batch's clean prompts, summed over the axes that are not kept."""
    streams: list[tuple[Stage, Tensor]] = []

    def read(stage: Stage, stream: Tensor) -> Tensor:
        streams.append((stage, stream))
        return stream

    ends = batch.positions["end"]
    sources = forward.run(batch.clean, positions=ends, read=read, keep=True).sources
    assert sources is not None
    scores = axes.zeros(sources, forward.shape.n_readers)
    n, pos = batch.clean.shape
    for stage, stream in streams:
        share = importance(stream, sources[: stage.upstream])
        if stage.kind == "logits":
            at = ends.view(n, -1)
            weight = sources.new_zeros(n, pos).scatter_(1, at, 1 / at.shape[1])
        else:
            weight = sources.new_full((n, pos), 1 / pos)
        each = (share * weight).transpose(0, 1)[:, :, None]
        scores[:, : stage.upstream, stage.readers] += axes.reduce(each)
    return scores


def importance(
    stream: Float[Tensor, "batch pos d_model"], sources: Float[Tensor, "source batch pos d_model"]
) -> Float[Tensor, "source batch pos"]:
    """Share of each source in the stream, by L1 proximity; sums to 1 (0 where no source is near)."""
    far = torch.cat([(stream - some).abs_().sum(-1) for some in torch.split(sources, _TOGETHER)])
    proximity = (stream.abs().sum(-1) - far).clamp(min=0)
    return proximity / proximity.sum(0).clamp(min=torch.finfo(stream.dtype).tiny)
