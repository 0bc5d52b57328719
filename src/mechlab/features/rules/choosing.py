"""The best sets of words, and the best interval, by F1.

For choices that hold on n_i rows, h_i of them active, a set S added to what is matched already (TP of NC
rows, of A that are active) has

    F(S) = (1 + β²) (TP + Σ_S h_i) / (NC + Σ_S n_i + β² A),

F1 for β = 1; β > 1 values recall more. Maximising it is a fractional program, solved exactly by
Dinkelbach's iteration: for a trial value λ keep what has (1 + β²) h_i - λ n_i > 0, set λ to their F, repeat
until it stops growing. To keep rare words from looking perfect, h_i is shrunk to the m-estimate
n_i (h_i + m p) / (n_i + m), p being the share of active rows.

Sources: Dinkelbach (1967), *On nonlinear fractional programming*; Cestnik (1990), *Estimating
probabilities: a crucial task in machine learning*; the interval by Kadane's scan (Bentley 1984,
*Programming pearls*).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Int, Shaped
from numba import njit

PRIOR = 2.0
"""Strength m of the m-estimate, in occurrences."""


@dataclass(frozen=True)
class Goal:
    """What is matched already, and what a choice is worth.

    Attributes:
        positives: active rows in all (A).
        hits, matched: TP and NC.
        penalty: price of one unit of complexity, in F.
        beta: how much more recall counts than precision.
    """

    positives: float
    hits: float = 0.0
    matched: float = 0.0
    penalty: float = 0.0
    beta: float = 1.0

    def value(self, hits: float, matched: float) -> float:
        """F when a choice adds this."""
        square = self.beta**2
        return (1 + square) * (self.hits + hits) / (self.matched + matched + square * self.positives)

    @property
    def plain(self) -> tuple[float, float, float, float]:
        """(1 + β²) TP, 1 + β², NC + β² A and the price, for compiled loops."""
        square = self.beta**2
        return (1 + square) * self.hits, 1 + square, self.matched + square * self.positives, self.penalty


# numba compiles the plain functions and cannot see through a run-time type check.
@njit(cache=True, nogil=True)
@no_type_check
def shrunk(
    hits: Shaped[np.ndarray, "*choice"], seen: Shaped[np.ndarray, "*choice"], base: float
) -> Shaped[np.ndarray, "*choice"]:
    """The m-estimate of ``hits``, be it of one choice (a number) or of several."""
    return seen * (hits + PRIOR * base) / (seen + PRIOR)


def best_interval(
    hits: Int[np.ndarray, "place"], seen: Int[np.ndarray, "place"], goal: Goal
) -> tuple[int, int, float, float]:
    """First and last place (included) of the interval with the best F, and its hits and rows."""
    first, last, near, matched = _best_interval(hits, seen, goal.plain)
    return first, last, near, matched


@njit(cache=True, nogil=True)
@no_type_check
def _largest(gain: Shaped[np.ndarray, "choice"], limit: int) -> Shaped[np.ndarray, "chosen"]:
    """At most ``limit`` choices that gain something, the one that gains most first."""
    good = np.flatnonzero(gain > 0)
    return good[np.argsort(-gain[good], kind="mergesort")[:limit]]


@njit(cache=True, nogil=True)
@no_type_check
def best_of(
    hits: Shaped[np.ndarray, "choice"],
    seen: Shaped[np.ndarray, "choice"],
    goal: tuple[float, float, float, float],
    limit: int,
) -> tuple[Shaped[np.ndarray, "chosen"], float, float]:
    """At most ``limit`` choices with the best F less the price of log2 of their number.

    At least one. Returns which, best first, and the sums of their hits and rows.
    """
    have, weight, more, penalty = goal
    alone = (have + weight * hits) / (more + seen)
    level = alone.max()
    order = np.array([np.argmax(alone)])
    for _ in range(20):
        found = _largest(weight * hits - level * seen, limit)
        if len(found) == 0:
            break
        order = found
        reached = (have + weight * hits[found].sum()) / (more + seen[found].sum())
        if reached <= level + 1e-9:
            break
        level = reached
    near, matched = np.cumsum(hits[order]), np.cumsum(seen[order])
    price = penalty * np.log2(np.arange(1, len(order) + 1))
    last = np.argmax((have + weight * near) / (more + matched) - price)
    return order[: last + 1], near[last], matched[last]


@njit(cache=True, nogil=True)
@no_type_check
def worst_of(
    hits: Shaped[np.ndarray, "choice"],
    seen: Shaped[np.ndarray, "choice"],
    total: tuple[float, float],
    goal: tuple[float, float, float, float],
    limit: int,
) -> tuple[Shaped[np.ndarray, "chosen"], float, float]:
    """At most ``limit`` choices to leave out of ``total`` (hits, rows) for the best F.

    Perhaps none. Returns which, worst first, and the sums of hits and rows that are left.
    """
    have, weight, more, penalty = goal
    level = (have + weight * total[0]) / (more + total[1])
    order = np.zeros(0, np.int64)
    for _ in range(20):
        found = _largest(level * seen - weight * hits, limit)
        rows = max(total[1] - seen[found].sum(), 0.0)
        near = min(max(total[0] - hits[found].sum(), 0.0), rows)
        reached = (have + weight * near) / (more + rows)
        if reached <= level + 1e-9:
            break
        level, order = reached, found
    if len(order) == 0:
        return order, total[0], total[1]
    # Choices that overlap leave out more than there is.
    left_rows = np.maximum(total[1] - np.cumsum(seen[order]), 0.0)
    left = np.minimum(np.maximum(total[0] - np.cumsum(hits[order]), 0.0), left_rows)
    price = penalty * np.log2(np.arange(1, len(order) + 1))
    last = np.argmax((have + weight * left) / (more + left_rows) - price)
    return order[: last + 1], left[last], left_rows[last]


@njit(cache=True, nogil=True)
@no_type_check
def _best_interval(
    hits: Shaped[np.ndarray, "place"],
    seen: Shaped[np.ndarray, "place"],
    goal: tuple[float, float, float, float],
) -> tuple[int, int, float, float]:
    have, weight, more, _ = goal
    first, last, near, matched = 0, len(hits) - 1, float(hits.sum()), float(seen.sum())
    level, trial = -math.inf, (have + weight * near) / (more + matched)
    while trial > level + 1e-9:
        level = trial
        best, total, lowest, start = -math.inf, 0.0, 0.0, 0
        begin, end = 0, 0
        for place in range(len(hits)):
            if total < lowest:
                lowest, start = total, place
            total += weight * hits[place] - level * seen[place]
            if total - lowest > best:
                best, begin, end = total - lowest, start, place
        some, rows = float(hits[begin : end + 1].sum()), float(seen[begin : end + 1].sum())
        trial = (have + weight * some) / (more + rows)
        if trial > level:
            first, last, near, matched = begin, end, some, rows
    return first, last, near, matched


@njit(cache=True, nogil=True)
@no_type_check
def best_words(
    hits: Shaped[np.ndarray, "word"],
    seen: Shaped[np.ndarray, "word"],
    base: float,
    goal: tuple[float, float, float, float],
    limit: int,
) -> tuple[Shaped[np.ndarray, "chosen"], float, float, float]:
    """``best_of`` words by their counts, hits shrunk; and the chosen words' hits, not shrunk."""
    words = np.flatnonzero(hits)
    if len(words) == 0:
        return words, 0.0, 0.0, 0.0
    chosen, near, matched = best_of(
        shrunk(hits[words], seen[words], base), seen[words].astype(np.float64), goal, limit
    )
    chosen = words[chosen]
    return chosen, near, matched, float(hits[chosen].sum())


@njit(cache=True, nogil=True)
@no_type_check
def worst_words(
    hits: Shaped[np.ndarray, "word"],
    seen: Shaped[np.ndarray, "word"],
    base: float,
    total: tuple[float, float],
    goal: tuple[float, float, float, float],
    limit: int,
) -> tuple[Shaped[np.ndarray, "chosen"], float, float]:
    """``worst_of`` words by their counts, hits shrunk."""
    words = np.flatnonzero(seen)
    expected = shrunk(hits[words], seen[words], base)
    chosen, left, matched = worst_of(expected, seen[words].astype(np.float64), total, goal, limit)
    return words[chosen], left, matched


@njit(cache=True, nogil=True)
@no_type_check
def best_near(
    hits: Shaped[np.ndarray, "near reach"],
    seen: Shaped[np.ndarray, "near reach"],
    base: float,
    goal: tuple[float, float, float, float],
    limit: int,
) -> tuple[int, Shaped[np.ndarray, "chosen"], float, float, float]:
    """The reach at which one word is best, and ``best_words`` there."""
    have, weight, more, _ = goal
    most, reach = -math.inf, 0
    for word in range(hits.shape[0]):
        for at in range(hits.shape[1]):
            if hits[word, at]:
                near = shrunk(hits[word, at], seen[word, at], base)
                alone = (have + weight * near) / (more + seen[word, at])
                if alone > most:
                    most, reach = alone, at
    chosen, near, matched, real = best_words(hits[:, reach], seen[:, reach], base, goal, limit)
    return reach, chosen, near, matched, real


@njit(cache=True, nogil=True)
@no_type_check
def worst_near(
    hits: Shaped[np.ndarray, "near reach"],
    seen: Shaped[np.ndarray, "near reach"],
    base: float,
    total: tuple[float, float],
    goal: tuple[float, float, float, float],
    limit: int,
) -> tuple[int, Shaped[np.ndarray, "chosen"], float, float]:
    """The reach at which leaving out one word gains most, and ``worst_words`` there."""
    have, weight, more, _ = goal
    level = (have + weight * total[0]) / (more + total[1])
    most, reach = -math.inf, 0
    for word in range(hits.shape[0]):
        for at in range(hits.shape[1]):
            near = shrunk(hits[word, at], seen[word, at], base)
            gain = level * seen[word, at] - weight * near
            if gain > most:
                most, reach = gain, at
    chosen, left, matched = worst_words(hits[:, reach], seen[:, reach], base, total, goal, limit)
    return reach, chosen, left, matched


@njit(cache=True, nogil=True)
@no_type_check
def best_one(
    hits: Shaped[np.ndarray, "class"],
    seen: Shaped[np.ndarray, "class"],
    base: float,
    total: tuple[float, float],
    goal: tuple[float, float, float, float],
    negated: bool,
) -> tuple[int, float, float]:
    """The class, or its negation, with the best F, its hits (shrunk) and rows; -1 when none is any use."""
    have, weight, more, _ = goal
    most, which, near, matched = 0.0, -1, 0.0, 0.0
    for one in range(len(hits)):
        if seen[one] <= 0 or seen[one] >= total[1]:
            continue
        some, rows = shrunk(hits[one], seen[one], base), float(seen[one])
        if negated:
            some, rows = total[0] - some, total[1] - rows
        value = (have + weight * some) / (more + rows)
        if value > most:
            most, which, near, matched = value, one, some, rows
    return which, near, matched
