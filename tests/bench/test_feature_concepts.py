"""The parts of table "concepts": strong activations, indexes side by side, the choice of rules."""

from __future__ import annotations

import numpy as np
import pytest

from mechlab.bench import feature_concepts
from mechlab.bench.feature_concepts import best_rules, f1_of, family, side_by_side, strong
from mechlab.bench.feature_tables import feature_goals
from mechlab.cli.bench_feature_truth import truth_text
from mechlab.data.fable import lexicon as lex
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.rules import Clause, Rule, Token
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary


def random_index(seed: int, features: int, rows: int = 400) -> FeatureIndex:
    generator = np.random.default_rng(seed)
    text = text_of([np.full(rows // 4, 1, np.int32)] * 4, Vocabulary(("a", "b")))
    values = {
        f: generator.exponential(size=rows) * (generator.random(rows) < 0.3)
        for f in range(features)
        if f != 1  # a dead one among them
    }
    return index_of(text, values)


@pytest.mark.parametrize("seed", range(3))
def test_strong_keeps_what_is_near_the_top_of_its_feature(seed: int) -> None:
    index = random_index(seed, 7)
    found = strong(index, 0.35)
    assert found.n_features == index.n_features
    for feature in range(index.n_features):
        dense = index.dense(feature)
        if dense.any():
            dense = np.where(dense >= 0.35 * np.quantile(dense[dense > 0], 0.99), dense, 0)
        np.testing.assert_array_equal(found.dense(feature), dense)
    assert 0 < len(found.row) < len(index.row)


def test_side_by_side_has_every_feature_once() -> None:
    parts = [random_index(seed, features) for seed, features in ((0, 3), (1, 1), (2, 6))]
    whole, offsets = side_by_side(parts)
    assert offsets.tolist() == [0, 3, 4, 10]
    assert whole.n_features == 10
    for part, first in zip(parts, offsets[:-1], strict=True):
        for feature in range(part.n_features):
            np.testing.assert_array_equal(whole.dense(int(first) + feature), part.dense(feature))


def test_f1_by_hand() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    # Two rows said: one of two of the first concept is hit, both of the second, none of an empty third.
    np.testing.assert_allclose(f1_of(labels, labels.sum(0), np.array([1, 2])), [0.5, 1.0, 0.0])
    np.testing.assert_allclose(f1_of(labels, labels.sum(0), np.zeros(0, np.int64)), 0.0)


def test_the_family_is_trained_in_one_pass_and_its_last_has_plain_features() -> None:
    members = family(10_000)
    assert len({(config.tokens, config.batch_size) for config, _ in members.values()}) == 1
    config, shares = list(members.values())[-1]
    assert (config.arch, config.d_sae, config.k, shares) == ("batchtopk", 512, 8, (0.0,))
    assert all(shares and all(0 <= share < 1 for share in shares) for _, shares in members.values())


def test_the_best_rule_of_a_concept_is_found_and_shifted_labels_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feature_concepts, "_LABELLED", 20_000)

    def rule(*words: str) -> Rule:
        texts = tuple(f" {word}" if word.isalnum() else word for word in words)
        return Rule((Clause((Token(texts),), 1.0),))

    rules = [rule(*lex.COLOURS), rule(*lex.COLOURS[:2]), rule(","), rule(*lex.FOODS)]
    sources = [("wide", 0.0), ("narrow", 0.0), ("narrow", 0.35), ("narrow", 0.0)]
    found = best_rules(rules, sources)
    concepts = found["concepts"]
    for name, dictionary in (("colour", "wide"), ("comma", "narrow"), ("food", "narrow")):
        assert concepts[name]["f1"] == 1.0
        assert concepts[name]["dictionary"] == dictionary
        assert concepts[name]["control"] < 0.3
    assert found["n_known"] == sum(each["f1"] >= 0.8 for each in concepts.values()) >= 3
    assert found["n_known_control"] == 0
    assert found["n_known_alone"]["wide"] == 1
    assert found["best_single_dictionary"] == {"name": "narrow", "n_known": found["n_known"] - 1}
    assert found["rules"] == 4


def test_the_table_can_be_read() -> None:
    rules = [Rule((Clause((Token((word,)),), 1.0),)) for word in (",", " red")]
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    table = {
        "dictionaries": [{}, {}],
        **best_rules(rules, [("first", 0.0), ("second", 0.35)]),
        "rewriting": {"shares": [{"features": 10, "recovered": {**share, "null": share}}]},
    }
    goals = feature_goals({"concepts": table})
    text = truth_text({"concepts": table, "goals": goals})
    assert "best of 2 rules of 2 dictionaries" in text
    assert "10 latents" in text
    assert "MISSED concepts" in text
