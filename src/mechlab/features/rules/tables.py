"""What rules ask about every row of a text, found in one pass and kept.

All state restarts at each passage.
"""

from __future__ import annotations

import functools
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numba import njit

from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary

QUOTES = '"“”'
BRACKETS = "([{)]}"


class TextTables:
    """Tables of one text, each made when it is first asked for.

    Attributes:
        text: the text.
        tokens: its token ids, in memory.
        position: the position of each row.
        begin: first row of the passage of each row.
        end: the row after the last one of the passage of each row.
    """

    def __init__(self, text: Text) -> None:
        self.text = text
        # Compiled loops are compiled once more for a file, which cannot be written to.
        self.tokens: Int[np.ndarray, "row"] = np.array(text.tokens, np.int32)
        self.position: Int[np.ndarray, "row"] = text.position.astype(np.int32)
        bounds = text.bounds
        self.begin: Int[np.ndarray, "row"] = np.repeat(bounds[:-1], np.diff(bounds)).astype(np.int32)
        self.end: Int[np.ndarray, "row"] = np.repeat(bounds[1:], np.diff(bounds)).astype(np.int32)

    @functools.cached_property
    def count(self) -> Int[np.ndarray, "token"]:
        """Number of occurrences of every token id."""
        return np.bincount(self.text.tokens, minlength=len(self.text.vocabulary))

    @functools.cached_property
    def _by_token(self) -> tuple[Int[np.ndarray, "token_plus_1"], Int[np.ndarray, "row"]]:
        order = np.argsort(self.text.tokens, kind="stable").astype(np.int32)
        return np.concatenate([[0], np.cumsum(self.count)]), order

    def occurrences(self, ids: Int[np.ndarray, "word"]) -> Int[np.ndarray, "hit"]:
        """Rows, ascending, on which one of these token ids stands."""
        first, order = self._by_token
        rows = [order[first[token] : first[token + 1]] for token in ids.tolist()]
        if len(rows) == 1:
            return rows[0]
        return np.sort(np.concatenate(rows or [np.zeros(0, np.int32)]))

    @functools.cached_property
    def quotes(self) -> Bool[np.ndarray, "row"]:
        """True inside a quotation."""
        found: np.ndarray = _inside(
            self.text.tokens, self.text.starts, *_marks(self.text.vocabulary, QUOTES), True
        )
        return found

    @functools.cached_property
    def brackets(self) -> Bool[np.ndarray, "row"]:
        """True inside brackets."""
        found: np.ndarray = _inside(
            self.text.tokens, self.text.starts, *_marks(self.text.vocabulary, BRACKETS), False
        )
        return found

    @functools.cached_property
    def repeats(self) -> Bool[np.ndarray, "row"]:
        """True where the same token came earlier in the passage."""
        return _again(self.text.tokens.astype(np.int64), self.begin)

    @functools.cached_property
    def induction(self) -> Bool[np.ndarray, "row"]:
        """True where the previous token and this one came earlier in the passage as neighbours."""
        pair = self.text.tokens.astype(np.int64)
        pair[1:] += pair[:-1] * len(self.text.vocabulary)
        pair[self.text.starts] = -1 - np.arange(int(self.text.starts.sum()))
        return _again(pair, self.begin)


def _again(key: Int[np.ndarray, "row"], begin: Int[np.ndarray, "row"]) -> Bool[np.ndarray, "row"]:
    order = np.argsort(key, kind="stable")
    same = key[order[1:]] == key[order[:-1]]
    found = np.zeros(len(key), bool)
    found[order[1:]] = same & (order[:-1] >= begin[order[1:]])
    return found


def _marks(
    vocabulary: Vocabulary, marks: str
) -> tuple[Int[np.ndarray, "token_plus_1"], Int[np.ndarray, "mark"]]:
    """The marks that every token contains, in order: +1 opens, -1 closes, 0 does either in turn."""
    effect = {'"': 0, "“": 1, "”": -1} | dict.fromkeys("([{", 1) | dict.fromkeys(")]}", -1)
    found = [[effect[letter] for letter in text if letter in marks] for text in vocabulary.texts]
    first = np.concatenate([[0], np.cumsum([len(each) for each in found])]).astype(np.int64)
    return first, np.array([mark for each in found for mark in each], np.int8)


# numba compiles the plain function and cannot see through a run-time type check.
@njit(cache=True, nogil=True)
@no_type_check
def _inside(
    tokens: Shaped[np.ndarray, "row"],
    starts: Shaped[np.ndarray, "row"],
    first: Shaped[np.ndarray, "token_plus_1"],
    marks: Shaped[np.ndarray, "mark"],
    flat: bool,
) -> Shaped[np.ndarray, "row"]:
    """Depth of open marks as each row is read; ``flat`` marks do not nest."""
    found = np.zeros(len(tokens), np.bool_)
    depth = 0
    for row in range(len(tokens)):
        if starts[row]:
            depth = 0
        token = tokens[row]
        if first[token] == first[token + 1]:
            found[row] = depth > 0
        for place in range(first[token], first[token + 1]):
            if marks[place] == 0:
                depth = 0 if depth > 0 else 1
            elif marks[place] > 0:
                depth = 1 if flat else depth + 1
            else:
                depth = max(0, depth - 1)
    return found
