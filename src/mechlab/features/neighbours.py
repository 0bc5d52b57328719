"""Features that are active together, and features that write alike.

With n rows, of which feature f is active on n_f and f and g together on n_fg:

    jaccard   n_fg / (n_f + n_g − n_fg)
    lift      n_fg · n / (n_f · n_g): how many times as often together as independent features would be
    pmi       log lift (pointwise mutual information in nats; Church & Hanks 1990)

Joint counts are made for one feature at a time, from its rows and the features there: never all pairs
in memory. Cosines of decoder rows are products of blocks, of which only the largest are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from mechlab.errors import MechlabError, near
from mechlab.features.index import FeatureIndex
from mechlab.features.pairing import by_row, most_together
from mechlab.scores import Score, mean, score
from mechlab_kernels.threads import torch_threads

MEASURES = ("jaccard", "lift", "pmi")
_NULL_ROWS = 256


@dataclass(frozen=True, eq=False)
class CoOccurring:
    """For every feature the features it is most often active together with.

    Attributes:
        feature: nearest first; −1 where there are no more.
        value: the measure; 0 there.
        expected: what the measure would be of independent features as dense as these: chance.
        together: rows on which both are active.
        n_rows: rows that were counted.
    """

    feature: Int64[np.ndarray, "feature top"]
    value: Float64[np.ndarray, "feature top"]
    expected: Float64[np.ndarray, "feature top"]
    together: Int64[np.ndarray, "feature top"]
    n_rows: int

    def lists(self) -> dict[int, list[int]]:
        """Feature → its neighbours, nearest first."""
        return {at: [each for each in row if each >= 0] for at, row in enumerate(self.feature.tolist())}


def co_occurring(
    index: FeatureIndex,
    *,
    top: int = 10,
    measure: str = "jaccard",
    fewest: int = 2,
    rows: int | None = 1_000_000,
    seed: int = 0,
) -> CoOccurring:
    """The ``top`` co-occurring features of every feature.

    Args:
        measure: "jaccard", "lift" or "pmi".
        fewest: pairs together on fewer rows are left out: lift and pmi are largest where counts are
            smallest.
        rows: rows to count on, drawn without replacement; None takes all.

    Equal values are ordered by feature. Raises MechlabError for settings out of range.
    """
    if measure not in MEASURES:
        raise MechlabError("unknown measure", measure, near(measure, MEASURES))
    if top < 1 or fewest < 1 or (rows is not None and rows < 1):
        raise MechlabError("numbers must be positive", (top, fewest, rows), "at least 1 each")
    indptr, row, n = _sampled(index, rows, seed)
    with torch_threads():
        starts, there = by_row(indptr, row, n)
        feature, together = most_together(indptr, row, starts, there, top, fewest, measure == "jaccard")
    counts = np.diff(indptr).astype(np.float64)
    f, slot = np.nonzero(feature >= 0)
    g, joint = feature[f, slot], together[f, slot].astype(np.float64)
    value, expected = np.zeros(feature.shape), np.zeros(feature.shape)
    value[f, slot] = _measured(measure, joint, counts[f], counts[g], n)
    expected[f, slot] = _measured(measure, counts[f] * counts[g] / n, counts[f], counts[g], n)
    return CoOccurring(feature, value, expected, together, n)


def _sampled(
    index: FeatureIndex, rows: int | None, seed: int
) -> tuple[Int[np.ndarray, "feature_plus_1"], Int[np.ndarray, "entry"], int]:
    """The index's entries on rows drawn without replacement, those rows numbered from 0; how many."""
    n = len(index.text)
    row, indptr = np.asarray(index.row), np.asarray(index.indptr)
    if rows is None or rows >= n:
        return indptr, row, n
    keep = np.zeros(n, bool)
    keep[np.random.default_rng(seed).choice(n, rows, replace=False, shuffle=False)] = True
    here = keep[row]
    number = np.cumsum(keep, dtype=np.int32) - 1
    return np.concatenate([[0], np.cumsum(here)])[indptr], number[row[here]], rows


def _measured(
    measure: str,
    joint: Float64[np.ndarray, "pair"],
    left: Float64[np.ndarray, "pair"],
    right: Float64[np.ndarray, "pair"],
    n: int,
) -> Float64[np.ndarray, "pair"]:
    if measure == "jaccard":
        jaccard: np.ndarray = joint / (left + right - joint)
        return jaccard
    lift: np.ndarray = joint * n / (left * right)
    return lift if measure == "lift" else np.log(lift)


@dataclass(frozen=True, eq=False)
class Alike:
    """For every direction the directions with the largest cosine to it.

    Attributes:
        feature: nearest first.
        value: the cosine; 0 for directions of zeros.
        largest: mean over directions of the largest cosine, with random directions of the same number
            and dimension as its control.
    """

    feature: Int[Tensor, "feature top"]
    value: Float[Tensor, "feature top"]
    largest: Score


@torch.no_grad()
def alike(
    directions: Float[Tensor, "feature d"],
    *,
    top: int = 10,
    block: int = 1024,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Alike:
    """The ``top`` nearest directions (rows of W_dec, say) of each by cosine.

    Args:
        block: directions compared with all others at a time; memory is block × feature.
        dtype: of the product. bfloat16 is quicker on a GPU; cosines of what it finds are computed
            again in float32.

    Raises MechlabError when there are fewer than two directions.
    """
    if len(directions) < 2 or top < 1 or block < 1:
        raise MechlabError(
            "directions cannot be compared",
            (len(directions), top, block),
            "two or more, and top and block ≥ 1",
        )
    unit = _unit(directions)
    top = min(top, len(unit) - 1)
    feature, value = _nearest(unit, torch.arange(len(unit)), top, block, dtype)
    generator = np.random.default_rng(seed)
    drawn = torch.from_numpy(generator.standard_normal(directions.shape)).to(unit)
    sample = torch.arange(min(_NULL_ROWS, len(unit)))
    _, null = _nearest(_unit(drawn), sample, 1, block, dtype)
    control = _mean("largest cosine, random directions", null[:, 0], seed)
    return Alike(feature, value, _mean("largest cosine", value[:, 0], seed, control))


def _nearest(
    unit: Float[Tensor, "feature d"], which: Int[Tensor, "some"], top: int, block: int, dtype: torch.dtype
) -> tuple[Int[Tensor, "some top"], Float[Tensor, "some top"]]:
    features, values = [], []
    reduced = unit.to(dtype)
    for rows in torch.split(which.to(unit.device), block):
        cosine = reduced[rows] @ reduced.T
        cosine.scatter_(1, rows[:, None], -torch.inf)
        found = cosine.topk(top, dim=1).indices
        exact = torch.einsum("rd,rtd->rt", unit[rows], unit[found])
        order = exact.argsort(dim=1, descending=True, stable=True)
        features.append(found.gather(1, order).cpu())
        values.append(exact.gather(1, order).cpu())
    return torch.cat(features), torch.cat(values)


def _unit(rows: Float[Tensor, "feature d"]) -> Float[Tensor, "feature d"]:
    single = rows.detach().float()
    unit: Tensor = single / single.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit


def _mean(name: str, values: Float[Tensor, "feature"], seed: int, null: Score | None = None) -> Score:
    column = values.double().numpy()
    sums = np.stack([column, np.ones(len(column))], axis=1)
    return score(name, sums, mean, seed=seed, null=null)
