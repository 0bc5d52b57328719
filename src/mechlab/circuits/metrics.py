"""Metrics of a behaviour, one value per prompt, larger where the model does it more.

A metric is ``(logits, task, clean) -> values``: ``clean`` holds the model's own logits on the clean
prompts, which metrics of agreement with the model compare with. Where a task reads several positions
the value of a prompt is the mean over them.

Logits of half precision are read in single precision: a divergence summed over a vocabulary in bfloat16
is noise.

Agreement is largest, and flat, at the clean run: its gradient there is zero, so attribution at the
clean point needs a metric of the task (Syed et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.weights import at_least_single

Metric = Callable[[Tensor, Task, Tensor], Tensor]


def logit_difference(
    logits: Float[Tensor, "n *read d_vocab"], task: Task, clean: Float[Tensor, "n *read d_vocab"]
) -> Float[Tensor, "n"]:
    """Logit of the right answer minus that of the wrong one (nats; Wang et al. 2022)."""
    pair = torch.stack([task.answers, task.wrong], -1)
    right, wrong = at_least_single(logits.gather(-1, pair)).unbind(-1)
    return _per_prompt(right - wrong)


def log_probability(
    logits: Float[Tensor, "n *read d_vocab"], task: Task, clean: Float[Tensor, "n *read d_vocab"]
) -> Float[Tensor, "n"]:
    """Log-probability of the right answer (nats)."""
    return _per_prompt(at_least_single(logits).log_softmax(-1).gather(-1, task.answers[..., None])[..., 0])


def accuracy(
    logits: Float[Tensor, "n *read d_vocab"], task: Task, clean: Float[Tensor, "n *read d_vocab"]
) -> Float[Tensor, "n"]:
    """1 where the right answer has a higher logit than the wrong one, else 0. Has no gradient."""
    pair = torch.stack([task.answers, task.wrong], -1)
    right, wrong = logits.gather(-1, pair).unbind(-1)
    return _per_prompt(at_least_single((right > wrong).to(logits.dtype)))


def probability_difference(
    logits: Float[Tensor, "n d_vocab"], task: Task, clean: Float[Tensor, "n d_vocab"]
) -> Float[Tensor, "n"]:
    """Probability of all right answers minus that of all wrong ones (Hanna et al. 2023, greater-than).

    Raises MechlabError when the task has no answer sets.
    """
    if task.answer_sets is None:
        raise MechlabError("task has no answer sets", task.name, "use logit_difference")
    right, wrong = task.answer_sets
    # A model's vocabulary may be padded beyond the tokenizer's, or lack tokens added to it.
    width = min(logits.shape[1], right.shape[1])
    probability = at_least_single(logits).softmax(-1)[:, :width]
    return (probability * right[:, :width]).sum(-1) - (probability * wrong[:, :width]).sum(-1)


def negative_kl(
    logits: Float[Tensor, "n *read d_vocab"], task: Task, clean: Float[Tensor, "n *read d_vocab"]
) -> Float[Tensor, "n"]:
    """Minus KL(p_clean ‖ p), summed over the vocabulary (nats; the direction of Conmy et al. 2023)."""
    own, model = at_least_single(logits).log_softmax(-1), at_least_single(clean).log_softmax(-1)
    return -_per_prompt((model.exp() * (model - own)).sum(-1))


def negative_l2(
    logits: Float[Tensor, "n *read d_vocab"], task: Task, clean: Float[Tensor, "n *read d_vocab"]
) -> Float[Tensor, "n"]:
    """Minus the squared distance of the outputs from the model's own, summed over the vocabulary.

    For outputs that are no distribution, such as those of compiled models.
    """
    return -_per_prompt((at_least_single(logits) - at_least_single(clean)).pow(2).sum(-1))


def _per_prompt(values: Float[Tensor, "n *read"]) -> Float[Tensor, "n"]:
    return values if values.ndim == 1 else values.flatten(1).mean(1)


METRICS: dict[str, Metric] = {
    "logit_difference": logit_difference,
    "probability_difference": probability_difference,
    "log_probability": log_probability,
    "accuracy": accuracy,
    "negative_kl": negative_kl,
    "negative_l2": negative_l2,
}


def default_metric(task: Task) -> str:
    """Name of the metric a task is read with: probability difference where it has answer sets."""
    return "logit_difference" if task.answer_sets is None else "probability_difference"


def metric_named(name: str) -> Metric:
    """The metric called ``name``; MechlabError offers near names when there is none."""
    if name not in METRICS:
        raise MechlabError("unknown metric", name, near(name, METRICS))
    return METRICS[name]
