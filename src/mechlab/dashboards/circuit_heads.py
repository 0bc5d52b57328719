"""What the heads of a circuit do on prompts: attention, and direct contributions to the logits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab import scores
from mechlab.circuits.graph import Graph
from mechlab.circuits.weights.attention import attention_patterns
from mechlab.circuits.weights.direct import direct_logits
from mechlab.dashboards.block_values import score_value, short
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject

PATTERNS, CONTEXTS, TOKENS = 3, 4, 8
_LEAST = 0.02
"""Attention below this is left out of contexts."""


@dataclass(frozen=True)
class NodePanels:
    """What can be shown of nodes once they have run on prompts.

    Attributes:
        strings: texts of the prompts' tokens, each once.
        prompts: the prompts whose attention patterns are kept: numbers of ``strings``.
        nodes: name → its panel, plain JSON values:
            direct: direct contribution to the logit difference, mean and interval over prompts.
            patterns: of heads, one per prompt kept: attention in percent, row by row, each row as far
                as it can see.
            places: of heads, mean attention from where the answer is read to the task's named words.
            tokens: of heads, the texts that receive most attention from there: number of the text, mean
                attention in prompts that hold it, how many these are.
            contexts: of heads, prompts in which they attend anywhere furthest above uniform attention, to
                another token than the first and their own: place attended from, places attended to.
    """

    strings: list[str]
    prompts: list[list[int]]
    nodes: dict[str, dict[str, Any]]


def node_panels(
    subject: Subject,
    task: Task,
    names: Collection[str],
    *,
    patterns: int = PATTERNS,
    contexts: int = CONTEXTS,
) -> NodePanels:
    """Run the clean prompts of a task and look at the nodes of these names.

    Args:
        task: prompts; all of them count for means, the first ``patterns`` show their attention.
        contexts: prompts shown per head for its strongest attention.

    Raises MechlabError for a model without a decomposed forward.
    """
    forward = DecomposedForward(subject.module)
    graph = Graph(forward.shape)
    ids, numbers = torch.unique(task.clean, return_inverse=True)
    strings = [subject.token_text(token) for token in ids.tolist()]
    direct = direct_logits(subject.module, task).sources.double().numpy()
    nodes: dict[str, dict[str, Any]] = {
        name: {"direct": _direct(direct[row])} for row, name in enumerate(graph.sources) if name in names
    }
    causal = forward.attentions[0].causal
    for layer, heads in enumerate(attention_patterns(forward, task.clean)):
        for head in range(heads.shape[1]):
            name = f"a{layer}.h{head}"
            if name in names:
                pattern = heads[:, head].float().cpu()
                nodes[name] |= {
                    "patterns": [_percent(each, causal) for each in pattern[:patterns]],
                    "places": _places(pattern, task),
                    "tokens": _attended(pattern, task, numbers, strings),
                    "contexts": _contexts(pattern, numbers, contexts, causal),
                }
    return NodePanels(strings, numbers[:patterns].tolist(), nodes)


def _direct(values: Float[np.ndarray, "n"]) -> dict[str, Any]:
    sums = np.stack([values, np.ones_like(values)], 1)
    return score_value(scores.score("direct contribution", sums, scores.mean))


def _percent(pattern: Float[Tensor, "pos key"], causal: bool) -> list[list[int]]:
    """Whole percent; a causal head's rows end at their own position."""
    rows = (100 * pattern).round().int().tolist()
    return [row[: at + 1] if causal else row for at, row in enumerate(rows)]


def _read(pattern: Float[Tensor, "n pos key"], task: Task) -> Float[Tensor, "n key"]:
    """Attention from where the answer is read, mean over places where there are several."""
    ends = task.positions["end"].cpu()
    ends = ends[:, None] if ends.ndim == 1 else ends
    return pattern[torch.arange(len(pattern))[:, None], ends].mean(1)


def _places(pattern: Float[Tensor, "n pos key"], task: Task) -> list[list[Any]]:
    read = _read(pattern, task)
    named = {name: at.cpu() for name, at in task.positions.items() if name != "end" and at.ndim == 1}
    found = [(name, float(read.gather(1, at[:, None]).mean())) for name, at in named.items()]
    return [[name, short(share)] for name, share in sorted(found, key=lambda each: -each[1])]


def _attended(
    pattern: Float[Tensor, "n pos key"], task: Task, numbers: Int[Tensor, "n pos"], strings: list[str]
) -> list[list[Any]]:
    """(number of the text, mean attention in prompts that hold it, how many these are), by their product."""
    read = _read(pattern, task)
    total = torch.zeros(len(strings)).index_add(0, numbers.flatten(), read.flatten())
    holds = torch.zeros(len(read), len(strings)).scatter(1, numbers, 1.0).sum(0)
    best = total.argsort(descending=True, stable=True)[:TOKENS].tolist()
    return [
        [number, short(float(total[number] / holds[number])), int(holds[number])]
        for number in best
        if total[number] > 0
    ]


def _contexts(
    pattern: Float[Tensor, "n pos key"], numbers: Int[Tensor, "n pos"], count: int, causal: bool
) -> list[dict[str, Any]]:
    n_pos = pattern.shape[1]
    visible = torch.arange(1, n_pos + 1) if causal else torch.full((n_pos,), n_pos)
    excess = pattern - 1 / visible[:, None]
    excess[:, :, 0] = -1  # where a head attends when it has nothing to do
    excess.diagonal(dim1=1, dim2=2).fill_(-1)
    strongest, at = excess.flatten(1).max(1)
    found: list[dict[str, Any]] = []
    for prompt in strongest.argsort(descending=True, stable=True).tolist():
        tokens = numbers[prompt].tolist()
        if len(found) == count or strongest[prompt] < _LEAST:
            break
        query = int(at[prompt]) // n_pos
        row = pattern[prompt, query]
        seen = [[key, short(float(row[key]))] for key in (row >= _LEAST).nonzero().flatten().tolist()]
        if all(each["t"] != tokens for each in found):
            found.append({"d": prompt, "c": query, "t": tokens, "a": seen})
    return found
