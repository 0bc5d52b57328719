"""What a rule can say about one token: the atoms of the grammar, each with its phrase in English.

An atom is true or false on every row of a text. What they mean on a row t of a passage:

- ``Token``: the token at t + offset, in the same passage, is one of the words.
- ``Within``: one of the ``reach`` tokens before t (t itself not among them) is one of the words.
- ``Spelling``: about the text of the token at t, its leading space included.
- ``Position``: the position, as the model saw it, lies from ``first`` to ``last``, both included.
- ``Inside``: a quotation or bracket opened earlier in the passage and is not closed yet. The marks
  themselves are not inside, nor is a token that contains one. A straight mark (") opens and closes in
  turn, “ opens and ” closes; brackets are ( [ { and ) ] }, counted by depth.
- ``Repeats``: the same token came earlier in the passage.
- ``Induction``: the token before and this one came earlier in the passage, as neighbours in that order.
- ``Concept``: the token is one of a named list of words.

Nothing reaches over the start of a passage; an atom that looks there is false, its negation true.
Words are texts of tokens, so that a rule means the same under every numbering of a vocabulary.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from mechlab.errors import MechlabError, near

SPELLINGS = {"starts": "start with", "ends": "end in", "contains": "contain", "matches": "match"}
INSIDES = ("quotes", "brackets")


def _words(words: tuple[str, ...]) -> None:
    if not words:
        raise MechlabError("an atom of a rule has no words", None, "give at least one word")
    if len(set(words)) != len(words):
        raise MechlabError("words of a rule repeat", ", ".join(map(repr, words)), "name each word once")


@dataclass(frozen=True)
class Token:
    """The token at ``offset`` from here is one of ``words`` (-1: the previous token, +1: the next)."""

    words: tuple[str, ...]
    offset: int = 0
    negated: bool = False
    atom: ClassVar[str] = "token"

    def __post_init__(self) -> None:
        _words(self.words)


@dataclass(frozen=True)
class Within:
    """One of ``words`` is among the ``reach`` tokens before. MechlabError for a reach below 1."""

    words: tuple[str, ...]
    reach: int
    negated: bool = False
    atom: ClassVar[str] = "within"

    def __post_init__(self) -> None:
        _words(self.words)
        if self.reach < 1:
            raise MechlabError("reach of a rule is too short", self.reach, "give 1 or more")


@dataclass(frozen=True)
class Spelling:
    """The token's text "starts" with, "ends" in, "contains" or (as a whole) "matches" ``text``.

    ``text`` is a regular expression for "matches". MechlabError for another kind, an empty text or
    an expression that is none.
    """

    kind: str
    text: str
    negated: bool = False
    atom: ClassVar[str] = "spelling"

    def __post_init__(self) -> None:
        if self.kind not in SPELLINGS:
            raise MechlabError("unknown kind of spelling", self.kind, near(self.kind, SPELLINGS))
        if not self.text:
            raise MechlabError("spelling of a rule is empty", None, "give at least one character")
        if self.kind == "matches":
            try:
                re.compile(self.text)
            except re.error as error:
                raise MechlabError("no regular expression", self.text, str(error)) from error

    def test(self, text: str) -> bool:
        """Whether a token with this text is meant, negation aside."""
        if self.kind == "starts":
            return text.startswith(self.text)
        if self.kind == "ends":
            return text.endswith(self.text)
        if self.kind == "contains":
            return self.text in text
        return re.fullmatch(self.text, text) is not None


@dataclass(frozen=True)
class Position:
    """The position lies from ``first`` to ``last`` (None: to the end). MechlabError when that is empty."""

    first: int
    last: int | None = None
    negated: bool = False
    atom: ClassVar[str] = "position"

    def __post_init__(self) -> None:
        if self.first < 0 or (self.last is not None and self.last < self.first):
            raise MechlabError(
                "positions of a rule are empty", f"{self.first} to {self.last}", "give 0 <= first <= last"
            )


@dataclass(frozen=True)
class Inside:
    """Inside "quotes" or "brackets". MechlabError for anything else."""

    what: str
    negated: bool = False
    atom: ClassVar[str] = "inside"

    def __post_init__(self) -> None:
        if self.what not in INSIDES:
            raise MechlabError("unknown surroundings", self.what, near(self.what, INSIDES))


@dataclass(frozen=True)
class Repeats:
    """The same token came earlier in the passage."""

    negated: bool = False
    atom: ClassVar[str] = "repeats"


@dataclass(frozen=True)
class Induction:
    """The previous token and this one came earlier in the passage, one right after the other."""

    negated: bool = False
    atom: ClassVar[str] = "induction"


@dataclass(frozen=True)
class Concept:
    """The token is a word of the list called ``name``."""

    name: str
    negated: bool = False
    atom: ClassVar[str] = "concept"


Atom = Token | Within | Spelling | Position | Inside | Repeats | Induction | Concept
ATOMS: dict[str, type[Atom]] = {
    each.atom: each for each in (Token, Within, Spelling, Position, Inside, Repeats, Induction, Concept)
}
REPEATS = "on tokens that came earlier in the passage"
INDUCTION = "at the end of a pair of tokens that came earlier in the passage"


def quote(text: str) -> str:
    """``text`` in single quotes; quotes, backslashes and what cannot be printed are escaped."""
    # Python's own quoting, made to choose single quotes by a double one that is cut away again.
    return "'" + repr('"' + text)[2:]


@functools.singledispatch
def phrase(atom: Atom) -> str:
    """An atom in English, negation aside; ``parse_rule`` reads it back."""
    raise MechlabError("not an atom", atom, "use the atoms of mechlab.features.rules")


@phrase.register
def _(atom: Token) -> str:
    words = _either(atom.words)
    if atom.offset == 0:
        return f"on {words}"
    side, count = ("after" if atom.offset < 0 else "before"), abs(atom.offset)
    return f"right {side} {words}" if count == 1 else f"{count} tokens {side} {words}"


@phrase.register
def _(atom: Within) -> str:
    return f"within {atom.reach} tokens after {_either(atom.words)}"


@phrase.register
def _(atom: Spelling) -> str:
    return f"on tokens that {SPELLINGS[atom.kind]} {quote(atom.text)}"


@phrase.register
def _(atom: Position) -> str:
    return f"at positions from {atom.first}" + ("" if atom.last is None else f" to {atom.last}")


@phrase.register
def _(atom: Inside) -> str:
    return f"inside {atom.what}"


@phrase.register
def _(atom: Repeats) -> str:
    return REPEATS


@phrase.register
def _(atom: Induction) -> str:
    return INDUCTION


@phrase.register
def _(atom: Concept) -> str:
    return f"on words of the list {quote(atom.name)}"


def _either(words: tuple[str, ...]) -> str:
    return " or ".join(map(quote, words))


def atom_to_dict(atom: Atom) -> dict[str, Any]:
    """Plain JSON values."""
    values = {field.name: getattr(atom, field.name) for field in fields(atom)}
    if "words" in values:
        values["words"] = list(values["words"])
    return {"atom": atom.atom, **values}


def atom_from_dict(values: dict[str, Any]) -> Atom:
    """The inverse of ``atom_to_dict``. MechlabError for an unknown kind or field."""
    rest = dict(values)
    name = rest.pop("atom", "")
    if name not in ATOMS:
        raise MechlabError("unknown atom", name, near(str(name), ATOMS))
    if "words" in rest:
        rest["words"] = tuple(rest["words"])
    try:
        return ATOMS[name](**rest)
    except TypeError as error:
        raise MechlabError("an atom of a rule has wrong fields", values, str(error)) from error
