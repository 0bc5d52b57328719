"""The masked forward written out: every reader's stream added up from the edges it keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward, Stage


def naive_logits(
    forward: DecomposedForward, tokens: Tensor, positions: Tensor, other: Tensor, mask: Tensor
) -> Tensor:
    """Logits of one circuit, all of it run anew; ``mask`` may be boolean or between 0 and 1."""
    gaps: list[Tensor] = []
    keep = mask.to(other)

    def write(stage: Stage, outputs: Tensor) -> Tensor:
        gaps.extend(outputs - other[stage.writes])
        return outputs

    def read(stage: Stage, stream: Tensor) -> Tensor:
        removed = 1 - keep[: stage.upstream, stage.readers]
        return stream - torch.einsum("sr,sbpd->rbpd", removed, torch.stack(gaps[: stage.upstream]))

    logits = forward.run(tokens, positions=positions, read=read, write=write).logits
    assert logits is not None
    return logits


def corrupt_sources(forward: DecomposedForward, task: Task) -> Tensor:
    """What resample ablation puts in."""
    sources = forward.run(task.corrupt, keep=True).sources
    assert sources is not None
    return sources
