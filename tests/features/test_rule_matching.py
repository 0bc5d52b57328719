"""Where rules match: against an evaluator that reads one row at a time, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from features.naive_rules import WORDS, predict, random_rule, random_text
from mechlab.errors import MechlabError
from mechlab.features.rules import Clause, Concept, Matcher, Rule, Token, parse_rule
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary

CONCEPTS = {"letters": ["a", " b", "c"], "nothing": [], "unseen": ["zebra", "."]}


@pytest.mark.parametrize("seed", range(6))
def test_same_as_row_by_row(seed: int) -> None:
    generator = np.random.default_rng(seed)
    text = random_text(generator, int(generator.integers(1, 90)))
    matcher = Matcher(text, CONCEPTS)
    for _ in range(60):
        rule = random_rule(generator, (*WORDS, "unseen"), list(CONCEPTS))
        expected = predict(rule, text, CONCEPTS)
        np.testing.assert_array_equal(matcher.predict(rule), expected, err_msg=rule.sentence())
        rows, strength = matcher.rows(rule)
        np.testing.assert_array_equal(rows, np.flatnonzero(expected))
        np.testing.assert_array_equal(strength, expected[rows])


@pytest.mark.parametrize(
    ("sentence", "rows"),
    [
        ("fires (1) on 'the'", [0, 4, 9]),
        ("fires (1) right after 'the'", [1, 5, 10]),
        ("fires (1) right before 'cat'", [0, 9]),
        ("fires (1) within 2 tokens after 'the'", [1, 2, 5, 6, 10, 11]),
        ("fires (1) inside quotes", [4, 5]),
        ("fires (1) on tokens that came earlier in the passage", [4, 6, 7]),
        ("fires (1) at positions from 1 to 1", [0, 8]),
        ("fires (1) at positions from 8", [7]),
        ("fires (1) not right after 'the' and on 'cat' or 'dog'", [11]),
    ],
)
def test_by_hand(sentence: str, rows: list[int]) -> None:
    said = [["the", "cat", "said", '"', "the", "dog", '"', "said"], ["a", "the", "cat", "dog"]]
    words = tuple(sorted({word for passage in said for word in passage}))
    text = text_of([[words.index(word) for word in passage] for passage in said], Vocabulary(words))
    assert Matcher(text).rows(parse_rule(sentence))[0].tolist() == rows


def test_empty_text_and_words_without_id() -> None:
    nowhere = Matcher(text_of([], Vocabulary(("a",))))
    assert len(nowhere.predict(parse_rule("fires (1) not on 'a'; (2) within 3 tokens after 'a'"))) == 0
    text = text_of([[0, 0]], Vocabulary(("a",)))
    assert Matcher(text).predict(Rule((Clause((Token(("b",)),)),))).tolist() == [0, 0]


def test_unknown_concept_is_an_error() -> None:
    text = text_of([[0]], Vocabulary(("a",)))
    with pytest.raises(MechlabError, match="did you mean names"):
        Matcher(text, {"names": ["a"]}).rows(Rule((Clause((Concept("name"),)),)))
