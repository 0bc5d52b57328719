"""Rules: explanations that predict activations, and read as English that parses back.

A rule is a disjunction of clauses, a clause a conjunction of atoms with the activation it predicts:

    fires (3.21) on ' Lily' or ' Lilly'; (1.4) on tokens that end in 'ing' and not inside quotes

On a token that several clauses match the largest prediction counts; where none does it is 0.
"or" stands only between the words of one atom, "and" between atoms, ";" between clauses.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from mechlab.errors import MechlabError
from mechlab.features.rules.atoms import (
    INDUCTION,
    INSIDES,
    REPEATS,
    SPELLINGS,
    Atom,
    Concept,
    Induction,
    Inside,
    Position,
    Repeats,
    Spelling,
    Token,
    Within,
    atom_from_dict,
    atom_to_dict,
    phrase,
)


@dataclass(frozen=True)
class Clause:
    """A conjunction: where all atoms hold, the activation is about ``strength``.

    Attributes:
        atoms: at least one.
        strength: activation predicted, > 0, rounded to 3 significant digits.

    Raises MechlabError for a clause without atoms and for a strength that is not positive and finite.
    """

    atoms: tuple[Atom, ...]
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.atoms:
            raise MechlabError("a clause has no atoms", None, "give at least one")
        rounded = float(f"{self.strength:.3g}")
        if not (math.isfinite(rounded) and rounded > 0):
            raise MechlabError("strength of a clause is out of range", self.strength, "give a number above 0")
        object.__setattr__(self, "strength", rounded)

    @property
    def complexity(self) -> float:
        """1 for every atom, and log2 of the number of its words where it has some."""
        return sum(1 + math.log2(len(getattr(atom, "words", "1"))) for atom in self.atoms)

    def sentence(self) -> str:
        """The clause in English, strength first."""
        said = (("not " if atom.negated else "") + phrase(atom) for atom in self.atoms)
        return f"({self.strength:g}) {' and '.join(said)}"


@dataclass(frozen=True)
class Rule:
    """A disjunction of clauses. MechlabError without any."""

    clauses: tuple[Clause, ...]

    def __post_init__(self) -> None:
        if not self.clauses:
            raise MechlabError("a rule has no clauses", None, "give at least one")

    @property
    def complexity(self) -> float:
        """Sum over its clauses."""
        return sum(clause.complexity for clause in self.clauses)

    def sentence(self) -> str:
        """The rule in English; ``parse_rule`` gives the very same rule back."""
        return "fires " + "; ".join(clause.sentence() for clause in self.clauses)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "clauses": [
                {"strength": clause.strength, "atoms": [atom_to_dict(atom) for atom in clause.atoms]}
                for clause in self.clauses
            ]
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Rule:
        """The inverse of ``to_dict``. MechlabError for values that are no rule."""
        try:
            return cls(
                tuple(
                    Clause(tuple(atom_from_dict(atom) for atom in clause["atoms"]), float(clause["strength"]))
                    for clause in values["clauses"]
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MechlabError("not a rule", values, "give what Rule.to_dict gave") from error


_WORD = r"'(?:[^'\\]|\\(?:[\\'nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))*'"
_WORDS = f"({_WORD}(?: or {_WORD})*)"
_STRENGTH = re.compile(r"\(([0-9.]+(?:e[+-][0-9]+)?)\) ")
_KINDS = {words: kind for kind, words in SPELLINGS.items()}

Build = Callable[[list[str], bool], Atom]
_PHRASES: list[tuple[re.Pattern[str], Build]] = [
    (re.compile(pattern), build)
    for pattern, build in (
        (f"on {_WORDS}", lambda found, negated: Token(_read(found[0]), 0, negated)),
        (
            f"right (after|before) {_WORDS}",
            lambda found, negated: Token(_read(found[1]), _offset(found[0], 1), negated),
        ),
        (
            rf"([0-9]+) tokens (after|before) {_WORDS}",
            lambda found, negated: Token(_read(found[2]), _offset(found[1], int(found[0])), negated),
        ),
        (
            rf"within ([0-9]+) tokens after {_WORDS}",
            lambda found, negated: Within(_read(found[1]), int(found[0]), negated),
        ),
        (
            f"on tokens that ({'|'.join(_KINDS)}) ({_WORD})",
            lambda found, negated: Spelling(_KINDS[found[0]], _read(found[1])[0], negated),
        ),
        (
            r"at positions from ([0-9]+)(?: to ([0-9]+))?",
            lambda found, negated: Position(int(found[0]), int(found[1]) if found[1] else None, negated),
        ),
        (f"inside ({'|'.join(INSIDES)})", lambda found, negated: Inside(found[0], negated)),
        (re.escape(REPEATS), lambda found, negated: Repeats(negated)),
        (re.escape(INDUCTION), lambda found, negated: Induction(negated)),
        (f"on words of the list ({_WORD})", lambda found, negated: Concept(_read(found[0])[0], negated)),
    )
]


def parse_rule(text: str) -> Rule:
    """The rule that a sentence states: ``parse_rule(rule.sentence()) == rule``.

    Raises MechlabError, with the place, for anything else.
    """
    if not text.startswith("fires "):
        _fail(text, 0, "a rule begins with 'fires'")
    clauses, at = [], len("fires ")
    while True:
        strength = _STRENGTH.match(text, at)
        if strength is None:
            _fail(text, at, "an activation like (1.5) comes before every clause")
        atoms, at = _atoms(text, strength.end())
        try:
            clauses.append(Clause(atoms, float(strength.group(1))))
        except ValueError:
            _fail(text, strength.start(), "that is not a number")
        if at == len(text):
            return Rule(tuple(clauses))
        if not text.startswith("; ", at):
            _fail(text, at, "clauses are divided by ';'")
        at += len("; ")


def _atoms(text: str, at: int) -> tuple[tuple[Atom, ...], int]:
    """The atoms from a place on, and where they end."""
    atoms: list[Atom] = []
    while True:
        negated = text.startswith("not ", at)
        at += len("not ") if negated else 0
        tried = ((pattern.match(text, at), build) for pattern, build in _PHRASES)
        said = next(((found, build) for found, build in tried if found), None)
        if said is None:
            _fail(text, at, "this says nothing that a rule can say")
        found, build = said
        atoms.append(build(list(found.groups()), negated))
        at = found.end()
        if not text.startswith(" and ", at):
            return tuple(atoms), at
        at += len(" and ")


def _read(words: str) -> tuple[str, ...]:
    try:
        return tuple(ast.literal_eval(found) for found in re.findall(_WORD, words))
    except SyntaxError as error:  # an escape beyond the last character
        raise MechlabError("not a rule", words, str(error)) from error


def _offset(side: str, count: int) -> int:
    return -count if side == "after" else count


def _fail(text: str, at: int, why: str) -> NoReturn:
    raise MechlabError("not a rule", text[at : at + 40] or "end of the sentence", why)
