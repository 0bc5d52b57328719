"""Windows: pieces of equal length, the items on which an explanation is tested.

A window never crosses a context. What is left over at the end of a context is no window:
windows of unequal length would let a predictor gain from length alone, since a longer
piece is likelier both to hold the feature and to trip any rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError
from mechlab.features.token_rows import Rows, context_starts

WIDTH = 32


@dataclass(frozen=True)
class Windows:
    """A division of rows into windows.

    Attributes:
        of_row: the window of each row; -1 for rows left over.
        document: the document of each window.
        width: tokens per window.
    """

    of_row: Int[np.ndarray, "row"]
    document: Int[np.ndarray, "window"]
    width: int

    def __len__(self) -> int:
        return len(self.document)

    def touched(self, rows: Int[np.ndarray, "hit"]) -> Bool[np.ndarray, "window"]:
        """True for every window that holds at least one of ``rows``."""
        found = np.zeros(len(self) + 1, bool)  # the last place collects left-over rows (-1)
        found[self.of_row[rows]] = True
        return found[:-1]

    def peak(
        self, rows: Int[np.ndarray, "hit"], values: Float[np.ndarray, "hit"]
    ) -> Float[np.ndarray, "window"]:
        """Largest of ``values`` (≥ 0) in every window; 0 where there is none."""
        found = np.zeros(len(self) + 1)
        np.maximum.at(found, self.of_row[rows], values)
        return found[:-1]


def divide(rows: Rows, width: int = WIDTH) -> Windows:
    """Divide every context into windows of ``width`` tokens. MechlabError for a width below 1."""
    if width < 1:
        raise MechlabError("window width is not positive", width, "give at least 1 token")
    starts = np.flatnonzero(context_starts(rows.context))
    lengths = np.diff(np.append(starts, len(rows)))
    whole = lengths // width
    within = np.arange(len(rows)) - np.repeat(starts, lengths)
    before = np.cumsum(whole) - whole
    of_row = np.repeat(before, lengths) + within // width
    of_row[within // width >= np.repeat(whole, lengths)] = -1
    return Windows(of_row, np.repeat(rows.document[starts], whole), width)
