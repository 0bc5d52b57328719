"""The clean run as methods of nodes see it: every node's activation, its ablated value, its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.attribution.ends import Ends
from mechlab.models.forward import DecomposedForward, Stage


@dataclass(frozen=True)
class Gradients:
    """Gradients of the metric, per stage that reads, in order.

    Attributes:
        streams: at the stream before the norm, by all ways on.
        parts: at queries, keys and values ``[batch, pos, heads, d_head]`` or a normalised stream, flat.
        mixed: at every layer's mixed values ``[batch, pos, heads, d_head]``.
    """

    streams: tuple[Tensor, ...]
    parts: tuple[Tensor, ...]
    mixed: tuple[Tensor, ...]


class CleanRun:
    """A traced clean run, and how far every reader's activation is from its ablated value.

    Args:
        to_zero: readers' activations are ablated to zero, not to what they make of the ablated stream.

    Attributes:
        traces: the run's.
        parts: activations of readers, as in ``Gradients``.
        changes: how far each is from its ablated value.
    """

    def __init__(self, forward: DecomposedForward, ends: Ends, *, to_zero: bool) -> None:
        self.forward, self.ends = forward, ends
        streams: list[Tensor] = []

        def read(stage: Stage, stream: Tensor) -> Tensor:
            streams.append(stream)
            return stream

        x, positions = ends.high.detach().clone().requires_grad_(), ends.task.positions["end"]
        self._run = forward.run(x=x, positions=positions, read=read, trace=True)
        self._streams, self.traces = streams, self._run.traces
        self.parts = [part for trace in self.traces for part in trace.parts]
        self._mixed = [t.wrote for t in self.traces if t.stage.kind == "attention" and t.wrote is not None]
        with torch.no_grad():
            self.changes = list(self.parts)
            if not to_zero:
                ablated = [
                    part
                    for trace in self.traces
                    for part in forward.parts(
                        trace.stage, trace.x - ends.difference[: trace.stage.upstream].sum(0)
                    )
                ]
                self.changes = [part - other for part, other in zip(self.parts, ablated, strict=True)]

    def gradients(self, *, retain: bool = False) -> Gradients:
        """One backward pass; ``retain`` keeps the graph for another."""
        at = [*self._streams, *self.parts, *self._mixed]
        found = self.ends.gradients(self._run, at, retain=retain)
        first, last = len(self._streams), len(self._streams) + len(self.parts)
        return Gradients(tuple(found[:first]), tuple(found[first:last]), tuple(found[last:]))

    @torch.no_grad()
    def linear(self, gradients: Gradients) -> Float[Tensor, "node batch"]:
        """(a − a_ablated) · ∂m/∂a per prompt, of all sources and then all readers."""
        found = []
        for row, change in enumerate(self.ends.difference):
            # A source's gradient is that of the first stream it is in.
            place = next(i for i, trace in enumerate(self.traces) if trace.stage.upstream > row)
            found.append((change * gradients.streams[place]).sum((1, 2))[None])
        for change, gradient in zip(self.changes, gradients.parts, strict=True):
            found.append(per_head(change * gradient))
        return torch.cat(found)


def per_head(values: Float[Tensor, "batch pos *reader d"]) -> Float[Tensor, "reader batch"]:
    """Sums over positions and coordinates; one row where there are no heads."""
    summed = values.sum((1, -1))
    return summed[None] if summed.ndim == 1 else summed.T
