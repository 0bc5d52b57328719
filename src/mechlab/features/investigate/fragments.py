"""Passages of a corpus, short enough to ask about: what students start from and are quizzed on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from mechlab.errors import MechlabError
from mechlab.features.investigate.facts import Facts
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary

WIDTH = 24
"""Tokens of a passage, at most."""

Passage = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Fragments:
    """Passages as token ids without BOS, each to be read on its own.

    Attributes:
        passages: none is empty.
        vocabulary: what the tokens say.
    """

    passages: tuple[Passage, ...]
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.passages)

    @functools.cached_property
    def text(self) -> Text:
        """The passages as a text of that many documents."""
        return text_of([list(each) for each in self.passages], self.vocabulary)

    @functools.cached_property
    def facts(self) -> Facts:
        """Where atoms hold on them; rows as in ``text``."""
        return Facts(words_of(each, self.vocabulary) for each in self.passages)

    @functools.cached_property
    def held(self) -> Int[np.ndarray, "token"]:
        """Token ids that occur, ascending."""
        return np.unique(self.text.tokens)

    def holding(self, rows: Bool[np.ndarray, "row"]) -> Int[np.ndarray, "hit"]:
        """Numbers of the passages that have a true row."""
        return np.unique(self.text.passage[np.flatnonzero(rows)])


def words_of(passage: Sequence[int], vocabulary: Vocabulary) -> list[str]:
    """The text of every token."""
    return [vocabulary.texts[token] for token in passage]


def fragments_of(text: Text, count: int, *, width: int = WIDTH, seed: int = 0) -> Fragments:
    """``count`` random passages of a text: stretches of ``width`` tokens, at least half as long at ends.

    Raises MechlabError when the text has fewer.
    """
    generator = np.random.default_rng(seed)
    bounds = text.bounds
    starts = [
        (start, min(start + width, stop))
        for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        for start in range(first, stop, width)
        if stop - start >= min(width // 2, stop - first)
    ]
    if len(starts) < count:
        raise MechlabError(
            "text is too short", f"{len(starts)} passages", f"give one of {count} times {width} tokens"
        )
    chosen = np.sort(generator.choice(len(starts), count, replace=False))
    passages = tuple(tuple(text.tokens[slice(*starts[int(each)])].tolist()) for each in chosen)
    return Fragments(passages, text.vocabulary)
