"""What Fable can do, measured on held-out prompts against the bars it must clear."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.data.tasks import Task, make_task_lengths
from mechlab.scores import mean, score, wilson


class Check(TypedDict):
    """One behaviour's result. ``low`` and ``high`` bound the 95 % interval; ``n`` counts prompts."""

    metric: str
    value: float
    bar: float
    passed: bool
    n: int
    low: float
    high: float


Metric = Callable[[Float[Tensor, "n d_vocab"], Task], Float[Tensor, "n"]]


def right_above_wrong(logits: Float[Tensor, "n d_vocab"], task: Task) -> Float[Tensor, "n"]:
    """1 where the right answer's logit is above its contrast's, else 0."""
    return (_pick(logits, task.answers) > _pick(logits, task.wrong)).float()


def top_1(logits: Float[Tensor, "n d_vocab"], task: Task) -> Float[Tensor, "n"]:
    """1 where the right answer has the largest logit of the whole vocabulary, else 0."""
    return (logits.argmax(dim=-1) == task.answers.to(logits.device)).float()


def probability_difference(logits: Float[Tensor, "n d_vocab"], task: Task) -> Float[Tensor, "n"]:
    """Probability of the right set of answers less that of the wrong set, in -1 to 1.

    Hanna et al. 2023, "How does GPT-2 compute greater-than?". The task must have answer sets.
    """
    sets = task.answer_sets
    assert sets is not None, "only greater_than has answer sets"
    right, wrong = (_fit(mask, logits) for mask in sets)
    probability = logits.softmax(dim=-1)
    return (probability * right).sum(-1) - (probability * wrong).sum(-1)


BARS: dict[str, tuple[str, Metric, float]] = {
    "ioi": ("ioi", right_above_wrong, 0.95),
    "ioi_top_1": ("ioi", top_1, 0.9),
    "pronouns": ("pronouns", right_above_wrong, 0.95),
    "successor": ("successor", top_1, 0.95),
    "facts": ("facts", top_1, 0.95),
    "greater_than": ("greater_than", probability_difference, 0.8),
    "induction": ("induction", top_1, 0.9),
    "agreement": ("agreement", right_above_wrong, 0.9),
    "closing": ("closing", top_1, 0.95),
    "translation": ("translation", top_1, 0.9),
}
"""Check name -> (task, metric, the least value that passes)."""


def check_fable(model: Any, tokenizer: Any, *, n: int = 200, seed: int = 0) -> dict[str, Check]:
    """Measure every behaviour on prompts whose combinations training never shows.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer.
        n: prompts per behaviour and prompt length; every length of a behaviour counts, so that
            every template does. A behaviour with fewer held-out prompts uses all that a draw finds.
        seed: of the prompts.

    Returns:
        Check name -> value, bar, whether it passed, number of prompts and 95 % interval (Wilson for
        accuracies, bootstrap for the probability difference).

    Raises:
        MechlabError: the tokenizer cannot express a task.
    """
    results: dict[str, Check] = {}
    for task_name in dict.fromkeys(task for task, _, _ in BARS.values()):
        tasks = make_task_lengths(task_name, tokenizer, n=n, seed=seed)
        logits = [end_logits(model, task.clean) for task in tasks]
        for name, (wanted, metric, bar) in BARS.items():
            if wanted == task_name:
                values = torch.cat([metric(at_end, task) for at_end, task in zip(logits, tasks, strict=True)])
                results[name] = _check(name, metric, values, bar)
    return {name: results[name] for name in BARS}


def end_logits(model: Any, prompts: Int[Tensor, "n pos"]) -> Float[Tensor, "n d_vocab"]:
    """The model's float32 logits after each prompt's last token, on the model's device."""
    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        rows = [model(input_ids=part.to(device)).logits[:, -1] for part in torch.split(prompts, 256)]
    return torch.cat(rows).float()


def _check(name: str, metric: Metric, values: Float[Tensor, "n"], bar: float) -> Check:
    value, count = float(values.mean()), len(values)
    if metric is probability_difference:
        column = values.double().cpu().numpy()
        found = score(name, np.stack((column, np.ones_like(column)), axis=1), mean)
        low, high = found.low, found.high
    else:
        low, high = wilson(int(values.sum()), count)
    return Check(
        metric=metric.__name__,
        value=value,
        bar=bar,
        passed=bool(math.isfinite(value) and value >= bar),
        n=count,
        # Rounding may put a bound a hair inside the value at 0 or 1.
        low=min(float(low), value),
        high=max(float(high), value),
    )


def _pick(logits: Float[Tensor, "n d_vocab"], token: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    return logits.gather(1, token.to(logits.device)[:, None])[:, 0]


def _fit(mask: Bool[Tensor, "n d_token"], logits: Float[Tensor, "n d_vocab"]) -> Float[Tensor, "n d_vocab"]:
    # Some models pad their embedding beyond the tokenizer's vocabulary; others lack tokens added to it.
    width = min(mask.shape[1], logits.shape[1])
    fitted = torch.zeros_like(logits)
    fitted[:, :width] = mask[:, :width].to(logits)
    return fitted
