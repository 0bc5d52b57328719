"""Measures against their definitions, and intervals against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mechlab.features.scoring.metrics import (
    auroc,
    balanced_accuracy,
    clustered,
    derangement,
    difference,
    over_features,
    precision_at,
    share,
)
from mechlab.scores import Score, bootstrap, mean, wilson


def test_balanced_accuracy_by_hand() -> None:
    label = np.array([True] * 4 + [False] * 10)
    yes = np.array([True, True, True, False] + [False] * 8 + [True] * 2)
    found = balanced_accuracy("detection", yes, label, 9)
    assert found.value == pytest.approx((3 / 4 + 8 / 10) / 2)
    below = math.hypot(3 / 4 - wilson(3, 4)[0], 8 / 10 - wilson(8, 10)[0]) / 2
    assert found.low == pytest.approx(found.value - below)
    assert (found.n, found.chance) == (9, 0.5)


def test_intervals_do_not_collapse_when_all_is_right() -> None:
    label = np.arange(40) < 20
    assert balanced_accuracy("d", label, label, 40).low < 0.95
    assert auroc("d", label + 0.0, label, 40).low < 0.95
    assert auroc("d", 1.0 - label, label, 40).high > 0.05
    assert clustered("p", np.ones(30), np.ones(30)).low < 0.95


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs_in_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    answer = generator.integers(0, 6, 40) / 5.0
    label = generator.random(40) < 0.4
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in answer[label] for b in answer[~label]]
    found = auroc("a", answer, label, 40)
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.low < found.value < found.high


def test_one_class_has_no_score() -> None:
    label = np.ones(5, bool)
    assert math.isnan(auroc("a", np.ones(5), label, 5).value)
    assert math.isnan(balanced_accuracy("a", label, label, 5).value)
    assert math.isnan(clustered("p", np.zeros(3), np.zeros(3)).value)
    assert math.isnan(share("s", 0, 0).value)


@pytest.mark.parametrize("truth", [0.6, 0.9])
def test_auroc_interval_covers(truth: float) -> None:
    generator = np.random.default_rng(0)
    shift = math.sqrt(2) * {0.6: 0.2533, 0.9: 1.2816}[truth]
    label = np.arange(60) < 30
    inside = 0
    for _ in range(400):
        found = auroc("a", generator.normal(size=60) + shift * label, label, 60)
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.99


@pytest.mark.parametrize(("hits", "false", "rate"), [(0.9, 0.1, 0.05), (0.5, 0.02, 0.01), (0.3, 0.3, 0.2)])
def test_precision_at_the_base_rate_covers(hits: float, false: float, rate: float) -> None:
    generator = np.random.default_rng(1)
    truth = rate * hits / (rate * hits + (1 - rate) * false)
    inside = 0
    for found_hits, found_false in zip(
        generator.binomial(50, hits, 400).tolist(), generator.binomial(50, false, 400).tolist(), strict=True
    ):
        found = precision_at("p", share("", found_hits, 50), share("", found_false, 50), rate, 100)
        assert found.low <= found.value <= found.high
        inside += found.low <= truth <= found.high
    assert inside / 400 >= 0.92


def test_precision_at_the_base_rate_at_the_ends() -> None:
    none, all_ = share("", 0, 50), share("", 50, 50)
    perfect = precision_at("p", all_, none, 0.001, 100)
    assert perfect.value == 1.0
    assert perfect.low < 0.05  # 50 negatives without an error say little about one in a thousand
    blind = precision_at("p", all_, all_, 0.001, 100)
    assert blind.value == pytest.approx(0.001)
    assert blind.chance == 0.001
    assert precision_at("p", none, all_, 0.001, 100).value == 0.0
    silent = precision_at("p", none, none, 0.001, 100)
    assert math.isnan(silent.value)
    assert (silent.low, silent.high) == (0.0, 1.0)


def test_clustered_interval_is_that_of_the_bootstrap() -> None:
    generator = np.random.default_rng(2)
    bottom = generator.integers(5, 40, 400).astype(np.float64)
    top = generator.binomial(bottom.astype(int), generator.beta(3, 2, 400)).astype(np.float64)
    found = clustered("p", top, bottom)
    low, high = bootstrap(np.stack([top, bottom], 1), mean, method="percentile")
    assert found.value == pytest.approx(top.sum() / bottom.sum())
    assert found.low == pytest.approx(low, abs=0.004)
    assert found.high == pytest.approx(high, abs=0.004)
    # Tokens of one document are not independent: as single draws they would seem to say more.
    alone = wilson(int(top.sum()), int(bottom.sum()))
    assert found.high - found.low > 1.5 * (alone[1] - alone[0])


def test_difference_is_newcombes() -> None:
    # Newcombe (1998), table II, example (a): 56/70 - 48/80, method 10.
    found = difference("d", share("", 56, 70), share("", 48, 80))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-4)


def test_totals_leave_out_what_is_no_number() -> None:
    null = Score("d", 0.5, 0.4, 0.6, 10, chance=0.5)
    scores = [Score("d", value, 0.0, 1.0, 10, null, 0.5) for value in (0.6, 0.7, math.nan, 0.8, 1.0)]
    total = over_features("d", scores, 0)
    assert total is not None
    average, median = total
    assert average.value == pytest.approx(0.775)
    assert median.value == pytest.approx(0.75)
    assert median.low <= 0.75 <= median.high
    assert average.null is not None
    assert average.null.value == 0.5
    assert average.n == 4
    assert over_features("d", [], 0) is None


def test_total_of_one_is_its_own_score() -> None:
    null = Score("detection", 0.45, 0.3, 0.6, 40, chance=0.5)
    lost = Score("detection", math.nan, math.nan, math.nan, 0)
    total = over_features("d", [lost, Score("detection", 0.8, 0.65, 0.9, 40, null, 0.5)], 0)
    assert total is not None
    for each in total:
        assert (each.value, each.low, each.high, each.n, each.chance) == (0.8, 0.65, 0.9, 1, 0.5)
        assert each.null is not None
        assert (each.null.value, each.null.low, each.null.high) == (0.45, 0.3, 0.6)
    assert [each.name for each in total] == ["d", "d, median"]


def test_mean_of_many_is_that_of_the_bootstrap() -> None:
    values = np.random.default_rng(4).beta(3, 1, 1500)
    total = over_features("d", [Score("d", float(x), 0.0, 1.0, 1) for x in values], 0)
    assert total is not None
    low, high = bootstrap(np.stack([values, np.ones(1500)], 1), mean)
    assert (total[0].low, total[0].high) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_mean_of_few_covers(n: int) -> None:
    generator = np.random.default_rng(n)
    inside = 0
    for _ in range(400):
        total = over_features("d", [Score("d", float(x), 0.0, 1.0, 1) for x in generator.beta(3, 1, n)], 0)
        assert total is not None
        inside += total[0].low <= 0.75 <= total[0].high
    assert inside / 400 >= 0.9


def test_median_interval_covers() -> None:
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(300):
        scores = [Score("d", float(x), 0.0, 1.0, 1) for x in generator.exponential(size=41)]
        total = over_features("d", scores, 0)
        assert total is not None
        inside += total[1].low <= math.log(2) <= total[1].high
    assert inside / 300 >= 0.93


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_derangement_leaves_nothing_in_place(n: int) -> None:
    image = derangement(n, np.random.default_rng(n))
    assert sorted(image.tolist()) == list(range(n))
    assert (image != np.arange(n)).all()
