"""Synthetic texts: true rules respond, wrong ones do not; new text runs as the corpus did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mechlab.activations.harvest import harvest
from mechlab.data.corpus import open_corpus
from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.rules import Clause, Inside, Matcher, Position, Rule, Token, Within
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.features.scoring.synthetic import (
    dictionary_activations,
    padded,
    score_synthetic_rules,
    synthetic_score,
)
from mechlab.features.sources import index_dictionary, store_rows
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import train_sae
from mechlab.sae.topk import TopKConfig

WORDS = Vocabulary((*(f" w{i}" for i in range(60)), ' "'))
TRUE = {
    0: Rule((Clause((Token((" w1", " w2")),), 2.0),)),
    1: Rule((Clause((Token((" w3",)), Token((" w4",), -1)), 1.0),)),
    2: Rule((Clause((Within((" w5",), 3),), 4.0),)),
    3: Rule((Clause((Token((" w6", " w7", " w8")), Inside("quotes")), 1.0), Clause((Token((" w9",)),), 3.0))),
    4: Rule((Clause((Position(1, 2),), 1.0),)),
}


def planted() -> FeatureIndex:
    generator = np.random.default_rng(0)
    text = text_of([generator.integers(0, 61, 50) for _ in range(120)], WORDS)
    matcher = Matcher(text)
    return index_of(text, {f: matcher.predict(rule) for f, rule in TRUE.items()})


def oracle(text: Text, features: Sequence[int]) -> np.ndarray:
    """Features that are exactly what the rules say."""
    matcher = Matcher(text)
    return np.stack([matcher.predict(TRUE[feature]) for feature in features], axis=1)


def said(rules: dict[int, Rule], *others: Explanation) -> Explanations:
    items = [Explanation(f, "rules", rule.sentence(), rule) for f, rule in rules.items()]
    return Explanations((*items, *others), (), 10)


def test_the_difference_by_hand() -> None:
    found = synthetic_score(np.array([3.0, 1.0, np.nan]), np.array([0.0, 1.0, 0.5]), 0.5)
    assert found.value == pytest.approx((2.0 - 0.5) / 0.5)
    assert found.n == 5
    assert found.low < found.value < found.high
    with pytest.raises(MechlabError, match="does not vary"):
        synthetic_score(np.ones(2), np.ones(2), 0.0)


def agreement(card: Scorecard) -> dict[int, float]:
    return {feature: each.score.value for feature, each in card.of("synthetic agreement").items()}


def test_true_rules_predict_their_features_on_new_text() -> None:
    index = planted()
    card = score_synthetic_rules(index, said(TRUE), oracle)
    assert card.unscored == ()
    assert agreement(card) == dict.fromkeys(TRUE, 1.0)
    for feature, each in card.of("synthetic").items():
        assert each.score.beats_null
        expected = index.mean[feature] / np.std(index.dense(feature))
        assert each.score.value == pytest.approx(expected, rel=0.4)
    for each in card.of("synthetic agreement").values():
        assert each.score.null is not None
        assert each.score.null.value < 0.65
    assert score_synthetic_rules(index, said(TRUE), oracle) == card


def test_other_features_rules_are_at_chance() -> None:
    shifted = {f: TRUE[(f + 1) % len(TRUE)] for f in TRUE}
    card = score_synthetic_rules(planted(), said(shifted), oracle, texts=40)
    assert np.mean(list(agreement(card).values())) == pytest.approx(0.5, abs=0.06)
    assert sum(each.score.low > 0 for each in card.of("synthetic").values()) <= 1


def test_half_a_rule_shows() -> None:
    """One word of two: what it says is right. The word alone where a pair is needed: it is not."""
    part = {0: Rule((Clause((Token((" w1",)),), 2.0),)), 1: Rule((Clause((Token((" w3",)),), 1.0),))}
    found = agreement(score_synthetic_rules(planted(), said(part), oracle))
    assert found[0] > 0.95
    assert found[1] < 0.6


def test_what_cannot_be_made_is_told() -> None:
    rules = {0: TRUE[0], 2: Rule((Clause((Position(400),)),)), 9: TRUE[0]}
    card = score_synthetic_rules(planted(), said(rules, Explanation(1, "person", "pairs")), oracle)
    assert list(agreement(card)) == [0]
    assert card.of("synthetic")[0].score.null is None
    reasons = {each.feature: each.reason for each in card.unscored}
    assert "no rule" in reasons[1]
    assert "no passage is as long" in reasons[2]
    assert "does not exist" in reasons[9]


def test_new_text_runs_as_the_corpus_did(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    subject, site = load_model(tiny_model), "blocks.0.hook_resid_post"
    store = harvest(subject, open_corpus(tiny_corpus), [site], tmp_path / "s", tokens=2000)
    config = TopKConfig(site=site, d_sae=48, k=4, tokens=512, batch_size=256)
    dictionary = train_sae(store, tmp_path / "d", config)
    index = index_dictionary(dictionary, store_rows(store, subject), tmp_path / "i")
    activate = dictionary_activations(subject, dictionary)
    features = index.live[:5].tolist()
    # Whole contexts only: a later passage of a packed context has read what came before.
    first = index.text.position[index.text.bounds[:-1]] == 1
    kept = [slice(int(a), int(b)) for a, b, whole in zip(
        index.text.bounds[:-1], index.text.bounds[1:], first, strict=True) if whole][:20]  # fmt: skip
    text = text_of([index.text.tokens[rows] for rows in kept], index.text.vocabulary)
    found = activate(text, features)
    wanted = np.concatenate([np.stack([index.dense(f)[rows] for f in features], axis=1) for rows in kept])
    assert found == pytest.approx(wanted, abs=1e-4)
    tokens, mask = padded(subject, text)
    assert tokens[mask].tolist() == text.tokens.tolist()
    assert (tokens[:, 0] == subject.bos).all()
    other = load_model("fable")
    with pytest.raises(MechlabError):
        dictionary_activations(other, dictionary)


def test_the_interval_of_ten_texts_holds_zero() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        one, other = (generator.exponential(size=10) * (generator.random(10) < 0.5) for _ in "ab")
        found = synthetic_score(one, other, 1.0)
        held += found.low <= 0 <= found.high
    assert held >= 0.93 * 300
