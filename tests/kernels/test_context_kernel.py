"""The fast choice of top contexts must equal its definition."""

from __future__ import annotations

import numpy as np
import pytest

from mechlab_kernels.contexts import top_peaks, top_peaks_reference


def stream(seed: int, rows: int, features: int, density: float, *, levels: int, words: int):
    """Entries with many ties and a text with many repetitions."""
    rng = np.random.default_rng(seed)
    active = rng.random((features, rows)) < density * rng.random((features, 1)) ** 2
    _, row = np.nonzero(active)
    value = (1 + rng.integers(levels, size=len(row))).astype(np.float32) / 7
    indptr = np.concatenate([[0], np.cumsum(active.sum(1))])
    starts = np.flatnonzero(rng.random(rows) < 0.1)
    bounds = np.unique(np.concatenate([[0], starts, [rows]])).astype(np.int64)
    return indptr, row.astype(np.int32), value, rng.integers(words, size=rows).astype(np.int32), bounds


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("rows", "features", "density", "levels", "words"),
    [(0, 3, 1.0, 2, 2), (1, 1, 1.0, 1, 1), (60, 9, 0.8, 3, 2), (500, 40, 0.3, 5, 3), (900, 20, 1.0, 999, 50)],
)
@pytest.mark.parametrize(("count", "radius"), [(1, 0), (3, 1), (20, 4)])
def test_fast_equals_reference(seed, rows, features, density, levels, words, count, radius):
    case = stream(seed, rows, features, density, levels=levels, words=words)
    fast, slow = top_peaks(*case, count, radius), top_peaks_reference(*case, count, radius)
    assert np.array_equal(fast, slow)
    assert fast.dtype == slow.dtype == np.int32


def test_by_hand():
    tokens = np.array([5, 6, 7, 5, 6, 7, 1, 2], np.int32)
    bounds = np.array([0, 3, 6, 8])
    row = np.array([0, 1, 4, 7, 2], np.int32)
    value = np.array([1, 2, 2, 1, 9], np.float32)
    # Feature 0: row 1 beats row 0 of its passage; row 4 has the same text; row 7 comes last.
    peaks = top_peaks(np.array([0, 4, 4, 5]), row, value, tokens, bounds, 3, 1)
    assert peaks.tolist() == [[1, 7, -1], [-1, -1, -1], [2, -1, -1]]


def test_the_same_text_many_times_over():
    rows = 3000
    tokens = np.tile(np.array([1, 2, 3], np.int32), rows // 3)
    tokens[-3:] = [7, 8, 9]
    bounds = np.arange(0, rows + 1, 3)
    row = np.arange(1, rows, 3, dtype=np.int32)
    value = np.linspace(9, 1, len(row)).astype(np.float32)
    assert top_peaks(np.array([0, len(row)]), row, value, tokens, bounds, 4, 1).tolist() == [
        [1, rows - 2, -1, -1]
    ]


@pytest.mark.parametrize("passages", range(14, 20))
@pytest.mark.parametrize("up", [False, True])
def test_as_many_passages_as_are_noted_at_a_time(passages, up):
    row = np.arange(passages, dtype=np.int32)
    value = (1 + (row if up else row[::-1])).astype(np.float32)
    case = np.array([0, passages]), row, value, row, np.arange(passages + 1)
    assert np.array_equal(top_peaks(*case, 2, 1), top_peaks_reference(*case, 2, 1))


def test_some_of_the_features():
    case = stream(1, 400, 30, 0.5, levels=9, words=4)
    whole = top_peaks(*case, 5, 2)
    assert np.array_equal(top_peaks(case[0][7:12], *case[1:], 5, 2), whole[7:11])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -0.0, -1.0])
def test_bad_values_are_refused(bad):
    indptr, row, value, tokens, bounds = stream(2, 100, 5, 1.0, levels=3, words=3)
    value[len(value) // 2] = bad
    with pytest.raises(ValueError, match="finite"):
        top_peaks(indptr, row, value, tokens, bounds, 3, 1)


@pytest.mark.parametrize("bad", [-1, 100])
def test_rows_outside_the_text_are_refused(bad):
    indptr, row, value, tokens, bounds = stream(2, 100, 5, 1.0, levels=3, words=3)
    row[-1] = bad
    with pytest.raises(ValueError, match="outside"):
        top_peaks(indptr, row, value, tokens, bounds, 3, 1)


def test_arguments_that_do_not_fit_are_refused():
    indptr, row, value, tokens, bounds = stream(2, 100, 5, 1.0, levels=3, words=3)
    with pytest.raises(ValueError, match="bounds"):
        top_peaks(indptr, row, value, tokens, bounds[:-1], 3, 1)
    with pytest.raises(ValueError, match="indptr"):
        top_peaks(indptr, row[:-1], value[:-1], tokens, bounds, 3, 1)
    with pytest.raises(ValueError, match="count"):
        top_peaks(indptr, row, value, tokens, bounds, 0, 1)
