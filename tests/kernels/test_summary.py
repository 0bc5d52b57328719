"""Statistics of all features at once must equal NumPy's, feature by feature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mechlab_kernels import summary
from mechlab_kernels.summary import summarise, summarise_reference


def entries(seed: int, features: int, rows: int, *, levels: int):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, rows + 1, size=features)
    counts[rng.random(features) < 0.3] = 0
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    value = (1 + rng.integers(levels, size=indptr[-1])).astype(np.float32) / np.float32(7)
    return indptr, value


def close(ours, theirs) -> None:
    assert np.array_equal(ours.maximum, theirs.maximum)
    assert np.allclose(ours.moments, theirs.moments, rtol=1e-9, atol=1e-12)
    assert np.array_equal(ours.histogram, theirs.histogram)
    assert np.array_equal(ours.quantile, theirs.quantile)
    assert [each.dtype for each in ours] == [each.dtype for each in theirs]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("features", "rows"), [(1, 1), (5, 3), (30, 40), (12, 700)])
@pytest.mark.parametrize("levels", [1, 4, 10**6])
def test_fast_equals_reference(seed, features, rows, levels):
    case = entries(seed, features, rows, levels=levels)
    close(summarise(*case, rows, 8, 20), summarise_reference(*case, rows, 8, 20))


def test_block_by_block(monkeypatch):
    case = entries(3, 50, 60, levels=99)
    whole = summarise(*case, 60, 10, 10)
    monkeypatch.setattr(summary, "_BLOCK", 100)
    close(summarise(*case, 60, 10, 10), whole)


def test_some_of_the_features():
    indptr, value = entries(3, 50, 60, levels=99)
    part, whole = summarise(indptr[10:21], value, 60, 10, 10), summarise(indptr, value, 60, 10, 10)
    for ours, theirs in zip(part, whole, strict=True):
        assert np.array_equal(ours, theirs[10:20])


def test_by_hand():
    found = summarise(np.array([0, 4, 4]), np.array([4, 1, 2, 3], np.float32), 8, 4, 4)
    assert found.maximum.tolist() == [4, 0]
    assert found.moments[0, 0] == 10 / 8
    assert found.moments[0, 1] == 30 / 8 - (10 / 8) ** 2
    assert found.histogram.tolist() == [[0, 1, 1, 2], [0] * 4]
    assert found.quantile.tolist() == [[1, 1, 2, 3, 4], [0] * 5]


def test_moments_are_those_of_scipy():
    value = np.random.default_rng(0).random(300).astype(np.float32)
    dense = np.concatenate([value, np.zeros(700)])
    moments = summarise(np.array([0, 300]), value, 1000, 4, 4).moments[0]
    assert np.allclose(moments[1:], [dense.var(), stats.skew(dense), stats.kurtosis(dense, fisher=False)])


def test_quantiles_are_those_of_numpy():
    indptr, value = entries(3, 50, 60, levels=99)
    found = summarise(indptr, value, 60, 10, 16).quantile
    for feature in np.flatnonzero(np.diff(indptr)).tolist():
        active = value[indptr[feature] : indptr[feature + 1]]
        # Sixteenths are exact in binary; NumPy rounds the product of other shares.
        assert np.array_equal(found[feature], np.quantile(active, np.arange(17) / 16, method="inverted_cdf"))


def test_values_are_left_as_they_are():
    indptr, value = entries(3, 50, 60, levels=99)
    before = value.copy()
    value.flags.writeable = False
    summarise(indptr, value, 60, 10, 10)
    assert np.array_equal(value, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_bad_values_are_refused(bad):
    indptr, value = entries(3, 50, 60, levels=99)
    value[77] = bad
    with pytest.raises(ValueError, match="finite"):
        summarise(indptr, value, 60, 10, 10)


def test_more_entries_than_rows_are_refused():
    with pytest.raises(ValueError, match="rows"):
        summarise(np.array([0, 3]), np.ones(3, np.float32), 2, 4, 4)
