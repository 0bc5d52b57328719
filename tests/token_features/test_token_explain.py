"""Planted features must be found, and chance must not look like a finding."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields

import numpy as np
import pytest
from jaxtyping import config

from mechlab.errors import MechlabError
from mechlab.features.token_explain import Explanations, best_f1, best_threshold, explain_features
from mechlab.features.token_index import build_index
from mechlab.features.token_rows import Rows
from mechlab.features.token_rules import ANY, KeyTable, TokenRule

TOKEN, SET, PAIR, AFTER, NOISE, DEAD, DENSE, RARE = range(8)


@pytest.fixture(scope="module")
def explained(planted) -> Explanations:
    return explain_features(build_index(planted.explain), planted.explain, lambda token: f" t{token}")


def test_every_live_feature_has_a_rule(planted, explained):
    live = np.flatnonzero(build_index(planted.explain).active)
    assert sorted(explained.rules) == live.tolist()
    assert DEAD in explained.dead
    assert explained.sentences.keys() == explained.rules.keys()


@pytest.mark.parametrize(
    ("feature", "kind", "keys"),
    [
        (TOKEN, "token", {(ANY, 50)}),
        (SET, "token", {(ANY, token) for token in range(60, 66)}),
        (PAIR, "pair", {(30, 31)}),
        (AFTER, "previous", {(80, ANY)}),
    ],
)
def test_planted_rule_is_found(explained, feature, kind, keys):
    rule = explained.rules[feature]
    assert (rule.kind, set(rule.keys)) == (kind, keys)
    assert rule.share == rule.precision == rule.f1 == 1.0


def test_noise_gets_a_rule_that_explains_little(explained):
    assert explained.rules[NOISE].f1 < 0.2


def test_sentence_names_the_tokens(explained):
    assert explained.sentences[TOKEN] == "fires on ' t50' (100 % of its activation; active on 100 % of these)"
    assert explained.sentences[PAIR].startswith("fires at the end of ' t30'+' t31' (")
    assert explained.sentences[AFTER].startswith("fires after ' t80' (")
    long = TokenRule("token", tuple((ANY, t) for t in range(10)), (1.0,) * 10).sentence(str)
    assert "and 2 more" in long


def test_rows_with_features_for_other_activations_are_refused(monkeypatch):
    # The checks of array types are the tests' own: users run without them.
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    one = np.zeros(3, np.int64)
    with pytest.raises(MechlabError, match=r"differ in shape: \(3, 2\) and \(3, 1\)"):
        Rows(one, one, one, one, np.ones((3, 2), np.float32), np.zeros((3, 1), np.int64), 4)


def test_sentence_keeps_tokens_with_a_per_cent_sign():
    rule = TokenRule("token", ((ANY, 0), (ANY, 1)), (2.0, 1.0), share=0.92, precision=0.5)
    assert rule.sentence(["%", "100%"].__getitem__) == (
        "fires on '%', '100%' (92 % of its activation; active on 50 % of these)"
    )


def test_prediction_is_the_mean_table(planted, explained):
    rows = planted.explain
    for feature in (TOKEN, PAIR, AFTER):
        rule = explained.rules[feature]
        target = rows.values[:, feature].astype(float)
        predicted = rule.predict(rows.tokens, rows.context)
        assert np.array_equal(predicted > 0, target > 0)
        assert np.isclose(predicted[target > 0][0], target[target > 0].mean())


def test_previous_token_stops_at_the_context():
    rule = TokenRule("previous", ((5, ANY),), (2.0,))
    tokens = np.array([5, 6, 5, 7])
    assert rule.predict(tokens).tolist() == [0, 2, 0, 2]
    assert rule.predict(tokens, np.array([0, 0, 0, 1])).tolist() == [0, 2, 0, 0]


@pytest.mark.parametrize("kind", ["token", "previous", "pair"])
def test_keys_survive_being_filed(kind):
    table = KeyTable(kind, np.array([3, 4, 3, 4]), np.array([0, 0, 0, 0]))
    for code in table.codes[table.codes >= 0].tolist():
        assert table.code(table.key(code)) == code


@pytest.mark.parametrize("seed", range(20))
def test_best_f1_equals_trying_every_set(seed):
    rng = np.random.default_rng(seed)
    seen = rng.integers(1, 30, 7).astype(float)
    hits = np.floor(seen * rng.random(7))
    hits[0] = max(hits[0], 1.0)
    positives = hits.sum() + rng.integers(0, 20)
    limit = int(rng.integers(1, 5))
    chosen, value = best_f1(hits, seen, positives, limit)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(7), n) for n in range(1, limit + 1))
    best = max(2 * hits[list(s)].sum() / (seen[list(s)].sum() + positives) for s in subsets)
    assert len(chosen) <= limit
    assert value == pytest.approx(best)
    assert 2 * hits[chosen].sum() / (seen[chosen].sum() + positives) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(10))
def test_best_threshold_equals_trying_every_level(seed):
    rng = np.random.default_rng(seed)
    levels = np.array([0.0, 0.5, 1.0, 2.0])
    peak = rng.choice([*levels, 3.0], 60)
    active = rng.random(60) < 0.2 + 0.2 * peak
    quality = [(peak[active] > t).mean() - (peak[~active] > t).mean() for t in levels]
    assert best_threshold(peak, active, levels) == levels[int(np.argmax(np.round(quality, 12)))]


def test_threshold_of_one_class_is_the_lowest():
    assert best_threshold(np.ones(3), np.ones(3, bool), np.array([0.0, 0.5])) == 0.0


def test_json_round_trip_and_determinism(planted, explained, decode):
    text = json.dumps(explained.to_dict())
    assert Explanations.from_dict(json.loads(text)) == explained
    again = explain_features(build_index(planted.explain), planted.explain, decode)
    assert json.dumps(again.to_dict()) == text


def test_order_of_documents_does_not_matter(planted, explained, decode):
    rows = planted.explain
    documents = np.random.default_rng(0).permutation(np.unique(rows.document))
    order = np.concatenate([np.flatnonzero(rows.document == each) for each in documents])
    arrays = (getattr(rows, each.name)[order] for each in fields(rows) if each.name != "d_sae")
    mixed = Rows(*arrays, d_sae=rows.d_sae)
    again = explain_features(build_index(mixed), mixed, decode)
    assert again.sentences == explained.sentences
    for feature, rule in explained.rules.items():
        assert again.rules[feature].keys == rule.keys
        assert np.allclose(again.rules[feature].activations, rule.activations)


def test_other_rows_are_refused(planted, decode):
    with pytest.raises(MechlabError, match="index and rows differ"):
        explain_features(build_index(planted.rows), planted.explain, decode)
    with pytest.raises(MechlabError, match="did you mean token"):
        TokenRule("tokens", ((ANY, 1),), (1.0,))
    with pytest.raises(MechlabError, match="at least one key"):
        TokenRule("token", (), ())
