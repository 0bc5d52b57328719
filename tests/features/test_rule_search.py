"""Rules found for features whose rule is known, and for noise."""

from __future__ import annotations

import numpy as np
import pytest

from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.planted.corpora import fable_text
from mechlab.features.planted.features import agreement
from mechlab.features.rules import Clause, Concept, Matcher, Rule, Token, explain_rules, parse_rule
from mechlab.features.rules.grounds import OFTEN
from mechlab.features.split import Split
from mechlab.features.text import Text

SENTENCES = (
    "fires (2) on ' Anna' or ' Sarah' or ' Paul'",
    "fires (2) right after ' the' and on ' market'",
    "fires (2) within 4 tokens after ' were'",
    "fires (2) at positions from 1 to 5",
    "fires (2) inside brackets",
    "fires (2) on tokens that came earlier in the passage and on tokens that start with ' b'",
    "fires (2) at the end of a pair of tokens that came earlier in the passage",
    "fires (2) on ' was' and not right after ' who'",
    "fires (2) on ' Monday' or ' Tuesday'; (2) right after ' the' and on ' market'",
    "fires (2) on ' the' or ' and' or ' a' and inside quotes",
)
_TEXT: list[Text] = []


def text() -> Text:
    if not _TEXT:
        _TEXT.append(fable_text(120_000)[0])
    return _TEXT[0]


def planted(sentences: tuple[str, ...], dropped: float = 0.0) -> tuple[FeatureIndex, Text]:
    """Features that obey these rules on half of the documents, and the other half."""
    learnt = Split().explains(text().document)
    half = text().select(learnt)
    matcher, generator = Matcher(half), np.random.default_rng(0)
    features = {
        number: matcher.predict(parse_rule(sentence))
        * generator.uniform(0.5, 1.5, len(half))
        * (generator.random(len(half)) >= dropped)
        for number, sentence in enumerate(sentences)
    }
    return index_of(half, features), text().select(~learnt)


@pytest.mark.parametrize(("dropped", "least"), [(0.0, 0.98), (0.1, 0.95)])
def test_planted_rules_are_found(dropped: float, least: float) -> None:
    index, rest = planted(SENTENCES, dropped)
    found = explain_rules(index)
    matcher = Matcher(rest)
    for number, sentence in enumerate(SENTENCES):
        true, got = matcher.rows(parse_rule(sentence))[0], matcher.rows(found[number])[0]
        assert len(true) > 50, sentence
        assert agreement(got, true) >= least, f"{sentence}: {found[number].sentence()}"
    if not dropped:
        assert found[0].clauses[0].strength == pytest.approx(2.0, abs=0.1)


def test_same_seed_same_rules_and_every_live_feature_has_one() -> None:
    index, _ = planted(SENTENCES[:3])
    gap = index_of(index.text, {0: index.dense(0).astype(float), 4: index.dense(1).astype(float)})
    found = explain_rules(gap)
    assert list(found) == [0, 4]
    assert found == explain_rules(gap)
    assert explain_rules(gap, features=[1, 4]) == {4: found[4]}


def test_noise_gets_a_rule_that_knows_nothing() -> None:
    _, rest = planted(SENTENCES[:1])
    learnt = text().select(Split().explains(text().document))
    generator = np.random.default_rng(1)
    noise = {number: (generator.random(len(learnt)) < 0.01).astype(float) for number in range(4)}
    for rule in explain_rules(index_of(learnt, noise)).values():
        rows = Matcher(rest).rows(rule)[0]
        truth = generator.random(len(rest)) < 0.01
        caught = truth[rows].sum() / truth.sum()
        false = (~truth)[rows].sum() / (~truth).sum()
        assert abs(caught - false) < 0.1, rule.sentence()


def test_a_feature_that_is_active_often_is_learnt_on_a_part() -> None:
    index, rest = planted(("fires (2) on ' the' or ',' or '.'",))
    assert index.active[0] > 2 * OFTEN
    (rule,) = explain_rules(index).values()
    assert rule.clauses[0].atoms == parse_rule(rule.sentence()).clauses[0].atoms
    true = Matcher(rest).rows(parse_rule("fires (2) on ' the' or ',' or '.'"))[0]
    assert agreement(Matcher(rest).rows(rule)[0], true) == 1


def test_lists_of_words_are_named() -> None:
    days = ["Mon", "Tues", "Wednes", "Thurs", "Fri", "Satur", "Sun"]
    listed = {"days": [f" {day}day" for day in days], "articles": [" a", " the"]}
    half = text().select(Split().explains(text().document))
    active = Matcher(half, listed).predict(Rule.from_dict(
        {"clauses": [{"strength": 1.0, "atoms": [{"atom": "concept", "name": "days"}]}]}
    ))  # fmt: skip
    (rule,) = explain_rules(index_of(half, {0: active}), concepts=listed).values()
    assert rule.clauses[0].atoms == (Concept("days"),)


def test_words_that_a_feature_promotes_are_tried() -> None:
    half = text().select(Split().explains(text().document))
    said = (" dog", " cat", " horse")
    active = Matcher(half).predict(Rule((Clause((Token(said, 1),)),)))
    noisy = np.where(np.random.default_rng(0).random(len(half)) < 0.003, 1.0, active)
    (rule,) = explain_rules(index_of(half, {0: noisy}), promoted={0: [*said, "no token"]}).values()
    assert {*rule.clauses[0].atoms[0].words} == {*said}  # type: ignore[union-attr]


def test_one_entry_is_enough() -> None:
    half = text().cut(0, 2000)
    active = np.zeros(2000)
    active[17] = 3.0
    (rule,) = explain_rules(index_of(half, {0: active})).values()
    assert 17 in Matcher(half).rows(rule)[0]
