"""Texts made for a rule: the rule fires on one side and is silent on the other, for every atom."""

from __future__ import annotations

import numpy as np
import pytest

from mechlab.errors import MechlabError
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
from mechlab.features.scoring.rule_texts import rule_texts
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary

WORDS = Vocabulary((*(f" word{i}" for i in range(300)), " running", " eating", ' "', " (", " )", " odd"))
CONCEPTS = {"low": [f" word{i}" for i in range(3)]}


def corpus(seed: int = 0) -> Text:
    generator = np.random.default_rng(seed)
    return text_of([generator.integers(0, 302, 60) for _ in range(40)], WORDS)


ATOMS: dict[str, tuple[Atom, ...]] = {
    "token": (Token((" word7",)),),
    "never in the corpus": (Token((" odd",)),),
    "previous": (Token((" word1",)), Token((" word2", " word3"), -1)),
    "next": (Token((" word1",)), Token((" word2",), 1)),
    "far": (Token((" word5",), -3),),
    "unless": (Token((" word1", " word2")), Token((" word9",), -1, negated=True)),
    "within": (Token((" word4",)), Within((" word8",), 4)),
    "only within": (Within((" word8",), 5),),
    "ends": (Spelling("ends", "ing"),),
    "not spelt": (Spelling("contains", "word"), Spelling("ends", "1", negated=True)),
    "position": (Position(1, 3),),
    "late": (Token((" word1",)), Position(30, None)),
    "quotes": (Inside("quotes"),),
    "brackets": (Token((" word6",)), Inside("brackets")),
    "outside": (Token((" word6",)), Inside("quotes", negated=True)),
    "repeats": (Repeats(),),
    "new": (Spelling("starts", " word"), Repeats(negated=True)),
    "induction": (Induction(),),
    "concept": (Concept("low"),),
    "not concept": (Spelling("matches", " word[0-9]"), Concept("low", negated=True)),
}


@pytest.mark.parametrize("name", ATOMS)
def test_the_rule_fires_on_one_side_only(name: str) -> None:
    rule, text = Rule((Clause(ATOMS[name], 2.0),)), corpus()
    made = rule_texts(rule, text, 20, np.random.default_rng(1), concepts=CONCEPTS)
    assert (Matcher(made.positive, CONCEPTS).predict(rule)[made.fires] == 2.0).all()
    assert (Matcher(made.negative, CONCEPTS).predict(rule)[made.silent] == 0).all()
    assert len(made.positive) == len(made.negative)
    assert made.positive.passage[made.fires].tolist() == list(range(20))
    assert made.negative.passage[made.silent].tolist() == list(range(20))
    again = rule_texts(rule, text, 20, np.random.default_rng(1), concepts=CONCEPTS)
    assert (again.positive.tokens == made.positive.tokens).all()
    assert again.fires.tolist() == made.fires.tolist()


def test_clauses_take_turns_and_little_is_changed() -> None:
    rule = Rule((Clause((Token((" odd",)),), 1.0), Clause((Token((" word1",)), Token((" odd",), -1)), 3.0)))
    made = rule_texts(rule, corpus(), 30, np.random.default_rng(0))
    told = Matcher(made.positive).predict(rule)[made.fires]
    assert 5 < (told == 3.0).sum() < 25
    changed = (made.positive.tokens != made.negative.tokens).reshape(30, -1).sum(1)
    assert changed.max() <= 2


def test_refusals() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(MechlabError, match="no passage is as long"):
        rule_texts(Rule((Clause((Position(90),)),)), corpus(), 5, generator)
    never = Rule(
        (
            Clause(
                (Token((" word1",)), Token((" word1",), negated=True)),
            ),
        )
    )
    with pytest.raises(MechlabError, match="too few texts satisfy the rule: 0 of 5"):
        rule_texts(never, corpus(), 5, generator)
    always = Rule((Clause((Position(0),)),))
    with pytest.raises(MechlabError, match="too few texts"):
        rule_texts(always, corpus(), 5, generator)
