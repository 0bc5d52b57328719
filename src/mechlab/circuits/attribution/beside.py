"""A run with gradient and one without, as one: products of twice the rows take less than twice the time."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.models.forward import DecomposedForward, Run, Trace, gathered


def run_beside(
    forward: DecomposedForward,
    x: Float[Tensor, "batch pos d_model"],
    rest: Float[Tensor, "batch pos d_model"],
    positions: Int[Tensor, "batch *read"],
    *,
    narrow: bool,
) -> tuple[Run, list[Tensor]]:
    """The run of ``x`` as ``forward.run(trace=True, leaves=True)`` makes it, and what ``rest`` wrote.

    Args:
        x, rest: outputs of "embed" of two batches.
        narrow: see ``DecomposedForward.run``.

    Returns the traced run, and for every stage but the logits the other batch's ``Trace.wrote``.
    """
    n, both = len(x), torch.cat([x, rest]).detach()
    entry, traces, written, where = both, [], [], None
    for stage in forward.shape.stages[1:-1]:
        if stage.kind == "attention":
            entry = both
        stream = entry if stage.kind == "mlp" and forward.shape.parallel else both
        with torch.no_grad():
            found = forward.parts(stage, stream)
        parts, others = tuple(part[:n].requires_grad_() for part in found), [part[n:] for part in found]
        if stage.kind == "attention":
            attention = forward.attentions[stage.layer]
            wrote = forward.attend(attention, *parts)
            with torch.no_grad():
                other = forward.attend(attention, *others)
                mixed = torch.cat([wrote.detach(), other]).flatten(2)
                added = mixed @ attention.output.flatten(0, 1)
            if attention.output_bias is not None:
                added += attention.output_bias
        else:
            wrote, other = forward.mlp_beside(stage.layer, parts[0], others[0])
            added = torch.cat([wrote.detach(), other])
        traces.append(Trace(stage, stream[:n], parts, wrote, where))
        written.append(other)
        both = both + added
        if narrow and stage == forward.shape.stages[-3]:
            where = positions.reshape(n, -1)
            both, entry = (gathered(each, where.repeat(2, 1)) for each in (both, entry))
    at = None if narrow else positions
    end = forward.run(x=both[:n], start=forward.shape.n_layers, positions=at, trace=True, leaves=True)
    assert end.logits is not None
    logits = end.logits[:, 0] if narrow and positions.ndim == 1 else end.logits
    return Run(both[:n], logits, None, (*traces, replace(end.traces[0], positions=where))), written
