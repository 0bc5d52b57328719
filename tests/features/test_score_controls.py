"""Controls are of other features, and what has no score is counted, however often who explains what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from features.scored_features import RULES, features_of, random_text, true_rules
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.rules import Clause, Matcher, Rule, Token
from mechlab.features.scoring.items import Items
from mechlab.features.scoring.metrics import derangement, lenders
from mechlab.features.scoring.score import score_features
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.features.scoring.simulated import score_simulations
from mechlab.features.scoring.simulators import RuleSimulator
from mechlab.features.scoring.synthetic import score_synthetic_rules
from mechlab.features.text import Text

INDEX = features_of(random_text(300))
TRUE = true_rules(INDEX)


def _said(*items: Explanation) -> Explanations:
    return Explanations(items, (), INDEX.n_features)


def _activate(text: Text, features: Sequence[int]) -> np.ndarray:
    rules, matcher = list(RULES.values()), Matcher(text)
    return np.stack([matcher.predict(rules[feature]) for feature in features], axis=1)


@pytest.mark.parametrize("seed", range(20))
def test_lenders_are_of_other_features(seed: int) -> None:
    generator = np.random.default_rng(seed)
    features = generator.integers(0, 5, 12).tolist()
    found = lenders(features, np.random.default_rng(seed))
    assert found is not None
    assert all(features[place] != features[other] for place, other in enumerate(found))
    # With one place each it is a permutation, the same as ever.
    alone = lenders(list(range(9)), np.random.default_rng(seed))
    assert alone == derangement(9, np.random.default_rng(seed)).tolist()
    assert lenders([3, 3, 3], generator) is None
    assert lenders([], generator) is None


def test_a_feature_explained_twice_is_no_control_of_itself() -> None:
    mine = [TRUE.items[0], TRUE.items[1]]
    twice = _said(*mine, *(replace(each, text=f"once more: {each.text}") for each in mine))
    cards = [score_features(INDEX, twice, ("detection", "tokens"), seed=seed) for seed in range(4)]
    others = (replace(each, explainer="person") for each in mine)
    cards += [score_synthetic_rules(INDEX, _said(*mine, *others), _activate, seed=seed) for seed in range(4)]
    for card in cards:
        for each in card:
            if each.scorer in ("detection", "token f1", "synthetic", "synthetic agreement"):
                assert each.score.null is not None
                assert each.score.null.value < 0.75 * each.score.value, each
    same = score_features(INDEX, _said(*[mine[0]] * 3), ("detection", "tokens"))
    assert {each.score.null for each in same} == {None}


def test_a_prediction_without_a_correlation_is_counted() -> None:
    never = Rule((Clause((Token((" never",)),), 1.0),))
    said = _said(*TRUE.items[:2], Explanation(2, "rules", "it never fires", never))
    card = score_simulations(INDEX, said, RuleSimulator(Matcher(INDEX.text)))
    totals = {each.scorer: each for each in card.totals()}
    assert (totals["simulation correlation"].mean.n, totals["simulation correlation"].unscored) == (2, 1)
    assert (totals["simulation r_squared"].mean.n, totals["simulation r_squared"].unscored) == (3, 0)


def _unscored(card: Scorecard) -> dict[str, int]:
    return {each.scorer: each.unscored for each in card.totals()}


def test_features_without_items_are_counted_by_every_scorer() -> None:
    card = score_features(INDEX, TRUE, ("precision", "quantiles"), samples=10)
    assert "dense" in RULES  # it leaves no window without it
    counts = _unscored(card)
    assert counts["precision"] >= 1
    assert {each.scorer for each in card.unscored} == {"precision", "quantiles"}


def test_judges_that_say_one_thing() -> None:
    def seven(explanation: Explanation, text: Text, items: Items) -> np.ndarray:
        return np.full(len(items), 0.7)

    card = score_features(INDEX, TRUE, ("detection", "fuzzing", "precision", "intruder"), seven)
    values = {each.scorer: each.mean.value for each in card.totals()}
    assert values == {"detection": 0.5, "fuzzing": 0.5, "intruder": pytest.approx(0.2)}
