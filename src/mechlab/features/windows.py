"""Windows: pieces of equal length, the items on which explanations are tested.

A window never crosses a passage. What is left over of a passage is no window: windows of
unequal length would let a predictor gain from length alone, since a longer piece is likelier
both to hold the feature and to trip any rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError
from mechlab.features.text import Text

WIDTH = 32


@dataclass(frozen=True, eq=False)
class Windows:
    """A division of a text into windows.

    Attributes:
        start: first row of each window, ascending.
        document: document of each window.
        of_row: window of each row; -1 for rows left over.
        width: tokens per window.
    """

    start: Int[np.ndarray, "window"]
    document: Int[np.ndarray, "window"]
    of_row: Int[np.ndarray, "row"]
    width: int

    def __len__(self) -> int:
        return len(self.start)

    def peaks(
        self, row: Int[np.ndarray, "entry"], value: Float[np.ndarray, "entry"]
    ) -> tuple[Int[np.ndarray, "active"], Float[np.ndarray, "active"]]:
        """Windows that hold one of ``row`` (ascending), ascending, and the largest of their values."""
        window = self.of_row[row]
        inside = window >= 0
        if not inside.all():
            window, value = window[inside], value[inside]
        if not len(window):
            return window, value
        first = np.flatnonzero(np.append(True, window[1:] != window[:-1]))
        return window[first], np.maximum.reduceat(value, first)

    def touched(self, row: Int[np.ndarray, "entry"]) -> Bool[np.ndarray, "window"]:
        """True for every window that holds one of ``row``."""
        found = np.zeros(len(self) + 1, bool)  # the last place collects left-over rows (-1)
        found[self.of_row[row]] = True
        return found[:-1]


def divide(text: Text, width: int = WIDTH, generator: np.random.Generator | None = None) -> Windows:
    """Divide every passage into windows of ``width`` tokens.

    Args:
        generator: decides for each passage whether the rows left over are at its end or at its
            beginning, so that neither end escapes being tested; without one, at its end.

    Raises MechlabError for a width below 1.
    """
    if width < 1:
        raise MechlabError("window width is not positive", width, "give at least 1 token")
    lengths = np.diff(text.bounds)
    whole = lengths // width
    skip = np.zeros(len(lengths), np.int64)
    if generator is not None:
        skip = (lengths % width) * generator.integers(0, 2, len(lengths))
    first = text.bounds[:-1] + skip
    nth = np.arange(int(whole.sum())) - np.repeat(np.cumsum(whole) - whole, whole)
    start = np.repeat(first, whole) + nth * width
    of_row = np.full(len(text), -1, np.int32)
    of_row[(start[:, None] + np.arange(width)).ravel()] = np.repeat(np.arange(len(start)), width)
    return Windows(start, text.document[start], of_row, width)
