"""Rules evaluated one row at a time, by definition; random texts and rules."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

import numpy as np

from mechlab.features.rules import (
    Atom,
    Clause,
    Concept,
    Induction,
    Inside,
    Position,
    Repeats,
    Rule,
    Spelling,
    Token,
    Within,
)
from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary

WORDS = ("a", " b", "c", '"', ' "Hi', "“", "”", "(", ")", "[x]", "ing", " b", "ä\n", ".")
"""" b" stands under two ids."""


def predict(rule: Rule, text: Text, concepts: Mapping[str, Collection[str]]) -> np.ndarray:
    found = np.zeros(len(text))
    for row in range(len(text)):
        for clause in rule.clauses:
            if all(holds(atom, text, row, concepts) != atom.negated for atom in clause.atoms):
                found[row] = max(found[row], clause.strength)
    return found


def holds(atom: Atom, text: Text, row: int, concepts: Mapping[str, Collection[str]]) -> bool:
    begin, end = row, row
    while not text.starts[begin]:
        begin -= 1
    while end + 1 < len(text) and not text.starts[end + 1]:
        end += 1
    said = [text.vocabulary[int(token)] for token in text.tokens[begin : end + 1]]
    at = row - begin
    match atom:
        case Token():
            return 0 <= at + atom.offset < len(said) and said[at + atom.offset] in atom.words
        case Within():
            return any(word in atom.words for word in said[max(0, at - atom.reach) : at])
        case Spelling():
            return atom.test(said[at])
        case Position():
            last = 10**9 if atom.last is None else atom.last
            return atom.first <= int(text.position[row]) <= last
        case Inside():
            return inside(atom.what, said[:at], said[at])
        case Repeats():
            ids = text.tokens[begin : row + 1].tolist()
            return ids[-1] in ids[:-1]
        case Induction():
            ids = text.tokens[begin : row + 1].tolist()
            return at > 0 and (ids[-2], ids[-1]) in itertools.pairwise(ids[:-1])
        case Concept():
            return said[at] in concepts[atom.name]


def inside(what: str, before: list[str], here: str) -> bool:
    if any(mark in here for mark in ('"“”' if what == "quotes" else "()[]{}")):
        return False
    open_now = 0
    for letter in "".join(before):
        if what == "quotes":
            open_now = {'"': 1 - open_now, "“": 1, "”": 0}.get(letter, open_now)
        else:
            open_now = max(0, open_now + (letter in "([{") - (letter in ")]}"))
    return open_now > 0


def random_text(generator: np.random.Generator, rows: int) -> Text:
    """Passages of random lengths; some documents hold several contexts."""
    context = np.sort(generator.integers(0, 2 + rows // 12, rows))
    document = context // 2
    position = np.arange(rows) - np.searchsorted(context, context) + int(generator.integers(0, 3))
    tokens = generator.integers(0, len(WORDS), rows).astype(np.int32)
    return Text(tokens, context, position, document, Vocabulary(WORDS))


def random_rule(generator: np.random.Generator, words: tuple[str, ...], concepts: list[str]) -> Rule:
    clauses = []
    for _ in range(int(generator.integers(1, 4))):
        atoms = tuple(random_atom(generator, words, concepts) for _ in range(int(generator.integers(1, 4))))
        clauses.append(Clause(atoms, float(np.exp(generator.normal(0, 4)))))
    return Rule(tuple(clauses))


def random_atom(generator: np.random.Generator, words: tuple[str, ...], concepts: list[str]) -> Atom:
    negated = bool(generator.integers(2))
    distinct = sorted(set(words))
    chosen = generator.choice(len(distinct), int(generator.integers(1, 5)), replace=False)
    some = tuple(distinct[place] for place in chosen.tolist())
    first = int(generator.integers(0, 5))
    makers = (
        lambda: Token(some, int(generator.integers(-3, 4)), negated),
        lambda: Within(some, int(generator.integers(1, 6)), negated),
        lambda: Spelling(
            str(generator.choice(["starts", "ends", "contains"])), some[0][: 1 + first] or "e", negated
        ),
        lambda: Spelling("matches", str(generator.choice([r"\s?[a-z]+", r"\W+", "'|\\\\"])), negated),
        lambda: Position(first, None if negated else first + int(generator.integers(0, 4)), negated),
        lambda: Inside(str(generator.choice(["quotes", "brackets"])), negated),
        lambda: Repeats(negated),
        lambda: Induction(negated),
        lambda: Concept(str(generator.choice(concepts)), negated),
    )
    return makers[int(generator.integers(len(makers)))]()
