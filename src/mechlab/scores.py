"""Scores that carry their own doubt: value, interval, n and a null control.

Nearly every score in this field is a function of totals: a mean is sum/count,
balanced accuracy needs the four cells of a confusion table, faithfulness is a
ratio of summed metrics, a correlation needs five moments. So a score is given as
one row of *sums* per independent unit (a document, a prompt) and a function from
column totals to the value; the bootstrap then resamples whole units by
re-weighting rows, which is one matrix product for all resamples.

Sources: Efron & Tibshirani, *An Introduction to the Bootstrap* (1993), chapters
13-14 (percentile and BCa intervals); Wilson (1927), *Probable inference, the law
of succession, and statistical inference* (binomial interval); Phipson & Smyth
(2010), *Permutation p-values should never be zero*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mechlab.errors import MechlabError

LEVEL = 0.95
Statistic = Callable[[Float[np.ndarray, "resample column"]], Float[np.ndarray, "resample"]]


@dataclass(frozen=True)
class Score:
    """A measured value with its interval, sample size and control.

    Attributes:
        name: what was measured, in the field's words ("detection", "faithfulness").
        value: the point estimate.
        low, high: bounds of the 95 % interval.
        n: number of independent units (documents, prompts) behind it.
        null: the same measurement on a control that carries no information.
        chance: the value that the control should have, where theory gives one.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    null: Score | None = None
    chance: float | None = None

    @property
    def beats_null(self) -> bool:
        """True when this interval lies wholly above the control's."""
        return self.null is not None and self.low > self.null.high

    @property
    def null_at_chance(self) -> bool:
        """True when chance lies inside the control's interval. MechlabError without either."""
        if self.null is None or self.chance is None:
            raise MechlabError(
                "score has no null control or no chance level", self.name, "measure its control"
            )
        return self.null.low <= self.chance <= self.null.high

    def __str__(self) -> str:
        text = f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"
        return text if self.null is None else f"{text}, null {self.null.value:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a value that is not a number becomes None."""
        return {
            "name": self.name,
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "n": self.n,
            "null": None if self.null is None else self.null.to_dict(),
            "chance": self.chance,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Score:
        """The inverse of ``to_dict``."""
        null = fields.get("null")
        numbers = {
            key: math.nan if fields[key] is None else float(fields[key]) for key in ("value", "low", "high")
        }
        return cls(
            name=fields["name"],
            n=int(fields["n"]),
            null=None if null is None else cls.from_dict(null),
            chance=fields.get("chance"),
            **numbers,
        )


def score(
    name: str,
    sums: Float[np.ndarray, "unit column"],
    statistic: Statistic,
    *,
    seed: int = 0,
    null: Score | None = None,
    chance: float | None = None,
) -> Score:
    """Score with a bootstrap interval over units.

    Args:
        sums: one row per independent unit, whatever totals ``statistic`` needs.
        statistic: maps totals ``[resample, column]`` to values ``[resample]``; NaN where undefined.
    """
    value = float(statistic(sums.sum(0, keepdims=True, dtype=np.float64))[0])
    low, high = bootstrap(sums, statistic, seed=seed)
    return Score(name, value, low, high, len(sums), null, chance)


def bootstrap(
    sums: Float[np.ndarray, "unit column"],
    statistic: Statistic,
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = LEVEL,
    method: str = "bca",
) -> tuple[float, float]:
    """Bootstrap interval of ``statistic`` over resampled units.

    Args:
        sums: one row of totals per unit.
        statistic: as in ``score``.
        method: "bca" (bias-corrected and accelerated) or "percentile".

    Returns ``(low, high)``; ``(nan, nan)`` when there are fewer than two units or the
    statistic is undefined on the sample. Resamples on which it is undefined are left out.
    Raises MechlabError for an unknown method.
    """
    if method not in ("bca", "percentile"):
        raise MechlabError("unknown bootstrap method", method, "use bca or percentile")
    n = len(sums)
    rows = sums.astype(np.float64)
    point = float(statistic(rows.sum(0, keepdims=True))[0])
    if n < 2 or not math.isfinite(point):
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    values = np.concatenate(
        [
            statistic(generator.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64) @ rows)
            for size in _chunks(resamples, n)
        ]
    )
    values = np.sort(values[np.isfinite(values)])
    if len(values) == 0:
        return math.nan, math.nan
    tail = (1 - level) / 2
    bounds = (tail, 1 - tail) if method == "percentile" else _bca(rows, statistic, point, values, tail)
    low, high = np.quantile(values, bounds)
    return float(low), float(high)


def _bca(
    rows: Float[np.ndarray, "unit column"],
    statistic: Statistic,
    point: float,
    values: Float[np.ndarray, "resample"],
    tail: float,
) -> tuple[float, float]:
    """Corrected quantiles (Efron & Tibshirani 1993, equations 14.10-14.15).

    Ties between resamples and the point estimate count half, so that a statistic
    with few distinct values is not called biased.
    """
    normal = NormalDist()
    below = (np.sum(values < point) + 0.5 * np.sum(values == point)) / len(values)
    if below in (0.0, 1.0):
        return tail, 1 - tail
    bias = normal.inv_cdf(float(below))
    jackknife = statistic(rows.sum(0, keepdims=True) - rows)
    deviation = jackknife[np.isfinite(jackknife)].mean() - jackknife[np.isfinite(jackknife)]
    spread = float((deviation**2).sum() ** 1.5)
    acceleration = 0.0 if spread == 0 else float((deviation**3).sum()) / (6 * spread)
    corrected = []
    for z in (normal.inv_cdf(tail), normal.inv_cdf(1 - tail)):
        shifted = bias + (bias + z) / (1 - acceleration * (bias + z))
        corrected.append(normal.cdf(shifted))
    return corrected[0], corrected[1]


def _chunks(total: int, n: int) -> list[int]:
    """Split resamples so that one weight matrix stays under about 64 MB."""
    size = max(1, min(total, 8_000_000 // max(n, 1)))
    return [size] * (total // size) + ([total % size] if total % size else [])


def mean(totals: Float[np.ndarray, "resample 2"]) -> Float[np.ndarray, "resample"]:
    """Statistic over columns (sum, count): their ratio. Also a ratio of means."""
    return ratio(totals[:, 0], totals[:, 1])


def balanced_accuracy(totals: Float[np.ndarray, "resample 4"]) -> Float[np.ndarray, "resample"]:
    """Statistic over columns (true positives, positives, true negatives, negatives).

    (TP/P + TN/N) / 2; NaN when one class is absent. A predictor that ignores its input scores 1/2.
    """
    value: np.ndarray = (ratio(totals[:, 0], totals[:, 1]) + ratio(totals[:, 2], totals[:, 3])) / 2
    return value


def confusion_sums(
    predicted: Bool[np.ndarray, "item"], actual: Bool[np.ndarray, "item"]
) -> Float[np.ndarray, "item 4"]:
    """Rows for ``balanced_accuracy``, one unit per item."""
    columns = (predicted & actual, actual, ~predicted & ~actual, ~actual)
    return np.stack(columns, axis=1).astype(np.float64)


def ratio(
    top: Float[np.ndarray, "*shape"], bottom: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Elementwise ``top / bottom``, NaN where ``bottom`` is zero."""
    value: np.ndarray = np.divide(
        top, bottom, out=np.full_like(top, np.nan, dtype=np.float64), where=bottom != 0
    )
    return value


def rank_correlation(left: Float[np.ndarray, "item"], right: Float[np.ndarray, "item"]) -> float:
    """Spearman's: the correlation of ranks, ties having their mean rank.

    NaN where it is undefined: one side is constant, or there are fewer than two items.
    """
    first, second = _ranks(left), _ranks(right)
    spread = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float(first @ second) / spread if spread else math.nan


def _ranks(values: Float[np.ndarray, "item"]) -> Float[np.ndarray, "item"]:
    """Less their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks - (len(values) + 1) / 2


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval for a binomial proportion; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def permutation_p(
    left: Float[np.ndarray, "left_item"],
    right: Float[np.ndarray, "right_item"],
    *,
    seed: int = 0,
    permutations: int = 10_000,
    paired: bool = False,
) -> float:
    """One-sided p-value that mean(left) > mean(right) by chance.

    Unpaired: labels are permuted; paired: signs of the differences are flipped.
    The observed arrangement counts as one permutation, so p is never 0 (Phipson & Smyth 2010).
    Raises MechlabError when paired samples differ in length or a sample is empty.
    """
    if len(left) == 0 or len(right) == 0 or (paired and len(left) != len(right)):
        raise MechlabError(
            "samples cannot be compared", f"{len(left)} and {len(right)} items", "pair or add items"
        )
    generator = np.random.default_rng(seed)
    observed = left.mean() - right.mean()
    # Rounding must not make an identical arrangement look smaller than the observed one.
    reach = observed - 1e-12 * max(1.0, abs(observed))
    if paired:
        signs = generator.choice(np.array([-1.0, 1.0]), size=(permutations, len(left)))
        drawn = signs @ (left - right) / len(left)
    else:
        both = np.concatenate([left, right])
        drawn = np.empty(permutations)
        for i in range(permutations):
            mixed = generator.permutation(both)
            drawn[i] = mixed[: len(left)].mean() - mixed[len(left) :].mean()
    return float((1 + np.sum(drawn >= reach)) / (1 + permutations))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
