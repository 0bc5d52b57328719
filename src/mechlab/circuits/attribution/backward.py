"""The backward pass, stage by stage.

All heads read one normalised stream, so the gradient that goes on to earlier layers is the sum over
readers of what attribution wants apart: each reader's own gradient at the stream. Walking back by hand
computes it once; only within attention and MLPs is it left to autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Run, Trace, scattered


@dataclass(frozen=True)
class Step:
    """One stage on the way back.

    Attributes:
        trace: its record; where that has ``positions``, gradients are at these alone.
        after: gradient at the stream that holds the stage's outputs; None for the logits.
        wrote: gradient at ``trace.wrote``; None for the logits.
        parts: gradients at ``trace.parts``.
        pulled: gradient at the stream that each reader of the stage reads, through that reader alone.
        before: gradient at the stream that the stage reads, through all that follows. (Of an MLP beside
            attention: but for that attention.)
    """

    trace: Trace
    after: Float[Tensor, "batch pos d_model"] | None
    wrote: Tensor | None
    parts: tuple[Tensor, ...]
    pulled: Float[Tensor, "reader batch pos d_model"]
    before: Float[Tensor, "batch pos d_model"]


def walk_back(
    forward: DecomposedForward, run: Run, total: Float[Tensor, ""], *, held: int = -1, retain: bool = False
) -> Iterator[Step]:
    """The stages of a run from the last to the first, with the gradients of ``total`` there.

    Args:
        run: made with ``trace`` and ``leaves``.
        held: a layer whose outputs count as constants; none when -1.
        retain: the same run will be walked again.

    Raises MechlabError when ``total`` does not depend on the logits smoothly.
    """
    if not total.requires_grad:
        raise MechlabError("metric has no gradient", float(total), "use logit_difference")
    after: Tensor | None = None
    beside: Tensor | None = None
    narrow: Tensor | None = None
    for trace in reversed(run.traces):
        stage, wrote = trace.stage, None
        if narrow is not None and trace.positions is None:
            n_pos = trace.x.shape[1]
            after = None if after is None else scattered(after, narrow, n_pos)
            beside = None if beside is None else scattered(beside, narrow, n_pos)
        narrow = trace.positions
        if after is None:
            parts = torch.autograd.grad(total, trace.parts, retain_graph=retain)
        else:
            assert trace.wrote is not None
            wrote = after
            if stage.kind == "attention":
                output = forward.attentions[stage.layer].output.flatten(0, 1)
                wrote = (after @ output.T).view_as(trace.wrote)
            if stage.layer == held:
                wrote = torch.zeros_like(wrote)
            parts = torch.autograd.grad(trace.wrote, trace.parts, wrote, retain_graph=retain)
        pulled = forward.pull_back(trace, parts)
        before = pulled.sum(0) if after is None else after + pulled.sum(0)
        if beside is not None:
            before, beside = before + beside, None
        yield Step(trace, after, wrote, parts, pulled, before)
        if stage.kind == "mlp" and forward.shape.parallel:
            # It reads the stream before its layer's attention, which must not see its gradient.
            beside = pulled.sum(0)
        else:
            after = before
