"""The clean run as methods of nodes see it: every node's activation, its ablated value, its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.attribution.backward import Step, walk_back
from mechlab.circuits.attribution.ends import Ends
from mechlab.models.forward import DecomposedForward


class CleanRun:
    """A clean run, and how far every reader's activation is from its ablated value.

    Args:
        to_zero: readers' activations are ablated to zero, not to what they make of the ablated stream.

    Attributes:
        traces: the run's.
        changes: activation minus ablated activation, per trace and part of it.
    """

    def __init__(self, forward: DecomposedForward, ends: Ends, *, to_zero: bool) -> None:
        self.forward, self.ends, self._run = forward, ends, ends.traced((1.0,))
        self.traces = self._run.traces
        with torch.no_grad():
            self.changes = [
                tuple(part.detach() for part in trace.parts)
                if to_zero
                else tuple(
                    part - ablated
                    for part, ablated in zip(
                        trace.parts,
                        forward.parts(trace.stage, trace.x - ends.difference[: trace.stage.upstream].sum(0)),
                        strict=True,
                    )
                )
                for trace in self.traces
            ]

    def scores(
        self,
        *,
        held: int = -1,
        retain: bool = False,
        attention: Callable[[Step, int], tuple[Tensor, Tensor]] | None = None,
    ) -> Float[Tensor, "node batch"]:
        """(a − a_ablated) · ∂m/∂a per prompt, of all sources and then all readers.

        Args:
            held, retain: see ``walk_back``.
            attention: scores of a stage's queries and keys in place of these, given the step and the
                number of its trace.
        """
        shape, difference = self.forward.shape, self.ends.difference
        found = difference.new_zeros(shape.n_sources + shape.n_readers, len(self.ends.task))
        sources, readers = found[: shape.n_sources], found[shape.n_sources :]
        total = self.ends.total(self._run)
        for back, step in enumerate(walk_back(self.forward, self._run, total, held=held, retain=retain)):
            stage, number = step.trace.stage, len(self.traces) - 1 - back
            parts = [per_head(c * g) for c, g in zip(self.changes[number], step.parts, strict=True)]
            if attention is not None and stage.kind == "attention":
                parts[:2] = attention(step, number)
            readers[stage.readers] = torch.cat(parts)
            if step.after is not None:
                sources[stage.writes] = (difference[stage.writes] * step.after).sum((2, 3))
            if number == 0:
                sources[0] = (difference[0] * step.before).sum((1, 2))
        return found


def per_head(values: Float[Tensor, "batch pos *reader d"]) -> Float[Tensor, "reader batch"]:
    """Sums over positions and coordinates; one row where there are no heads."""
    summed = values.sum((1, -1))
    return summed[None] if summed.ndim == 1 else summed.T
