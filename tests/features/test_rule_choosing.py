"""Sets of words and intervals by F1: against trying every one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mechlab.features.rules.choosing import Goal, best_interval, best_of, shrunk, worst_of


def drawn(seed: int, size: int) -> tuple[np.ndarray, np.ndarray, Goal]:
    generator = np.random.default_rng(seed)
    seen = generator.integers(1, 40, size).astype(np.float64)
    hits = np.floor(seen * generator.random(size))
    more = float(generator.integers(0, 30))
    taken = float(generator.integers(0, 20))
    beta = float(generator.choice([0.5, 1.0, 3.0]))
    return hits, seen, Goal(float(hits.sum()) + more + taken, taken, taken * 1.5, 0.0, beta)


@pytest.mark.parametrize("seed", range(25))
def test_best_set_is_the_best_of_all(seed: int) -> None:
    hits, seen, goal = drawn(seed, 9)
    chosen, near, matched = best_of(hits, seen, goal.plain, 9)
    every = (
        goal.value(float(hits[list(some)].sum()), float(seen[list(some)].sum()))
        for count in range(1, 10)
        for some in itertools.combinations(range(9), count)
    )
    assert goal.value(near, matched) == pytest.approx(max(every))
    assert (near, matched) == (hits[chosen].sum(), seen[chosen].sum())


@pytest.mark.parametrize("seed", range(25))
def test_worst_set_leaves_the_best(seed: int) -> None:
    hits, seen, goal = drawn(seed, 9)
    total = float(hits.sum()), float(seen.sum())
    chosen, left, matched = worst_of(hits, seen, total, goal.plain, 9)
    every = (
        goal.value(total[0] - float(hits[list(some)].sum()), total[1] - float(seen[list(some)].sum()))
        for count in range(9)
        for some in itertools.combinations(range(9), count)
    )
    assert goal.value(left, matched) == pytest.approx(max(every))
    assert left == total[0] - hits[chosen].sum()


@pytest.mark.parametrize("seed", range(25))
def test_best_interval_is_the_best_of_all(seed: int) -> None:
    hits, seen, goal = drawn(seed, 12)
    first, last, near, matched = best_interval(hits.astype(np.int64), seen.astype(np.int64), goal)
    every = (
        goal.value(float(hits[a:b].sum()), float(seen[a:b].sum()))
        for a, b in itertools.combinations(range(13), 2)
    )
    assert goal.value(near, matched) == pytest.approx(max(every))
    assert near == hits[first : last + 1].sum()


def test_a_price_on_words_keeps_sets_small() -> None:
    hits, seen = np.array([50.0, 1.0, 1.0, 1.0]), np.array([50.0, 1.0, 1.0, 1.0])
    assert len(best_of(hits, seen, Goal(53.0).plain, 4)[0]) == 4
    assert len(best_of(hits, seen, Goal(53.0, penalty=0.05).plain, 4)[0]) == 1


def test_rare_words_are_drawn_to_the_base_rate() -> None:
    once, often = shrunk(np.array([1, 100]), np.array([1, 100]), 0.01) / np.array([1, 100])
    assert once == pytest.approx(1.02 / 3)
    assert often > 0.98
