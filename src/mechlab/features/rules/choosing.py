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

import numpy as np
from jaxtyping import Float, Int

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

    def values(
        self, hits: Float[np.ndarray, "*choice"], matched: Float[np.ndarray, "*choice"]
    ) -> Float[np.ndarray, "*choice"]:
        """F when each of the choices, alone, is added."""
        square = self.beta**2
        return (1 + square) * (self.hits + hits) / (self.matched + matched + square * self.positives)


def shrunk(
    hits: Int[np.ndarray, "*choice"], seen: Int[np.ndarray, "*choice"], base: float
) -> Float[np.ndarray, "*choice"]:
    """The m-estimate of ``hits``."""
    found: np.ndarray = seen * (hits + PRIOR * base) / (seen + PRIOR)
    return found


def best_set(
    hits: Float[np.ndarray, "choice"], seen: Float[np.ndarray, "choice"], goal: Goal, limit: int
) -> tuple[Int[np.ndarray, "chosen"], float, float]:
    """At most ``limit`` choices with the best F less the price of log2 of their number.

    At least one. Returns which, best first, and the sums of their hits and rows.
    """
    square = goal.beta**2
    level = float(goal.values(hits, seen).max())
    order = np.zeros(0, np.int64)
    for _ in range(20):
        gain = (1 + square) * hits - level * seen
        good = np.flatnonzero(gain > 0)
        if len(good) == 0:
            break
        found = good[np.argsort(-gain[good], kind="stable")[:limit]]
        reached = goal.value(float(hits[found].sum()), float(seen[found].sum()))
        order = found
        if reached <= level + 1e-9:
            break
        level = reached
    if len(order) == 0:
        order = np.array([int(np.argmax(goal.values(hits, seen)))])
    sums, rows = np.cumsum(hits[order]), np.cumsum(seen[order])
    price = goal.penalty * np.log2(np.arange(1, len(order) + 1))
    count = int(np.argmax(goal.values(sums, rows) - price)) + 1
    return order[:count], float(sums[count - 1]), float(rows[count - 1])


def worst_set(
    hits: Float[np.ndarray, "choice"],
    seen: Float[np.ndarray, "choice"],
    total: tuple[float, float],
    goal: Goal,
    limit: int,
) -> tuple[Int[np.ndarray, "chosen"], float, float]:
    """At most ``limit`` choices to leave out of ``total`` (hits, rows) for the best F.

    Perhaps none. Returns which, worst first, and the sums of hits and rows that are left.
    """
    square = goal.beta**2
    level, order = goal.value(*total), np.zeros(0, np.int64)
    for _ in range(20):
        gain = level * seen - (1 + square) * hits
        bad = np.flatnonzero(gain > 0)
        found = bad[np.argsort(-gain[bad], kind="stable")[:limit]]
        rows = max(total[1] - float(seen[found].sum()), 0.0)
        reached = goal.value(min(max(total[0] - float(hits[found].sum()), 0.0), rows), rows)
        if reached <= level + 1e-9:
            break
        level, order = reached, found
    if len(order) == 0:
        return order, *total
    # Choices that overlap leave out more than there is.
    left_rows = np.maximum(total[1] - np.cumsum(seen[order]), 0.0)
    left = np.clip(total[0] - np.cumsum(hits[order]), 0.0, left_rows)
    price = goal.penalty * np.log2(np.arange(1, len(order) + 1))
    count = int(np.argmax(goal.values(left, left_rows) - price)) + 1
    return order[:count], float(left[count - 1]), float(left_rows[count - 1])


def best_interval(
    hits: Float[np.ndarray, "place"], seen: Float[np.ndarray, "place"], goal: Goal
) -> tuple[int, int, float, float]:
    """First and last place (included) of the interval with the best F, and its hits and rows."""
    square, level, best = goal.beta**2, -math.inf, (0, len(hits) - 1)
    trial = goal.value(float(hits.sum()), float(seen.sum()))
    while trial > level + 1e-9:
        level = trial
        total = np.concatenate([[0.0], np.cumsum((1 + square) * hits - level * seen)])
        lowest = np.minimum.accumulate(total)
        last = int(np.argmax(total[1:] - lowest[:-1]))
        first = int(np.argmin(total[: last + 1]))
        trial = goal.value(float(hits[first : last + 1].sum()), float(seen[first : last + 1].sum()))
        if trial > level:
            best = first, last
    first, last = best
    return first, last, float(hits[first : last + 1].sum()), float(seen[first : last + 1].sum())
