"""Reading logits in the circuit tests."""

from __future__ import annotations

from torch import Tensor

from mechlab.circuits.metrics import logit_difference
from mechlab.data.tasks import Task


def difference(logits: Tensor, task: Task) -> Tensor:
    """The logit difference, which needs no clean logits."""
    return logit_difference(logits, task, logits)
