"""Where rules match a text, and what they predict there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mechlab.errors import MechlabError, near
from mechlab.features.rules.atoms import (
    Atom,
    Concept,
    Induction,
    Inside,
    Position,
    Repeats,
    Spelling,
    Token,
    Within,
)
from mechlab.features.rules.counting import bits_within, rows_after, stands, stands_within
from mechlab.features.rules.grammar import Clause, Rule
from mechlab.features.rules.tables import TextTables
from mechlab.features.text import Text

KEPT = 4096
"""Spellings and lists whose token ids are remembered."""


class Matcher:
    """Finds the rows of one text that rules match; the tables are made once for all of them.

    A clause is matched from its rarest atom: that one gives rows, the others are tested there only.

    Args:
        text: the text.
        concepts: named lists of words, for rules that name them.
    """

    def __init__(self, text: Text, concepts: Mapping[str, Collection[str]] | None = None) -> None:
        self.text = text
        self.concepts = dict(concepts or {})
        self.tables = TextTables(text)
        self._known: dict[Atom, Int[np.ndarray, "word"]] = {}

    def rows(self, rule: Rule) -> tuple[Int[np.ndarray, "hit"], Float[np.ndarray, "hit"]]:
        """Rows (ascending) that a clause matches, and the largest activation predicted for each.

        Raises MechlabError for a concept that was not given.
        """
        found = [self.clause_rows(clause) for clause in rule.clauses]
        if len(found) == 1:
            return found[0], np.full(len(found[0]), rule.clauses[0].strength)
        rows, place = np.unique(np.concatenate(found), return_inverse=True)
        strength = np.repeat([clause.strength for clause in rule.clauses], [len(each) for each in found])
        predicted = np.zeros(len(rows))
        np.maximum.at(predicted, place, strength)
        return rows, predicted

    def predict(self, rule: Rule) -> Float[np.ndarray, "row"]:
        """The activation predicted on every row, 0 where the rule is silent. Errors as for ``rows``."""
        predicted = np.zeros(len(self.text))
        rows, strength = self.rows(rule)
        predicted[rows] = strength
        return predicted

    def clause_rows(self, clause: Clause) -> Int[np.ndarray, "hit"]:
        """Rows, ascending, on which all atoms of a clause hold. Errors as for ``rows``."""
        first = min(clause.atoms, key=self._bound)
        rows = self.atom_rows(first)
        for atom in clause.atoms:
            if atom is not first:
                rows = rows[self.holds(atom, rows)]
        return rows

    def atom_rows(self, atom: Atom) -> Int[np.ndarray, "hit"]:
        """Rows, ascending, on which an atom holds. Errors as for ``rows``."""
        tables = self.tables
        if isinstance(atom, Position | Inside | Repeats | Induction):
            return np.flatnonzero(self._everywhere(atom) != atom.negated).astype(np.int32)
        if atom.negated:
            every = np.arange(len(self.text), dtype=np.int32)
            holding: np.ndarray = every[self.holds(atom, every)]
            return holding
        rows: np.ndarray = tables.occurrences(self._ids(atom))
        if isinstance(atom, Token) and atom.offset:
            here = rows - atom.offset
            rows = here[(here >= tables.begin[rows]) & (here < tables.end[rows])]
        elif isinstance(atom, Within):
            rows = rows_after(rows, tables.end, atom.reach)
        return rows

    def near_words(self, atom: Within, rows: Int[np.ndarray, "asked"]) -> UInt8[np.ndarray, "asked"]:
        """Which of the words of an atom (a bit for each of at most 8) come before each of these rows."""
        bits = np.zeros(len(self.text.vocabulary), np.uint8)
        for number, word in enumerate(atom.words):
            bits[self.text.vocabulary.ids((word,))] |= np.uint8(1 << number)
        found: np.ndarray = bits_within(self.tables.tokens, self.tables.begin, rows, atom.reach, bits)
        return found

    def holds(self, atom: Atom, rows: Int[np.ndarray, "asked"]) -> Bool[np.ndarray, "asked"]:
        """Whether an atom, its negation heeded, holds on each of these rows. Errors as for ``rows``."""
        found = self._holds(atom, rows)
        return ~found if atom.negated else found

    def _holds(self, atom: Atom, rows: Int[np.ndarray, "asked"]) -> Bool[np.ndarray, "asked"]:
        tables = self.tables
        found: np.ndarray
        match atom:
            case Position():
                position = tables.position[rows]
                found = (position >= atom.first) & (atom.last is None or position <= atom.last)
            case Inside() | Repeats() | Induction():
                found = self._everywhere(atom)[rows]
            case Within():
                found = stands_within(tables.tokens, tables.begin, rows, atom.reach, self._meant(atom))
            case _:
                offset = atom.offset if isinstance(atom, Token) else 0
                found = stands(tables.tokens, tables.begin, tables.end, rows, offset, self._meant(atom))
        return found

    def _everywhere(self, atom: Position | Inside | Repeats | Induction) -> Bool[np.ndarray, "row"]:
        """Whether an atom holds, negation aside, on every row."""
        match atom:
            case Position():
                position = self.tables.position
                found: np.ndarray = position >= atom.first
                return found if atom.last is None else found & (position <= atom.last)
            case Inside():
                return self.tables.quotes if atom.what == "quotes" else self.tables.brackets
            case Repeats():
                return self.tables.repeats
            case _:
                return self.tables.induction

    def _bound(self, atom: Atom) -> int:
        """A number of rows that an atom hardly exceeds, cheaply."""
        if atom.negated or not isinstance(atom, Token | Within | Spelling | Concept):
            return len(self.text)
        count = int(self.tables.count[self._ids(atom)].sum())
        return count * atom.reach if isinstance(atom, Within) else count

    def _meant(self, atom: Token | Within | Spelling | Concept) -> Bool[np.ndarray, "token"]:
        """Which of all tokens an atom means."""
        meant = np.zeros(len(self.text.vocabulary), np.bool_)
        meant[self._ids(atom)] = True
        return meant

    def _ids(self, atom: Token | Within | Spelling | Concept) -> Int[np.ndarray, "word"]:
        """Token ids that an atom means."""
        if isinstance(atom, Token | Within):
            return self.text.vocabulary.ids(atom.words)
        known = replace(atom, negated=False)
        if known not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[known] = self._find(known)
        return self._known[known]

    def _find(self, atom: Spelling | Concept) -> Int[np.ndarray, "word"]:
        vocabulary = self.text.vocabulary
        if isinstance(atom, Spelling):
            tests = (token for token, text in enumerate(vocabulary.texts) if atom.test(text))
            return np.fromiter(tests, np.int64)
        if atom.name not in self.concepts:
            raise MechlabError("no such list of words", atom.name, near(atom.name, self.concepts))
        return vocabulary.ids(self.concepts[atom.name])
