"""What a search for rules needs to know about a text before it looks at any feature.

Words are counted by what they say: ids with one text are one word here, filed under the first of them.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Int

from mechlab.features.rules.atoms import Atom, Concept, Induction, Inside, Repeats, Spelling
from mechlab.features.rules.counting import count_at, count_within
from mechlab.features.rules.matching import Matcher
from mechlab.features.text import Text

OFFSETS = (0, -1, -2, 1)
"""Places, from a token, whose words are looked at."""
REACHES = np.array([2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 30, 50], np.int64)
"""How far before a token words are looked for."""
SCALARS: tuple[Atom, ...] = (Inside("quotes"), Inside("brackets"), Repeats(), Induction())
"""Atoms that have no words or numbers to choose."""
_AFFIX, _FEWEST = 4, 3
_PATTERNS = (r"\s?[A-Z].*", r"\s?[0-9]+", r"\s?[a-z]+", r"\W+", r"\s?\w", r"\s.*", r"\S.*")


class Ground:
    """Counts over one text, made once and shared by the searches for all features.

    Attributes:
        matcher: finds atoms in the text.
        words: the word of each row, by the first token id that says the same.
        classes: atoms that mean several words by their spelling or from a list.
        class_words, class_start: the words of each, concatenated.
    """

    def __init__(self, text: Text, concepts: Mapping[str, Collection[str]]) -> None:
        self.text = text
        self.matcher = Matcher(text, concepts)
        self.begin, self.end = self.matcher.tables.begin, self.matcher.tables.end
        self.size = len(text.vocabulary)
        self._first: dict[str, int] = {}
        texts = enumerate(text.vocabulary.texts)
        same = np.array([self._first.setdefault(said, token) for token, said in texts])
        self.words: Int[np.ndarray, "row"] = same.astype(np.int32)[text.tokens]
        self.masks = [self.matcher.holds(atom, self.every) for atom in SCALARS]
        self._at_all: dict[int, Int[np.ndarray, "word"]] = {}
        self._list_classes(concepts)

    def first_ids(self, words: Collection[str]) -> Int[np.ndarray, "word"]:
        """The ids that these words are counted under."""
        return np.array([self._first[word] for word in words if word in self._first], np.int64)

    @functools.cached_property
    def every(self) -> Int[np.ndarray, "row"]:
        """All rows."""
        return np.arange(len(self.text), dtype=np.int32)

    def at(self, rows: Int[np.ndarray, "asked"] | None, offset: int) -> Int[np.ndarray, "word"]:
        """How often each word stands at an offset from the rows (None: from all)."""
        if rows is None:
            if offset not in self._at_all:
                self._at_all[offset] = self.at(self.every, offset)
            return self._at_all[offset]
        found: np.ndarray = count_at(self.words, self.begin, self.end, rows, offset, self.size)
        return found

    def within(self, rows: Int[np.ndarray, "asked"] | None, reaches: int) -> Int[np.ndarray, "reach word"]:
        """Before how many of the rows each word stands within each of the first so many reaches."""
        if rows is None:
            return self._within_all[:reaches]
        found: np.ndarray = count_within(self.words, self.begin, rows, REACHES[:reaches], self.size)
        return found

    def scalar(self, rows: Int[np.ndarray, "asked"] | None, which: int) -> int:
        """On how many of the rows one of ``SCALARS`` holds."""
        mask = self.masks[which]
        return int(mask.sum() if rows is None else mask[rows].sum())

    def positions(self, rows: Int[np.ndarray, "asked"] | None) -> Int[np.ndarray, "position"]:
        """Number of the rows at each position."""
        position = self._position if rows is None else self._position[rows]
        return np.bincount(position, minlength=self._last + 1)

    @functools.cached_property
    def _within_all(self) -> Int[np.ndarray, "reach word"]:
        return self.within(self.every, len(REACHES))

    @functools.cached_property
    def _position(self) -> Int[np.ndarray, "row"]:
        return self.text.position.astype(np.int32)

    @functools.cached_property
    def _last(self) -> int:
        return int(self.text.position.max(initial=0))

    def _list_classes(self, concepts: Mapping[str, Collection[str]]) -> None:
        """Spellings that at least three words of the text share, the shortest of those that mean the same."""
        vocabulary, seen = self.text.vocabulary, np.flatnonzero(self.at(None, 0))
        named: dict[Atom, list[int]] = {Concept(name): [] for name in concepts}
        listed = {name: set(words) for name, words in concepts.items()}
        patterns = [Spelling("matches", pattern) for pattern in _PATTERNS]
        for word in seen.tolist():
            said = vocabulary[word]
            spellings: list[Atom] = [Spelling("contains", letter) for letter in dict.fromkeys(said.strip())]
            for length in range(1, _AFFIX + 1):
                if length < len(said):
                    spellings.append(Spelling("ends", said[-length:]))
                space = len(said) - len(said.lstrip())
                if space + length < len(said):
                    spellings.append(Spelling("starts", said[: space + length]))
            spellings += [pattern for pattern in patterns if pattern.test(said)]
            spellings += [Concept(name) for name, words in listed.items() if said in words]
            for atom in spellings:
                named.setdefault(atom, []).append(word)
        kept: dict[tuple[int, ...], Atom] = {}
        for atom, words in named.items():
            if len(words) >= _FEWEST and len(words) < len(seen):
                kept.setdefault(tuple(words), atom)
        self.classes = tuple(kept.values())
        lengths = [len(words) for words in kept]
        self.class_start = np.cumsum([0, *lengths])[:-1]
        self.class_words = np.array([word for words in kept for word in words], np.int64)

    def by_class(self, counts: Int[np.ndarray, "word"]) -> Int[np.ndarray, "class"]:
        """Counts of words as counts of classes."""
        if not self.classes:
            return np.zeros(0, np.int64)
        return np.add.reduceat(counts[self.class_words], self.class_start)
