"""Scores: known answers, coverage, and controls."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mechlab import scores
from mechlab.errors import MechlabError
from mechlab.scores import Score


def ones(values: np.ndarray) -> np.ndarray:
    """Rows (value, 1) for the mean."""
    return np.stack([values, np.ones_like(values)], axis=1)


def test_score_is_the_statistic_of_the_totals() -> None:
    got = scores.score("mean", ones(np.array([1.0, 2.0, 6.0])), scores.mean)
    assert got.value == 3.0
    assert got.n == 3
    assert got.low < 3.0 < got.high


def test_units_are_resampled_whole() -> None:
    # Four documents of 100 equal tokens each hold four facts, not four hundred.
    documents = np.array([[100.0, 100], [0, 100], [100, 100], [0, 100]])
    tokens = np.repeat(documents / 100, 100, axis=0)
    by_document = scores.score("x", documents, scores.mean)
    by_token = scores.score("x", tokens, scores.mean)
    assert by_document.value == by_token.value == 0.5
    assert by_document.high - by_document.low > 4 * (by_token.high - by_token.low)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_interval_covers_the_truth_about_as_often_as_it_says(method: str) -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        sample = generator.exponential(size=60)
        low, high = scores.bootstrap(ones(sample), scores.mean, seed=i, resamples=600, method=method)
        hits += low <= 1.0 <= high
    # 95 % nominal; small skewed samples undercover a little. 0.90 to 0.985 is 5 standard errors wide.
    assert 0.90 <= hits / 300 <= 0.985


def test_bca_corrects_skew_where_percentile_does_not() -> None:
    sample = np.random.default_rng(1).lognormal(sigma=1.2, size=40)
    low, high = scores.bootstrap(ones(sample), scores.mean, method="bca")
    plain_low, plain_high = scores.bootstrap(ones(sample), scores.mean, method="percentile")
    assert low > plain_low
    assert high > plain_high


def test_bootstrap_is_seeded_and_matches_explicit_resampling() -> None:
    sample = np.random.default_rng(2).normal(size=50)
    assert scores.bootstrap(ones(sample), scores.mean, seed=3) == scores.bootstrap(
        ones(sample), scores.mean, seed=3
    )
    low, high = scores.bootstrap(ones(sample), scores.mean, seed=3, resamples=20_000, method="percentile")
    generator = np.random.default_rng(4)
    naive = [sample[generator.integers(0, 50, 50)].mean() for _ in range(20_000)]
    np.testing.assert_allclose([low, high], np.quantile(naive, [0.025, 0.975]), atol=0.01)


def test_undefined_and_tiny_samples_give_nan_not_a_number() -> None:
    assert all(math.isnan(x) for x in scores.bootstrap(ones(np.array([1.0])), scores.mean))
    one_class = scores.confusion_sums(np.array([True, True]), np.array([True, True]))
    got = scores.score("accuracy", one_class, scores.balanced_accuracy)
    assert math.isnan(got.value)
    assert got.to_dict()["value"] is None
    assert math.isnan(Score.from_dict(got.to_dict()).value)


def test_balanced_accuracy_by_hand_and_of_a_constant() -> None:
    actual = np.array([True, True, True, True, False, False])
    predicted = np.array([True, True, True, False, False, True])
    rows = scores.confusion_sums(predicted, actual)
    assert scores.score("a", rows, scores.balanced_accuracy).value == pytest.approx((3 / 4 + 1 / 2) / 2)
    always = scores.confusion_sums(np.ones(6, bool), actual)
    assert scores.score("a", always, scores.balanced_accuracy).value == 0.5


def test_rank_correlation_by_hand() -> None:
    one = np.array([1.0, 2.0, 30.0])
    assert scores.rank_correlation(one, np.array([5.0, 6.0, 7.0])) == pytest.approx(1.0)
    assert scores.rank_correlation(one, np.array([9.0, 5.0, 1.0])) == pytest.approx(-1.0)
    # Ranks 1.5 1.5 3 and 1 2 3: covariance 1.5, norms² 1.5 and 2.
    assert scores.rank_correlation(np.array([1.0, 1.0, 3.0]), one) == pytest.approx(1.5 / 3**0.5)
    for left, right in ((np.ones(3), one), (one, np.ones(3)), (one[:1], one[:1]), (one[:0], one[:0])):
        assert math.isnan(scores.rank_correlation(left, right))


def test_wilson_by_hand() -> None:
    # Wilson 1927 as tabulated by Newcombe (1998): 81/263 -> (0.2553, 0.3662); 0/20 -> (0, 0.1611).
    assert scores.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert scores.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert scores.wilson(0, 0) == (0.0, 1.0)


def test_permutation_matches_enumeration_and_is_never_zero() -> None:
    left, right = np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.5])
    both = np.concatenate([left, right])
    exact = np.mean(
        [
            both[list(c)].mean() - np.delete(both, list(c)).mean() >= left.mean() - right.mean() - 1e-12
            for c in itertools.combinations(range(6), 3)
        ]
    )
    assert scores.permutation_p(left, right) == pytest.approx(exact, abs=0.01)
    # All 8 sign patterns; only the observed one reaches a mean difference of 2.
    assert scores.permutation_p(left + 1, left - 1, paired=True) == pytest.approx(1 / 8, abs=0.015)
    assert scores.permutation_p(np.full(50, 9.0), np.zeros(50), permutations=99) == 0.01
    with pytest.raises(MechlabError, match="cannot be compared"):
        scores.permutation_p(left, right[:2], paired=True)


def test_permutation_p_is_uniform_under_the_null() -> None:
    generator = np.random.default_rng(5)
    p = [
        scores.permutation_p(generator.normal(size=12), generator.normal(size=12), seed=i, permutations=199)
        for i in range(300)
    ]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.10


def test_null_control() -> None:
    null = Score("null", 0.5, 0.45, 0.55, 100)
    good = Score("detection", 0.8, 0.7, 0.9, 100, null, chance=0.5)
    assert good.beats_null
    assert good.null_at_chance
    assert not Score("weak", 0.56, 0.5, 0.6, 100, null).beats_null
    assert not Score("bare", 0.9, 0.8, 1.0, 10).beats_null
    assert Score.from_dict(good.to_dict()) == good
    assert "null 0.500" in str(good)
    with pytest.raises(MechlabError, match="no null control"):
        _ = Score("bare", 0.9, 0.8, 1.0, 10).null_at_chance


def test_unknown_method() -> None:
    with pytest.raises(MechlabError, match="unknown bootstrap method: jackknife"):
        scores.bootstrap(ones(np.ones(4)), scores.mean, method="jackknife")
