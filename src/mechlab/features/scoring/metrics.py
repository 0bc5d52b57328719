"""Measures of answers, with intervals that do not collapse to a point when every answer is right.

Windows of one class come from different documents, so that answers about them are independent
draws: their intervals are binomial. Tokens of one document are not, so shares of tokens have the
binomial interval of as many tokens as would vary alike between documents (the effective sample size).

Sources: Wilson (1927) for one proportion; Newcombe (1998), *Interval estimation for the difference
between independent proportions*, method 10 (square and add); Newcombe (2006), *Confidence intervals
for an effect size measure based on the Mann-Whitney statistic, part 2*, method 5 (AUROC); Donner &
Zou (2012), *Closed-form confidence intervals for functions of the normal mean and standard
deviation*, (MOVER-R, a ratio); Korn & Graubard (1998), *Confidence intervals for proportions with
small expected number of positive counts estimated from survey data* (effective sample size).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit  # type: ignore[import-untyped]

from mechlab.scores import LEVEL, Score, mean, score, wilson

CHANCE = 0.5
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
# Means over so many features are normal, and a bootstrap of them only takes long.
_MANY = 1000
# Of fewer a bootstrap knows too little: of 2 it held the truth in 49 % of trials, of 10 in 90 %.
_FEW = 20


def balanced_accuracy(
    name: str, yes: Bool[np.ndarray, "item"], label: Bool[np.ndarray, "item"], n: int
) -> Score:
    """(TP/P + TN/N) / 2, NaN when a class is absent; the interval joins Wilson's of either class."""
    right = int((yes & label).sum()), int((~yes & ~label).sum())
    of = int(label.sum()), int((~label).sum())
    value = below = above = 0.0
    for correct, count in zip(right, of, strict=True):
        low, high = wilson(correct, count)
        share = correct / count if count else math.nan
        value += share / 2
        below += (share - low) ** 2
        above += (high - share) ** 2
    return Score(name, value, value - math.sqrt(below) / 2, value + math.sqrt(above) / 2, n, chance=CHANCE)


def auroc(name: str, answer: Float[np.ndarray, "item"], label: Bool[np.ndarray, "item"], n: int) -> Score:
    """The share of pairs of a positive and a negative that are in order, ties counting half."""
    positive, negative = answer[label], np.sort(answer[~label])
    pairs = len(positive) * len(negative)
    if not pairs:
        return Score(name, math.nan, math.nan, math.nan, n, chance=CHANCE)
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    value = float(below.sum()) / (2 * pairs)
    low, high = (_auroc_bound(value, len(positive), len(negative), up) for up in (False, True))
    return Score(name, value, low, high, n, chance=CHANCE)


def _auroc_bound(value: float, positives: int, negatives: int, up: bool) -> float:
    """Where the value is z standard errors, those of the bound itself, from the bound."""
    extra = (positives + negatives) / 2 - 1
    inner, outer = value, float(up)
    for _ in range(50):
        at = (inner + outer) / 2
        spread = at * (1 - at) * (1 + extra * ((1 - at) / (2 - at) + at / (1 + at)))
        if abs(at - value) < _Z * math.sqrt(spread / (positives * negatives)):
            inner = at
        else:
            outer = at
    return (inner + outer) / 2


def share(name: str, right: int | float, of: int, *, chance: float | None = None) -> Score:
    """A proportion of independent draws with Wilson's interval; NaN of none."""
    low, high = _wilson(right / of, of) if of else (0.0, 1.0)
    return Score(name, right / of if of else math.nan, low, high, of, chance=chance)


def difference(name: str, one: Score, other: Score, *, chance: float | None = 0.0) -> Score:
    """One independent proportion less another (Newcombe's method 10)."""
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Score(name, value, low, high, one.n + other.n, chance=chance)


def precision_at(name: str, hits: Score, false: Score, base_rate: float, n: int) -> Score:
    """Precision where so small a share is positive as in the corpus, not half as among the items.

        precision = π s / (π s + (1 - π) f),   π the base rate

    Args:
        hits: share s of the positives that are called positive.
        false: share f of the negatives that are called positive.
        base_rate: π; also what a judge that ignores its input would reach.

    The interval follows from that of the ratio f / s (MOVER-R). NaN when nothing is called positive.
    Where no false alarm is among few negatives the value is 1, and only the lower bound says how
    little that means for a rare feature.
    """
    odds = (1 - base_rate) / base_rate if base_rate else math.inf

    def at(ratio: float) -> float:
        return 0.0 if ratio == math.inf else 1 / (1 + odds * ratio) if ratio else 1.0

    if not hits.value and not false.value:
        return Score(name, math.nan, 0.0, 1.0, n, chance=base_rate)
    low, high = _ratio_bounds(false, hits)
    value = at(false.value / hits.value if hits.value else math.inf)
    return Score(name, value, at(high), at(low), n, chance=base_rate)


def _ratio_bounds(top: Score, bottom: Score) -> tuple[float, float]:
    both = top.value * bottom.value
    low_root = both**2 - top.low * bottom.high * (2 * top.value - top.low) * (2 * bottom.value - bottom.high)
    high_root = both**2 - top.high * bottom.low * (2 * top.value - top.high) * (2 * bottom.value - bottom.low)
    low_under = bottom.high * (2 * bottom.value - bottom.high)
    high_under = bottom.low * (2 * bottom.value - bottom.low)
    low = (both - math.sqrt(max(low_root, 0.0))) / low_under if low_under else 0.0
    high = (both + math.sqrt(max(high_root, 0.0))) / high_under if high_under > 0 else math.inf
    return max(low, 0.0), max(high, 0.0)


def clustered(
    name: str,
    top: Float[np.ndarray, "document"],
    bottom: Float[np.ndarray, "document"],
    *,
    chance: float | None = None,
) -> Score:
    """Σ top / Σ bottom, between 0 and 1, with documents as the independent units.

    The variance between documents (linearised) says how many independent tokens the tokens are
    worth; where they do not vary each document counts as one. NaN where the bottom is all zero.
    """
    whole = float(bottom.sum())
    n = int((bottom > 0).sum())
    if not whole:
        return Score(name, math.nan, 0.0, 1.0, n, chance=chance)
    value = min(1.0, float(top.sum()) / whole)
    residual = top - value * bottom
    variance = float((residual**2).sum()) / whole**2 * (n / (n - 1) if n > 1 else 1.0)
    worth = min(whole, value * (1 - value) / variance) if variance > 0 and n > 1 else float(n)
    low, high = _wilson(value, worth)
    return Score(name, value, low, high, n, chance=chance)


def _wilson(p: float, n: int | float) -> tuple[float, float]:
    """Wilson's interval for a sample size that need not be whole."""
    z = _Z
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def over_features(name: str, scores: list[Score], seed: int) -> tuple[Score, Score] | None:
    """Mean (bootstrap over features; Student's interval of few, the normal of many) and median.

    Of the scores that are numbers; each has the same of their nulls beside it. None when none is one. One
    feature says nothing of others: both are then its score, with its own interval.
    """
    known = [each for each in scores if math.isfinite(each.value)]
    if not known:
        return None
    values = np.array([each.value for each in known], np.float64)
    nulls = over_features(f"{name}, control", [each.null for each in scores if each.null is not None], seed)
    levels = {each.chance for each in scores}
    chance = levels.pop() if len(levels) == 1 else None
    below = nulls[0] if nulls else None
    if len(known) == 1:
        own = replace(known[0], name=name, n=1, null=below)
        return own, replace(own, name=f"{name}, median", null=nulls[1] if nulls else None)
    if len(values) < _FEW:
        middle = float(values.mean())
        reach = student(len(values) - 1.0) * float(values.std(ddof=1)) / math.sqrt(len(values))
        average = Score(name, middle, middle - reach, middle + reach, len(values), below, chance)
    elif len(values) < _MANY:
        sums = np.stack([values, np.ones(len(values))], axis=1)
        average = score(name, sums, mean, seed=seed, null=below, chance=chance)
    else:
        middle, reach = float(values.mean()), _Z * float(values.std(ddof=1)) / math.sqrt(len(values))
        average = Score(name, middle, middle - reach, middle + reach, len(values), below, chance)
    return average, _median(name, values, nulls[1] if nulls else None, chance)


def student(freedom: float) -> float:
    """How many standard errors a 95 % interval reaches with so many degrees of freedom."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _median(
    name: str, values: Float[np.ndarray, "feature"], null: Score | None, chance: float | None
) -> Score:
    """With the distribution-free interval between order statistics (normal approximation of ranks).

    Of fewer than 6 not even their range holds the median in 95 % of trials.
    """
    n, ordered = len(values), np.sort(values)
    reach = _Z * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach))
    middle = float(np.median(ordered))
    return Score(f"{name}, median", middle, float(ordered[low]), float(ordered[high]), n, null, chance)


def with_null(real: Score, null: Score | None) -> Score:
    """The score with its control beside it."""
    return replace(real, null=null)


def derangement(n: int, generator: np.random.Generator) -> Int[np.ndarray, "place"]:
    """A random permutation that leaves nothing in place: one cycle through all, in random order."""
    cycle = generator.permutation(n)
    image = np.empty(n, np.int64)
    image[cycle] = np.roll(cycle, -1)
    return image


def lenders(features: Sequence[int], generator: np.random.Generator) -> list[int] | None:
    """For each place another whose feature is not the same; None when all are of one feature.

    Features stand in one random cycle and lend to the one before. Where a feature has several places
    the next one's take turns; else every place lends once.
    """
    places: dict[int, list[int]] = {}
    for place, feature in enumerate(features):
        places.setdefault(feature, []).append(place)
    known = list(places)
    if len(known) < 2:
        return None
    lender = dict(zip(known, derangement(len(known), generator).tolist(), strict=True))
    found = [0] * len(features)
    for feature, mine in places.items():
        theirs = places[known[lender[feature]]]
        for turn, place in enumerate(mine):
            found[place] = theirs[turn % len(theirs)]
    return found
