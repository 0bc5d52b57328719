"""Windows of equal length that never cross a passage."""

from __future__ import annotations

import numpy as np
import pytest

from features.scored_features import random_text
from mechlab.errors import MechlabError
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary
from mechlab.features.windows import divide


@pytest.mark.parametrize("width", [1, 7, 32])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_windows_are_whole_and_of_one_passage(width: int, seed: int | None) -> None:
    text = random_text(20, seed=3)
    windows = divide(text, width, None if seed is None else np.random.default_rng(seed))
    for number, start in enumerate(windows.start.tolist()):
        assert len(set(text.passage[start : start + width].tolist())) == 1
        assert (windows.of_row[start : start + width] == number).all()
        assert windows.document[number] == text.document[start]
    lengths = np.diff(text.bounds)
    assert len(windows) == (lengths // width).sum()
    assert (windows.of_row >= 0).sum() == width * len(windows)


def test_left_over_rows_are_at_either_end() -> None:
    text = text_of([[0] * 10] * 50, Vocabulary(("a",)))
    first = divide(text, 8, np.random.default_rng(0)).start % 10
    assert set(first.tolist()) == {0, 2}
    assert set((divide(text, 8).start % 10).tolist()) == {0}


def test_peaks_are_the_largest_of_each_window() -> None:
    generator = np.random.default_rng(0)
    text = random_text(10)
    windows = divide(text, 9, generator)
    value = np.maximum(generator.normal(size=len(text)) - 1, 0)
    row = np.flatnonzero(value)
    found, peak = windows.peaks(row, value[row])
    expected = {number: value[start : start + 9].max() for number, start in enumerate(windows.start.tolist())}
    assert dict(zip(found.tolist(), peak.tolist(), strict=True)) == {n: v for n, v in expected.items() if v}
    assert np.array_equal(np.flatnonzero(windows.touched(row)), found)
    assert len(windows.peaks(row[:0], value[:0])[0]) == 0


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(MechlabError, match="width is not positive: 0"):
        divide(random_text(2), 0)
