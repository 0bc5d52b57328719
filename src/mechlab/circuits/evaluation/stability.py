"""Is it the same circuit when the prompts, or the seed, are others?

Circuits found on resampled prompts are compared pairwise by Jaccard index (shared edges over all
edges of both). Méloux et al. (2025, *Mechanistic interpretability as statistical estimation: a variance
analysis of EAP-IG*) find low figures in published settings, so report them beside a circuit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.circuits.evaluate import random_circuits
from mechlab.circuits.graph import Graph
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.scores import LEVEL, Score, ratio

_RESAMPLES = 2000


def jaccard(left: Bool[Tensor, "n_sources n_readers"], right: Bool[Tensor, "n_sources n_readers"]) -> float:
    """Shared edges over all edges of two circuits; 1 when both are empty."""
    either = int((left | right).sum())
    return int((left & right).sum()) / either if either else 1.0


def stability(graph: Graph, masks: Bool[Tensor, "circuit n_sources n_readers"], *, seed: int = 0) -> Score:
    """Mean pairwise Jaccard index of circuits that should be the same.

    The interval resamples circuits (pairs share circuits, so they are no units). The null is the
    same for random connected circuits of the same sizes. Raises MechlabError for fewer than two.
    """
    if len(masks) < 2:
        raise MechlabError(
            "stability needs at least two circuits", len(masks), "find it again on other prompts"
        )
    masks = masks.cpu() & graph.real
    drawn = [random_circuits(graph, int(m.sum()), 1, seed + i)[0] for i, m in enumerate(masks)]
    null = _pairwise("stability of random circuits", torch.stack(drawn), seed, None)
    return _pairwise("stability", masks, seed, null)


def _pairwise(
    name: str, masks: Bool[Tensor, "circuit n_sources n_readers"], seed: int, null: Score | None
) -> Score:
    flat = masks.flatten(1).double()
    shared = (flat @ flat.T).numpy()
    sizes = np.diag(shared)
    either = sizes[:, None] + sizes[None] - shared
    index = np.divide(shared, either, out=np.ones_like(shared), where=either > 0)
    n = len(masks)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
    values = _mean(index, draws)
    values = values[np.isfinite(values)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, (tail, 1 - tail)) if n > 2 else (np.nan, np.nan)
    return Score(name, float(_mean(index, np.ones((1, n)))[0]), float(low), float(high), n, null)


def _mean(
    index: Float[np.ndarray, "circuit circuit"], weights: Float[np.ndarray, "draw circuit"]
) -> Float[np.ndarray, "draw"]:
    """Mean over pairs of different circuits, each circuit counted as often as it was drawn."""
    off = index - np.diag(np.diag(index))
    pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    return ratio(((weights @ off) * weights).sum(1), pairs)


def resampled(task: Task, times: int, seed: int = 0) -> Iterator[Task]:
    """The task with its prompts drawn again, with replacement, ``times`` times."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        yield rows_of(task, torch.randint(len(task), (len(task),), generator=generator))


def rows_of(task: Task, rows: Int[Tensor, "row"]) -> Task:
    """Some prompts of a task, in the order given; one may be there several times."""
    parts = {
        name: getattr(task, name)[rows]
        for name in ("clean", "corrupt", "answers", "wrong", "right_set", "wrong_set", "groups")
        if getattr(task, name) is not None
    }
    return replace(
        task,
        positions={name: index[rows] for name, index in task.positions.items()},
        prompts=tuple(task.prompts[i] for i in rows.tolist()),
        corrupt_prompts=tuple(task.corrupt_prompts[i] for i in rows.tolist()),
        **parts,
    )
