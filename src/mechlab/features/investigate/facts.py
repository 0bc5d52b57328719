"""Where atoms of rules hold on short passages, as bits of integers.

A student tests thousands of rules on a few hundred tokens every turn, so the rows on which an atom
holds are one Python integer, row i its bit i: a conjunction is one ``&``, counting errors one
``bit_count``. The meaning is that of ``mechlab.features.rules`` (a test compares with ``Matcher``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool

from mechlab.errors import MechlabError
from mechlab.features.rules import (
    Atom,
    Induction,
    Inside,
    Position,
    Repeats,
    Rule,
    Spelling,
    Token,
    Within,
)

Atoms = tuple[Atom, ...]
Hypothesis = tuple[Atoms, ...]
"""A rule without strengths: clauses, each a conjunction."""

# Atoms whose rows are remembered.
_KEPT = 4096
_QUOTES, _BRACKETS = '"“”', "()[]{}"


class Facts:
    """Passages of words, each starting at position 1, as if a BOS token came before.

    Attributes:
        n: rows (tokens) of all passages.
        full: the bits of all rows.
        words: word → bits of the rows that hold it.
        bounds: first row of every passage, and ``n`` at the end.
        positions: position → bits.
    """

    def __init__(self, passages: Iterable[Sequence[str]] = ()) -> None:
        self.n, self.full = 0, 0
        self.words: dict[str, int] = {}
        self.bounds = [0]
        self.positions: dict[int, int] = {}
        self._starts = 0
        self._flags = {"quotes": 0, "brackets": 0, "repeats": 0, "induction": 0}
        self._first: dict[int, int] = {}
        self._known: dict[Atom, int] = {}
        for passage in passages:
            self.add(passage)

    def add(self, passage: Sequence[str]) -> None:
        """One more passage. Does nothing with an empty one."""
        if not passage:
            return
        self._known.clear()
        self._first.clear()
        bit = 1 << self.n
        self._starts |= bit
        seen: set[str] = set()
        pairs: set[tuple[str, str]] = set()
        quoted, depth, before = False, 0, None
        words, flags = self.words, self._flags
        for position, word in enumerate(passage, 1):
            words[word] = words.get(word, 0) | bit
            self.positions[position] = self.positions.get(position, 0) | bit
            if word in seen:
                flags["repeats"] |= bit
            if before is not None:
                if (before, word) in pairs:
                    flags["induction"] |= bit
                pairs.add((before, word))
            seen.add(word)
            before = word
            marks = [mark for mark in word if mark in _QUOTES]
            if quoted and not marks:
                flags["quotes"] |= bit
            for mark in marks:
                quoted = mark == "“" or (mark == '"' and not quoted)
            brackets = [mark for mark in word if mark in _BRACKETS]
            if depth and not brackets:
                flags["brackets"] |= bit
            for mark in brackets:
                depth = depth + 1 if mark in "([{" else max(0, depth - 1)
            bit <<= 1
        self.n += len(passage)
        self.full = (1 << self.n) - 1
        self.bounds.append(self.n)

    def at(self, word: str, offset: int) -> int:
        """Rows whose token at ``offset`` is ``word``."""
        return self.moved(self.words.get(word, 0), offset)

    def moved(self, bits: int, offset: int) -> int:
        """Rows from which a row of ``bits`` lies at ``offset`` in the same passage."""
        if offset == 0 or not bits:
            return bits
        if offset < 0:
            return (bits << -offset) & self.full & ~self._early(-offset)
        return (bits & ~self._early(offset)) >> offset

    def _early(self, count: int) -> int:
        """The first ``count`` rows of every passage."""
        if count not in self._first:
            bits = 0
            for step in range(count):
                bits |= self._starts << step
            self._first[count] = bits & self.full
        return self._first[count]

    def bits(self, atom: Atom) -> int:
        """Rows on which an atom holds. MechlabError for a ``Concept``, which no student can know."""
        known = self._known.get(atom)
        if known is None:
            known = self._plain(atom)
            if atom.negated:
                known = self.full & ~known
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[atom] = known
        return known

    def _plain(self, atom: Atom) -> int:
        if isinstance(atom, Token):
            return self.moved(self._union(atom.words), atom.offset)
        if isinstance(atom, Within):
            bits, union = 0, self._union(atom.words)
            for distance in range(1, atom.reach + 1):
                bits |= self.moved(union, -distance)
            return bits
        if isinstance(atom, Spelling):
            return self._union(word for word in self.words if atom.test(word))
        if isinstance(atom, Position):
            return _union(
                bits
                for position, bits in self.positions.items()
                if atom.first <= position and (atom.last is None or position <= atom.last)
            )
        if isinstance(atom, Inside):
            return self._flags[atom.what]
        if isinstance(atom, Repeats):
            return self._flags["repeats"]
        if isinstance(atom, Induction):
            return self._flags["induction"]
        raise MechlabError("a student knows no lists of concepts", atom.name, "ask about words")

    def _union(self, words: Iterable[str]) -> int:
        return _union(self.words.get(word, 0) for word in words)

    def clause(self, atoms: Atoms) -> int:
        """Rows on which all atoms hold."""
        bits = self.full
        for atom in atoms:
            bits &= self.bits(atom)
        return bits

    def rule(self, hypothesis: Hypothesis) -> int:
        """Rows on which any clause holds."""
        return _union(self.clause(atoms) for atoms in hypothesis)


def hypothesis_of(rule: Rule) -> Hypothesis:
    """A rule's clauses without their strengths."""
    return tuple(clause.atoms for clause in rule.clauses)


def rows_of(bits: int, n: int) -> Bool[np.ndarray, "row"]:
    """Bits as an array of ``n`` booleans."""
    raw = np.frombuffer(bits.to_bytes((n + 7) // 8, "little"), np.uint8)
    found: np.ndarray = np.unpackbits(raw, count=n, bitorder="little").astype(bool)
    return found


def bits_of(rows: Bool[np.ndarray, "row"]) -> int:
    """The inverse of ``rows_of``."""
    return int.from_bytes(np.packbits(rows, bitorder="little").tobytes(), "little")


def _union(parts: Iterable[int]) -> int:
    bits = 0
    for part in parts:
        bits |= part
    return bits
