"""The text that features live on: tokens in order, with their contexts and documents."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from mechlab.errors import MechlabError
from mechlab.features.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Text:
    """One row per token, in stream order.

    Attributes:
        tokens: token id of each row, int32. The BOS token is not among the rows.
        context: which forward pass a row came from; neighbouring rows with equal context are
            consecutive tokens of it.
        position: place of the token in its context, as the model saw it.
        document: document of the row.
        vocabulary: what the tokens say.

    Raises MechlabError for arrays of different lengths.
    """

    tokens: Int[np.ndarray, "row"]
    context: Int[np.ndarray, "row"]
    position: Int[np.ndarray, "row"]
    document: Int[np.ndarray, "row"]
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        lengths = {len(each) for each in (self.tokens, self.context, self.position, self.document)}
        if len(lengths) != 1:
            raise MechlabError("columns of the text differ in length", sorted(lengths), "one row per token")

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def starts(self) -> Bool[np.ndarray, "row"]:
        """True on the first row of every passage: of every run of equal context within one document."""
        first = np.ones(len(self), bool)
        first[1:] = self.context[1:] != self.context[:-1]
        first[1:] |= self.document[1:] != self.document[:-1]
        return first

    @functools.cached_property
    def passage(self) -> Int[np.ndarray, "row"]:
        """Number of the passage that each row lies in, from 0."""
        return (np.cumsum(self.starts) - 1).astype(np.int32)

    @functools.cached_property
    def bounds(self) -> Int[np.ndarray, "passage_plus_1"]:
        """First row of every passage, and the number of rows at the end."""
        return np.append(np.flatnonzero(self.starts), len(self)).astype(np.int64)

    def passages(self) -> list[str]:
        """What every passage says."""
        return [self.vocabulary.string(self.tokens[at:end]) for at, end in itertools.pairwise(self.bounds)]

    def select(self, keep: Bool[np.ndarray, "row"]) -> Text:
        """The rows where ``keep`` is true, in the same order. Keep whole passages."""
        return self._columns(keep)

    def cut(self, start: int, stop: int) -> Text:
        """Rows ``start`` to ``stop``, without a copy."""
        return self._columns(slice(start, stop))

    def _columns(self, which: Bool[np.ndarray, "row"] | slice) -> Text:
        tokens, context = self.tokens[which], self.context[which]
        return Text(tokens, context, self.position[which], self.document[which], self.vocabulary)


def text_of(
    passages: list[list[int]] | list[Int[np.ndarray, "_"]], vocabulary: Vocabulary, *, first: int = 0
) -> Text:
    """A text of passages given as token ids without BOS, each a document of its own, numbered from ``first``.

    Positions count from 1, as if a BOS token came before.
    """
    lengths = np.array([len(each) for each in passages], np.int64)
    tokens = np.concatenate([np.asarray(each, np.int32) for each in passages] or [np.zeros(0, np.int32)])
    document = np.repeat(np.arange(first, first + len(lengths)), lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Text(tokens, document, np.arange(len(tokens)) - starts + 1, document, vocabulary)
