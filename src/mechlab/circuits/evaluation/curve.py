"""Faithfulness over circuit sizes: CPR and CMD of the Mechanistic Interpretability Benchmark.

Mueller et al. (2025, *MIB: a mechanistic interpretability benchmark*): circuits of .001, .002, … 1 of
the model's edges are taken by score, cleaned up (under resample ablation, pruned to edges on a path from
"embed" to the logits), and their faithfulness f is joined by straight lines over [.001, 1]:

    CPR = ∫ f         edges by falling score: the larger the better; f above 1 is rewarded
    CMD = ∫ |1 − f|   edges by falling |score|: the smaller the better; any difference counts

The area starts at .001, not at 0, so a circuit that is perfect at every size has CPR .999. Sizes are
rounded down, and count edges before pruning; both counts are reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechlab import scores as scoring
from mechlab.circuits.ablation import Ablation
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.graph import Graph
from mechlab.circuits.runs import BATCH_SIZE
from mechlab.circuits.search.found import clean_up
from mechlab.circuits.search.prune import top_edges
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward
from mechlab.scores import Score

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class ShareAt:
    """Faithfulness of one circuit size.

    Attributes:
        share: of the model's edges; n_top: that many edges; n_edges: those left after pruning.
    """

    share: float
    n_top: int
    n_edges: int
    faithfulness: float


@dataclass(frozen=True)
class Curve:
    """Faithfulness over the grid of sizes, and the area, with an interval over prompts."""

    points: tuple[ShareAt, ...]
    area: Score


def size_curves(
    forward: DecomposedForward,
    task: Task,
    scores: Float[Tensor, "n_sources n_readers"],
    *,
    metric: str | None = None,
    ablation: Ablation | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> tuple[Curve, Curve]:
    """The curves behind CPR and CMD, in that order: ten circuits each.

    Ties in score go to earlier sources, then earlier readers. Raises MechlabError for an unknown metric.
    """
    graph = Graph(forward.shape)
    sizes = [int(share * graph.n_edges) for share in SHARES]
    kind = "resample" if ablation is None else ablation.kind
    masks = torch.stack(
        [
            clean_up(graph, top_edges(graph, scores, n, signed=signed), kind)
            for signed in (True, False)
            for n in sizes
        ]
    )
    values, whole, empty = run_circuits(
        forward, task, masks, metric=metric, ablation=ablation, batch_size=batch_size
    )
    kept, gap = (values - empty).double().numpy(), (whole - empty).double().numpy()
    found = []
    for part, (name, statistic) in enumerate((("CPR", _cpr), ("CMD", _cmd))):
        rows = slice(part * len(sizes), (part + 1) * len(sizes))
        sums = np.concatenate([kept[rows].T, gap[:, None]], 1)
        area = scoring.score(name, sums, statistic, seed=seed)
        points = tuple(
            ShareAt(share, n, int(mask.sum()), float(value))
            for share, n, mask, value in zip(
                SHARES, sizes, masks[rows], kept[rows].sum(1) / gap.sum(), strict=True
            )
        )
        found.append(Curve(points, area))
    return found[0], found[1]


def _cpr(totals: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, "resample"]:
    """Area under faithfulness, from totals of what every size keeps and of the gap."""
    return _area(_faithfulness(totals))


def _cmd(totals: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, "resample"]:
    """Area between faithfulness and 1."""
    return _area(np.abs(1 - _faithfulness(totals)))


def _faithfulness(totals: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, "resample size"]:
    return scoring.ratio(totals[:, :-1], np.broadcast_to(totals[:, -1:], totals[:, :-1].shape))


def _area(heights: Float[np.ndarray, "resample size"]) -> Float[np.ndarray, "resample"]:
    area: np.ndarray = np.trapezoid(heights, np.array(SHARES), axis=1)
    return area
