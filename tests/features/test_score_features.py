"""The front door: oracles, controls, refusals, missing answers, artifacts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from features.scored_features import KINDS, NOISE, RULES, VOCABULARY, halves, random_text, true_rules
from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation, Explanations, rule_explanations
from mechlab.features.index import index_of
from mechlab.features.rules import Clause, Matcher, Rule, Token
from mechlab.features.scoring.detection import detection_items
from mechlab.features.scoring.held import hold
from mechlab.features.scoring.items import Items, Question
from mechlab.features.scoring.rules import RuleJudge
from mechlab.features.scoring.score import SCORERS, score_features
from mechlab.features.scoring.scorecard import Scorecard, load_scores, save_scores
from mechlab.features.text import Text

EXPLAINED, HELD = halves()
TRUE = true_rules(HELD, tuple(np.unique(EXPLAINED.text.document).tolist()))
NEIGHBOURS = {feature: [other for other in range(len(KINDS)) if other != feature] for feature in range(8)}


class Changed:
    """The rules' answers, changed."""

    def __init__(self, *, inverted: bool = False, missing: float = 0.0, graded: bool = False) -> None:
        self.rules = RuleJudge(Matcher(HELD.text))
        self.inverted, self.missing, self.graded = inverted, missing, graded

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        answer = self.rules(explanation, text, items)
        answer = 1 - answer if self.inverted else answer
        generator = np.random.default_rng(int(items.start.sum()))
        if self.graded:
            answer = answer + generator.uniform(0, 0.4, len(answer))
        return np.where(generator.random(len(answer)) < self.missing, np.nan, answer)


def test_true_rules_score_one_and_noise_does_not() -> None:
    card = score_features(HELD, TRUE, ("detection", "hard", "fuzzing", "tokens"), neighbours=NEIGHBOURS)
    for each in card:
        if each.feature != NOISE:
            assert each.score.value == 1.0, each
            assert each.score.low < 1.0
            assert 0 < each.base_rate <= 1
        elif each.scorer in ("detection", "fuzzing"):
            assert each.score.low <= 0.5 <= each.score.high
    assert set(card.of("detection")) == set(range(len(KINDS))) - {KINDS.index("dense")}
    reasons = {(each.feature, each.scorer): each.reason for each in card.unscored}
    assert "is not active in" in reasons[KINDS.index("dense"), "detection"]


@pytest.mark.parametrize("seed", range(2))
def test_shuffled_rules_are_at_chance(seed: int) -> None:
    """Features that share nothing: sets of three words of their own each."""
    text = random_text(300, seed=seed)
    words = np.random.default_rng(seed).permutation(np.arange(15, 105)).reshape(30, 3).tolist()
    rules = {f: Rule((Clause((Token(tuple(f" w{w}" for w in each)),), 1.0),)) for f, each in enumerate(words)}
    matcher = Matcher(text)
    index = index_of(text, {feature: matcher.predict(rule) for feature, rule in rules.items()})
    explanations = Explanations(tuple(rule_explanations(rules)), (), index.n_features)
    card = score_features(index, explanations, seed=seed)
    assert all(each.score.null is not None for each in card)
    for total in card.totals():
        null = total.mean.null
        assert null is not None
        # Another feature's words are never among the marked ones, so "fuzzing" stands a hair below.
        assert null.value == pytest.approx(0.5, abs=0.015)
        assert total.mean.beats_null
        assert total.mean.value == 1.0
        inside = [each.score.null.low <= 0.5 <= each.score.null.high for each in card if each.score.null]
        assert np.mean(inside) >= 0.9


def test_inverted_answers_score_zero() -> None:
    card = score_features(HELD, TRUE, judge=Changed(inverted=True))
    assert {each.score.value for each in card if each.feature != NOISE} == {0.0}


def test_degrees_are_measured_by_auroc() -> None:
    card = score_features(HELD, TRUE, ("detection",), judge=Changed(graded=True))
    assert {each.score.value for each in card if each.feature != NOISE} == {1.0}
    noise = card.of("detection")[NOISE].score
    assert noise.low <= 0.5 <= noise.high


def test_missing_answers_are_counted_and_nothing_else() -> None:
    some = score_features(HELD, TRUE, ("detection",), judge=Changed(missing=0.3))
    for each in some:
        assert 10 < each.failed < 50
        assert each.n_positive + each.n_negative + each.failed == 100
        assert each.score.value == 1.0 or each.feature == NOISE
    assert some.totals()[0].failed == sum(each.failed for each in some)
    none = score_features(HELD, TRUE, ("detection",), judge=Changed(missing=1.0))
    assert not none.scored
    assert "judge gave usable answers to only 0 of 100 items" in {each.reason for each in none.unscored}


def test_documents_that_explainers_saw_are_refused() -> None:
    leaky = replace(TRUE, documents=(10_000, int(HELD.text.document[-1])))
    with pytest.raises(MechlabError, match="documents were also used to explain: 1 of them"):
        score_features(HELD, leaky)


def test_bad_input_is_named() -> None:
    with pytest.raises(MechlabError, match=r"unknown scorer: fuzing .*fuzzing"):
        score_features(HELD, TRUE, ("fuzing",))
    with pytest.raises(MechlabError, match="another size"):
        score_features(HELD, replace(TRUE, n_features=99))
    with pytest.raises(MechlabError, match="no passage is as long as a window"):
        score_features(HELD, TRUE, width=500)
    with pytest.raises(MechlabError, match="fewest is out of range"):
        score_features(HELD, TRUE, fewest=60)
    with pytest.raises(MechlabError, match=r"one answer per item.*\(3,\)"):
        score_features(HELD, TRUE, judge=lambda explanation, text, items: np.zeros(3))
    prose = Explanation(0, "person", "says w30")
    items = detection_items(hold(HELD), 0, np.random.default_rng(0))
    assert isinstance(items, Items)
    with pytest.raises(MechlabError, match="no rule to execute"):
        RuleJudge(Matcher(HELD.text))(prose, HELD.text, items)
    with pytest.raises(MechlabError, match="another text"):
        RuleJudge(Matcher(EXPLAINED.text))(TRUE.items[0], HELD.text, items)


def test_prose_needs_a_judge() -> None:
    prose = Explanations((Explanation(0, "person", "says w30"),), (), len(KINDS), {3: "no money"})
    card = score_features(HELD, prose)
    assert not card.scored
    assert [(each.feature, each.reason) for each in card.unscored] == [
        (3, "no money"),
        (0, "explanation is no rule that can be executed; give a judge"),
    ]


def test_same_seed_same_scores() -> None:
    one, two, other = (score_features(HELD, TRUE, SCORERS, neighbours=NEIGHBOURS, seed=s) for s in (0, 0, 1))
    assert json.dumps(one.to_dict()) == json.dumps(two.to_dict())
    assert json.dumps(one.to_dict()) != json.dumps(other.to_dict())


def test_naming_only_the_parent_fails_hard_negatives() -> None:
    text = random_text(900, seed=7)
    parent, child = Rule((Clause((Token((" w9",)),), 1.0),)), None
    child = Rule((Clause((Token((" w9",)), Token((" w1", " w2", " w3"), offset=-1)), 1.0),))
    matcher = Matcher(text)
    index = index_of(text, {0: matcher.predict(child), 1: matcher.predict(parent)})
    found = {}
    for name, rule in (("parent", parent), ("child", child)):
        card = score_features(
            index,
            Explanations(tuple(rule_explanations({0: rule, 1: parent})), (), 2),
            ("detection", "hard", "tokens"),
            neighbours={0: [1]},
        )
        found[name] = {scorer: card.of(scorer)[0].score.value for scorer in ("detection", "hard", "token f1")}
    assert found["child"] == {"detection": 1.0, "hard": 1.0, "token f1": 1.0}
    assert found["parent"]["detection"] > 0.6
    assert found["parent"]["hard"] == 0.5
    assert found["parent"]["token f1"] < 0.6


def test_intruders_are_found_without_explanations() -> None:
    card = score_features(HELD, TRUE, ("intruder",)).of("intruder", "")
    assert card[KINDS.index("token")].score.value > 0.9
    for feature, each in card.items():
        assert each.score.null is not None
        assert each.score.null_at_chance
        assert each.score.chance == 0.2
        assert each.n_negative == 4 * each.n_positive
        if feature == NOISE:
            assert each.score.low <= 0.2 <= each.score.high


class Half:
    """Recognises only windows in which a feature is strong."""

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        values = HELD.dense(explanation.feature)[items.rows()].max(1)
        return (values > np.quantile(HELD.entries(explanation.feature)[1], 0.5)).astype(np.float64)


def test_top_quantiles_against_the_rest() -> None:
    card = score_features(HELD, TRUE, ("quantiles",), judge=Half())
    token = KINDS.index("token")
    assert card.of("detection of quantile 1")[token].score.value == 1.0
    assert card.of("detection of quantile 10")[token].score.value == 0.5
    gap = card.of("top minus rest")[token].score
    assert 0 < gap.low < gap.value < gap.high < 0.5
    assert gap.chance == 0.0


def test_precision_at_the_base_rate_agrees_with_exact_precision() -> None:
    """A rule that is right but fires too often: estimates from items stand around the exact value."""
    wide = Rule((Clause((Token((" w30", " w31")),), 1.0),))
    items = tuple(rule_explanations({0: wide, 1: RULES["set"]}))
    explanations = Explanations(items, (), len(KINDS))
    estimates, inside = [], []
    for seed in range(20):
        card = score_features(HELD, explanations, ("detection", "precision", "tokens"), seed=seed)
        exact, estimate = card.of("window precision")[0], card.of("precision")[0]
        estimates.append(estimate.score.value)
        inside.append(estimate.score.low <= exact.score.value <= estimate.score.high)
        assert estimate.score.chance == exact.base_rate
    assert card.of("detection")[0].score.value > 0.8
    assert 0.45 < exact.score.value < 0.65
    assert np.mean(estimates) == pytest.approx(exact.score.value, abs=0.04)
    assert np.mean(inside) >= 0.9
    tokens = card.of("token precision")[0]
    right, fired = HELD.entries(0)[0], Matcher(HELD.text).rows(wide)[0]
    both = len(np.intersect1d(right, fired))
    assert tokens.score.value == pytest.approx(both / len(fired))
    assert card.of("token recall")[0].score.value == 1.0
    silent = len(HELD.text) - len(right)
    specificity = card.of("token specificity")[0].score.value
    assert specificity == pytest.approx((silent - (len(fired) - both)) / silent)
    assert card.of("token f1")[0].score.value == pytest.approx(2 * both / (len(fired) + len(right)))


class AllAtOnce:
    """A judge that takes every question in one call."""

    def __init__(self) -> None:
        self.one = RuleJudge(Matcher(HELD.text))

    def answer_all(self, text: Text, questions: Sequence[Question]) -> list[Float[np.ndarray, "_"]]:
        return [self.one(question.explanation, text, question.items) for question in questions]


def test_judges_may_answer_all_at_once() -> None:
    seen: list[tuple[int, int]] = []
    one = score_features(HELD, TRUE, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(done, seen[0][1]) for done in range(1, seen[0][1] + 1)]
    assert score_features(HELD, TRUE, judge=AllAtOnce()).scored == one.scored


def test_scores_come_back_from_disk(tmp_path: Path) -> None:
    card = score_features(HELD, TRUE, SCORERS, neighbours=NEIGHBOURS)
    assert Scorecard.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    made = save_scores(card, tmp_path / "scores", config={"samples": 50}, seed=0, inputs={"index": "abc"})
    assert load_scores(tmp_path / "scores") == card
    assert made.manifest.facts["unscored"] == len(card.unscored)
    assert (
        save_scores(card, tmp_path / "scores", config={"samples": 50}, seed=0, inputs={"index": "abc"})
        == made
    )
    with pytest.raises(MechlabError, match="no feature-scores here"):
        load_scores(tmp_path / "nothing")


def test_several_explainers_are_told_apart() -> None:
    wrong = Explanation(0, "person", "fires", Rule((Clause((Token((VOCABULARY[3],)),), 1.0),)))
    other = Explanation(1, "person", "fires", RULES["set"])
    card = score_features(HELD, replace(TRUE, items=(*TRUE.items, wrong, other)), ("detection",))
    assert card.of("detection", "rules")[0].score.value == 1.0
    assert card.of("detection", "person")[0].score.value < 0.8
    assert card.of("detection", "person")[1].score.value == 1.0
    assert {total.explainer for total in card.totals()} == {"rules", "person"}
