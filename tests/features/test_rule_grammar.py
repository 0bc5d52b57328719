"""Rules as sentences, as plain values, and what is no rule."""

from __future__ import annotations

import json

import numpy as np
import pytest

from features.naive_rules import random_rule
from mechlab.errors import MechlabError
from mechlab.features.rules import (
    Clause,
    Inside,
    Position,
    Rule,
    Spelling,
    Token,
    Within,
    parse_rule,
)

HARD = (
    "",
    "'",
    '"',
    "\\",
    "\\'",
    "\n",
    "\t\r",
    "\x00",
    "\u2028",
    "\ud800",
    "🦊",
    " or ",
    "' or '",
    " and not ",
    "; (1) on 'x'",
    ", ",
    "é",
    "e\u0301",
    "{}",
    "\\n",
)


@pytest.mark.parametrize("seed", range(4))
def test_sentences_and_plain_values_read_back(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(250):
        rule = random_rule(generator, HARD, ["names", "it's", "a or b\n"])
        assert parse_rule(rule.sentence()) == rule
        assert "\n" not in rule.sentence()
        assert Rule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_a_sentence_is_english() -> None:
    rule = Rule(
        (
            Clause((Token((" Lily", " Lilly")),), 3.2144),
            Clause((Spelling("ends", "ing"), Token((" was",), -1), Inside("quotes", True)), 1234.0),
            Clause((Within((" not",), 5), Position(3, 7, True), Token((".",), 2)), 1e-7),
        )
    )
    assert rule.sentence() == (
        "fires (3.21) on ' Lily' or ' Lilly'; "
        "(1230) on tokens that end in 'ing' and right after ' was' and not inside quotes; "
        "(1e-07) within 5 tokens after ' not' and not at positions from 3 to 7 and 2 tokens before '.'"
    )
    assert rule.complexity == pytest.approx(2 + 3 + 3)


@pytest.mark.parametrize(
    ("sentence", "why"),
    [
        ("", "begins with 'fires'"),
        ("fires on 'a'", "comes before every clause"),
        ("fires (1.5)", "comes before every clause"),
        ("fires (1.5) ", "nothing that a rule can say"),
        ("fires (1.2.3) on 'a'", "not a number"),
        ("fires (0) on 'a'", "out of range"),
        ("fires (1) on 'a", "nothing that a rule can say"),
        ("fires (1) on 'a' or", "divided by ';'"),
        ("fires (1) on 'a'; ", "comes before every clause"),
        ("fires (1) on 'a' and the moon", "nothing that a rule can say: the moon"),
        ("fires (1) on 'a' or 'a'", "words of a rule repeat"),
        ("fires (1) on tokens that match '('", "no regular expression"),
        (r"fires (1) on '\U00110000'", "not a rule"),
        ("fires (1) on 'a'.", "divided by ';'"),
    ],
)
def test_other_sentences_are_refused(sentence: str, why: str) -> None:
    with pytest.raises(MechlabError) as caught:
        parse_rule(sentence)
    assert "\n" not in str(caught.value)
    assert why.split(":")[0] in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Token(()),
        lambda: Within(("a",), 0),
        lambda: Spelling("begins", "a"),
        lambda: Spelling("ends", ""),
        lambda: Position(-1),
        lambda: Position(3, 2),
        lambda: Inside("quote"),
        lambda: Clause((), 1.0),
        lambda: Clause((Inside("quotes"),), float("nan")),
        lambda: Clause((Inside("quotes"),), -1.0),
        lambda: Clause((Inside("quotes"),), 1.7976931348623157e308),
        lambda: Rule(()),
        lambda: Rule.from_dict({}),
        lambda: Rule.from_dict({"clauses": [{"strength": 1, "atoms": [{"atom": "tokens"}]}]}),
        lambda: Rule.from_dict({"clauses": [{"strength": 1, "atoms": [{"atom": "token", "x": 1}]}]}),
    ],
)
def test_rules_that_mean_nothing_are_refused(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MechlabError):
        build()
