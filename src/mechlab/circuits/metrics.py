"""Metrics of a behaviour, one value per prompt, larger where the model does it more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near


def logit_difference(logits: Float[Tensor, "n d_vocab"], task: Task) -> Float[Tensor, "n"]:
    """Logit of the right answer minus that of the wrong one (nats; Wang et al. 2022)."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, task.answers] - logits[rows, task.wrong]


def probability_difference(logits: Float[Tensor, "n d_vocab"], task: Task) -> Float[Tensor, "n"]:
    """Probability of all right answers minus that of all wrong ones (Hanna et al. 2023, greater-than).

    Raises MechlabError when the task has no answer sets.
    """
    if task.answer_sets is None:
        raise MechlabError("task has no answer sets", task.name, "use logit_difference")
    right, wrong = task.answer_sets
    # A model's vocabulary may be padded beyond the tokenizer's, or lack tokens added to it.
    width = min(logits.shape[1], right.shape[1])
    probability = logits.softmax(-1)[:, :width]
    return (probability * right[:, :width]).sum(-1) - (probability * wrong[:, :width]).sum(-1)


Metric = Callable[[Tensor, Task], Tensor]
METRICS: dict[str, Metric] = {
    "logit_difference": logit_difference,
    "probability_difference": probability_difference,
}


def default_metric(task: Task) -> str:
    """Name of the metric a task is read with: probability difference where it has answer sets."""
    return "logit_difference" if task.answer_sets is None else "probability_difference"


def metric_named(name: str) -> Metric:
    """The metric called ``name``; MechlabError offers near names when there is none."""
    if name not in METRICS:
        raise MechlabError("unknown metric", name, near(name, METRICS))
    return METRICS[name]
