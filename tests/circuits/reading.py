"""Reading logits in the circuit tests."""

from __future__ import annotations

from torch import Tensor

from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.runs import End
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward


def difference(logits: Tensor, task: Task) -> Tensor:
    """The logit difference, which needs no clean logits."""
    return logit_difference(logits, task, logits)


def masked_logits(
    forward: DecomposedForward, base: End, other: Tensor, masks: Tensor, ends: Tensor
) -> Tensor:
    """Logits of circuits, for tests that ask once of a batch."""
    return Masked(forward, base, other, ends).logits(masks)


def soft_logits(forward: DecomposedForward, base: End, other: Tensor, mask: Tensor, ends: Tensor) -> Tensor:
    """Logits of one circuit with edges present in part."""
    return Masked(forward, base, other, ends).soft(mask)
