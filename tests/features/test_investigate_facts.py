"""A student's bits mean what the rules' own matcher says."""

from __future__ import annotations

import numpy as np
import pytest

from mechlab.errors import MechlabError
from mechlab.features.investigate.facts import Facts, bits_of, hypothesis_of, rows_of
from mechlab.features.rules import (
    Atom,
    Clause,
    Concept,
    Induction,
    Inside,
    Matcher,
    Position,
    Repeats,
    Rule,
    Spelling,
    Token,
    Within,
)
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary

WORDS = (" cat", " dog", " cats", "dog", '"', "“", "”", "(", ")", "[", '."', " (a)", " hot", ",", " it")


def random_text(generator: np.random.Generator) -> tuple[Text, list[list[str]]]:
    lengths = generator.integers(1, 14, size=int(generator.integers(1, 12)))
    passages = [generator.integers(len(WORDS), size=int(length)).tolist() for length in lengths]
    return text_of(passages, Vocabulary(WORDS)), [[WORDS[token] for token in each] for each in passages]


def random_atom(generator: np.random.Generator) -> Atom:
    negated = bool(generator.integers(2))
    words = tuple(generator.choice(np.array(WORDS), int(generator.integers(1, 4)), replace=False).tolist())
    kind = int(generator.integers(7))
    if kind == 0:
        return Token(words, int(generator.integers(-3, 3)), negated)
    if kind == 1:
        return Within(words, int(generator.integers(1, 6)), negated)
    if kind == 2:
        manners = (("starts", " c"), ("ends", "s"), ("contains", "o"), ("matches", r"\s?\w{3,}"))
        manner, text = manners[int(generator.integers(4))]
        return Spelling(manner, text, negated)
    if kind == 3:
        first = int(generator.integers(0, 6))
        return Position(first, None if generator.integers(2) else first + int(generator.integers(5)), negated)
    if kind == 4:
        return Inside(("quotes", "brackets")[int(generator.integers(2))], negated)
    return Repeats(negated) if kind == 5 else Induction(negated)


@pytest.mark.parametrize("seed", range(30))
def test_bits_are_the_matchers_rows(seed: int) -> None:
    generator = np.random.default_rng(seed)
    text, words = random_text(generator)
    facts, matcher = Facts(words), Matcher(text)
    for _ in range(40):
        clauses = tuple(
            Clause(tuple(random_atom(generator) for _ in range(int(generator.integers(1, 4)))))
            for _ in range(int(generator.integers(1, 3)))
        )
        rule = Rule(clauses)
        expected = np.zeros(len(text), bool)
        expected[matcher.rows(rule)[0]] = True
        assert np.array_equal(rows_of(facts.rule(hypothesis_of(rule)), facts.n), expected), rule.sentence()


def test_passages_may_come_one_by_one() -> None:
    rule = ((Token((" cat",)), Token((" it",), -1)), (Repeats(),))
    passages = [[" it", " cat"], [" cat", " cat"], [], [" cat"]]
    grown = Facts()
    for passage in passages:
        grown.add(passage)
        grown.rule(rule)
    assert grown.rule(rule) == Facts(passages).rule(rule) == 0b01010
    assert grown.bounds == [0, 2, 4, 5]


def test_bits_and_rows() -> None:
    rows = np.random.default_rng(0).random(77) < 0.5
    assert np.array_equal(rows_of(bits_of(rows), 77), rows)


def test_lists_of_concepts_are_unknown() -> None:
    with pytest.raises(MechlabError, match="knows no lists"):
        Facts([["a"]]).bits(Concept("animal"))
