"""Examples of a feature as other tools show them: lists of strings with a number for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechlab.features.contexts import context_at, peaks
from mechlab.features.index import FeatureIndex
from mechlab.features.text import Text


@dataclass(frozen=True)
class Example:
    """Consecutive tokens of one passage.

    Attributes:
        tokens: what they say; parts of one character are joined, and no entry is empty.
        values: activation on each, the largest where several were joined.
        peak: which of them the example was chosen for.
        row: that token's row in the text.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int
    row: int

    def rounded(self, digits: int) -> list[float]:
        """The values with so many decimals."""
        return [round(value, digits) for value in self.values]


class FeatureExamples:
    """Examples of one feature.

    Attributes:
        rows, values: where the feature is strongest in every passage in which it is active, strongest
            first, then in order of the text.
    """

    def __init__(self, index: FeatureIndex, feature: int, *, radius: int | None, seed: int = 0) -> None:
        """Find the feature's passages.

        Args:
            radius: tokens on either side of the one an example is chosen for; None for whole passages.
            seed: of the random choices, which depend on nothing else but the feature's number.
        """
        self.text = index.text
        self._row, self._value = index.entries(feature)
        self._radius = radius
        self._random = np.random.default_rng([seed, feature])
        row, value = peaks(index, feature)
        order = np.lexsort((row, -value))
        self.rows, self.values = row[order], value[order]

    def at(self, row: int) -> Example:
        """The example around a row."""
        start, stop = _window(self.text, row, self._radius)
        first, last = np.searchsorted(self._row, (start, stop))
        dense = np.zeros(stop - start)
        dense[self._row[first:last] - start] = self._value[first:last]
        strength, ids = dense.tolist(), self.text.tokens[start:stop].tolist()
        vocabulary = self.text.vocabulary
        if vocabulary.partial.keys().isdisjoint(ids):  # nothing to join, as nearly always
            texts = vocabulary.texts
            return Example(tuple(texts[id] or f"<{id}>" for id in ids), tuple(strength), row - start, row)
        tokens: list[str] = []
        values: list[float] = []
        peak = 0
        for piece in vocabulary.pieces(np.array(ids)):
            if piece.start <= row - start < piece.stop:
                peak = len(tokens)
            tokens.append(piece.text or f"<{ids[piece.start]}>")
            values.append(max(strength[piece.start : piece.stop]))
        return Example(tuple(tokens), tuple(values), peak, row)

    def top(self, count: int) -> list[Example]:
        """The strongest examples, one of a passage, strongest first."""
        return [self.at(int(row)) for row in self.rows[:count]]

    def between(self, low: float, high: float, count: int) -> list[Example]:
        """Random active tokens with ``low <= activation <= high``, in order of the text."""
        inside = np.flatnonzero((self._value >= low) & (self._value <= high))
        return [self.at(int(self._row[each])) for each in self._some(inside, count)]

    def ranked(self, first: int, last: int, count: int) -> list[Example]:
        """Random ones of the passages that rank from ``first`` to before ``last``, strongest first."""
        some = self._some(np.arange(first, min(last, len(self.rows))), count)
        return [self.at(int(self.rows[each])) for each in some]

    def anywhere(self, count: int) -> list[Example]:
        """Random passages, active or not, each around its strongest token or else its middle one."""
        bounds = self.text.bounds
        strongest = {int(self.text.passage[row]): int(row) for row in self.rows}
        some = self._some(np.arange(len(bounds) - 1), count)
        middles = (int(bounds[each] + bounds[each + 1]) // 2 for each in some)
        return [self.at(strongest.get(int(each), row)) for each, row in zip(some, middles, strict=True)]

    def silent(self, count: int) -> list[Example]:
        """Random passages in which the feature is not active, around the middle token."""
        bounds = self.text.bounds
        quiet = np.setdiff1d(np.arange(len(bounds) - 1), self.text.passage[self.rows])
        some = self._some(quiet, count)
        return [self.at(int(bounds[each] + bounds[each + 1]) // 2) for each in some]

    def _some(self, of: Int[np.ndarray, "_"], count: int) -> Int[np.ndarray, "_"]:
        if len(of) <= count:
            return of
        return np.sort(self._random.choice(of, count, replace=False))


def activation_histogram(values: Float[np.ndarray, "_"], bins: int = 50) -> tuple[list[int], list[float]]:
    """Counts and centres of bins of equal width from the smallest value to the largest; empty without any."""
    if not len(values):
        return [], []
    counts, edges = np.histogram(values, bins)
    return counts.tolist(), ((edges[:-1] + edges[1:]) / 2).tolist()


def strings(pairs: Sequence[tuple[str, float]], limit: int) -> tuple[list[str], list[float]]:
    """The first ``limit`` pairs, as two lists."""
    return [text for text, _ in pairs[:limit]], [float(value) for _, value in pairs[:limit]]


def _window(text: Text, row: int, radius: int | None) -> tuple[int, int]:
    """Rows around one, within its passage."""
    if radius is not None:
        context = context_at(text, row, radius)
        return context.start, context.stop
    low, high = text.bounds[text.passage[row] : text.passage[row] + 2].tolist()
    return low, high
