"""What a search for rules needs to know about a text before it looks at any feature.

Words are counted by what they say: ids with one text are one word here, filed under the first of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from mechlab.features.rules.atoms import Atom, Concept, Induction, Inside, Repeats, Spelling
from mechlab.features.rules.counting import add_classes, count_at, count_marks, count_near, list_near
from mechlab.features.rules.matching import Matcher
from mechlab.features.text import Text

OFFSETS = (0, -1, -2, 1)
"""Places, from a token, whose words are looked at."""
REACHES = np.array([2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 30, 50], np.int64)
"""How far before a token words are looked for."""
SCALARS: tuple[Atom, ...] = (Inside("quotes"), Inside("brackets"), Repeats(), Induction())
"""Atoms that have no words or numbers to choose."""
_OFFSETS = np.array(OFFSETS, np.int64)
_AFFIX, _FEWEST = 4, 3
_PATTERNS = (r"\s?[A-Z].*", r"\s?[0-9]+", r"\s?[a-z]+", r"\W+", r"\s?\w", r"\s.*", r"\S.*")


@dataclass(frozen=True, eq=False)
class Counts:
    """What stands on and around some rows.

    Attributes:
        at: how often each word stands at each of ``OFFSETS``.
        marks: on how many of the rows each of ``SCALARS`` holds.
        positions: number of the rows at each position.
        classes: number of the rows on a word of each class.
    """

    at: Int[np.ndarray, "offset word"]
    marks: Int[np.ndarray, "scalar"]
    positions: Int[np.ndarray, "position"]
    classes: Int[np.ndarray, "class"]

    def less(self, other: Counts) -> Counts:
        """Without the rows that are counted in ``other``."""
        return Counts(
            self.at - other.at,
            self.marks - other.marks,
            self.positions - other.positions,
            self.classes - other.classes,
        )

    def times(self, factor: int) -> Counts:
        """Of a sample, as if there were ``factor`` as many rows."""
        return Counts(self.at * factor, self.marks * factor, self.positions * factor, self.classes * factor)

    def at_least(self, other: Counts) -> Counts:
        """The larger of each two counts."""
        return Counts(
            np.maximum(self.at, other.at),
            np.maximum(self.marks, other.marks),
            np.maximum(self.positions, other.positions),
            np.maximum(self.classes, other.classes),
        )


class Ground:
    """Counts over one text, made once and shared by the searches for all features.

    Attributes:
        matcher: finds atoms in the text.
        words: the word of each row, by the first token id that says the same.
        classes: atoms that mean several words by their spelling or from a list.
    """

    def __init__(self, text: Text, concepts: Mapping[str, Collection[str]]) -> None:
        self.text = text
        self.matcher = Matcher(text, concepts)
        self.begin, self.end = self.matcher.tables.begin, self.matcher.tables.end
        self.size = len(text.vocabulary)
        self._first: dict[str, int] = {}
        texts = enumerate(text.vocabulary.texts)
        same = np.array([self._first.setdefault(said, token) for token, said in texts], np.int32)
        self.words: Int[np.ndarray, "row"] = same[text.tokens]
        every = np.arange(len(text), dtype=np.int32)
        self._marks = np.zeros(len(text), np.uint8)
        for which, atom in enumerate(SCALARS):
            self._marks |= self.matcher.holds(atom, every).astype(np.uint8) << np.uint8(which)
        self._position = self.matcher.tables.position
        self._last = int(text.position.max(initial=0))
        self._list_classes(concepts)
        self.all = self.count(every)
        self._all_near = self._count_near(every, np.arange(self.size), len(REACHES))

    def first_ids(self, words: Collection[str]) -> Int[np.ndarray, "word"]:
        """The ids that these words are counted under."""
        return np.array([self._first[word] for word in words if word in self._first], np.int64)

    def count(self, rows: Int[np.ndarray, "asked"]) -> Counts:
        """What stands on and around the rows."""
        at = count_at(self.words, self.begin, self.end, rows, _OFFSETS, self.size)
        marks, positions = count_marks(self._marks, self._position, rows, len(SCALARS), self._last)
        return Counts(at, marks, positions, self.by_class(at[0]))

    def near(self, rows: Int[np.ndarray, "asked"], reaches: int) -> Int[np.ndarray, "near"]:
        """Words, ascending, that stand before the rows within the first so many reaches."""
        found: np.ndarray = list_near(self.words, self.begin, rows, int(REACHES[reaches - 1]), self.size)
        return found

    def within(
        self, rows: Int[np.ndarray, "asked"] | None, near: Int[np.ndarray, "near"], reaches: int
    ) -> Int[np.ndarray, "near reach"]:
        """Before how many of the rows (None: all) words stand within each of the first so many reaches."""
        return self._all_near[near, :reaches] if rows is None else self._count_near(rows, near, reaches)

    def _count_near(
        self, rows: Int[np.ndarray, "asked"], near: Int[np.ndarray, "near"], reaches: int
    ) -> Int[np.ndarray, "near reach"]:
        found: np.ndarray = count_near(self.words, self.begin, rows, REACHES[:reaches], near, self.size)
        return found

    def _list_classes(self, concepts: Mapping[str, Collection[str]]) -> None:
        """Spellings that at least three words of the text share, the shortest of those that mean the same."""
        vocabulary, seen = self.text.vocabulary, np.unique(self.words)
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
        members = [(word, number) for number, words in enumerate(kept) for word in words]
        word, number = np.array(sorted(members), np.int32).reshape(-1, 2).T
        self._class_start = np.searchsorted(word, np.arange(self.size + 1))
        self._class_number = np.ascontiguousarray(number)

    def by_class(self, counts: Int[np.ndarray, "word"]) -> Int[np.ndarray, "class"]:
        """Counts of words as counts of classes."""
        start, number = self._class_start, self._class_number
        found: np.ndarray = add_classes(counts, start, number, len(self.classes))
        return found
