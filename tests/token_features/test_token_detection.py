"""Detection must reward what is true, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mechlab.errors import MechlabError
from mechlab.features.token_detection import DetectionResult, score_explanations
from mechlab.features.token_explain import Explanations, explain_features
from mechlab.features.token_index import build_index
from mechlab.features.token_rows import Rows, split_by_document
from mechlab.features.token_rules import ANY, TokenRule
from mechlab.features.token_windows import divide

TOKEN, SET, PAIR, AFTER, NOISE, DEAD, DENSE, RARE = range(8)


@pytest.fixture(scope="module")
def explained(planted) -> Explanations:
    return explain_features(build_index(planted.explain), planted.explain, str)


@pytest.fixture(scope="module")
def result(planted, explained) -> DetectionResult:
    return score_explanations(explained, planted.held_out, seed=0)


@pytest.mark.parametrize("feature", [TOKEN, SET, PAIR, AFTER])
def test_true_rule_scores_one_and_a_borrowed_rule_does_not(result, feature):
    found = result.scores[feature]
    assert found.value == found.high == 1.0
    assert 0.94 < found.low < 1.0  # not collapsed, although every answer was right
    assert found.null is not None
    assert found.beats_null


def test_noise_cannot_be_explained(result):
    noise = result.scores[NOISE]
    assert noise.low <= 0.5 <= noise.high


def test_what_cannot_be_scored_says_why(result):
    assert result.unscored[DEAD] == "never fired on the text that was explained"
    assert "silent in windows of only 0" in result.unscored[DENSE]
    assert "held-out documents" in result.unscored.get(RARE, "") or "never fired" in result.unscored[RARE]
    assert result.scores.keys() | result.unscored.keys() == set(range(8))


def test_total_is_the_mean_over_features(result):
    assert result.total is not None
    assert result.total.value == pytest.approx(np.mean([each.value for each in result.scores.values()]))
    assert result.total.n == len(result.scores)
    assert result.total.null is not None


def many_features(seed: int, width: int = 120) -> Rows:
    """One feature per token id, tokens of very different frequency, all independent."""
    rng = np.random.default_rng(seed)
    n, length = 40_000, 40
    weights = 1 / np.arange(2, width + 2)
    tokens = rng.choice(width, n, p=weights / weights.sum())
    context = np.arange(n) // length
    values = rng.uniform(1, 2, (n, 1)).astype(np.float32)
    return Rows(tokens, context, np.arange(n) % length, context, values, tokens[:, None], width)


def test_shuffled_explanations_sit_at_chance():
    """Over independent features the mean null must be 1/2, frequent tokens or not."""
    means = []
    for seed in range(4):
        explain, held_out = split_by_document(many_features(seed), seed=seed)
        explained = explain_features(build_index(explain), explain, str)
        total = score_explanations(explained, held_out, seed=seed).total
        assert total is not None
        assert total.null is not None
        assert total.value > 0.99
        means.append(total.null.value)
        assert total.null.low - 0.01 <= 0.5 <= total.null.high + 0.01
    assert abs(np.mean(means) - 0.5) < 0.01


def test_interval_covers_the_truth():
    """A rule that is right on 80 % of active and all inactive windows: 0.9 lies in ~95 % of intervals."""
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        windows, width = 400, 4
        kind = rng.choice(3, windows, p=[0.4, 0.1, 0.5])  # fires on 1, fires on 2, silent
        tokens = np.zeros((windows, width), int)
        tokens[:, 1] = np.array([1, 2, 3])[kind]
        values = np.isin(tokens.ravel(), (1, 2)).astype(np.float32)[:, None]
        context = np.repeat(np.arange(windows), width)
        rows = Rows(
            tokens.ravel(), context, np.tile(np.arange(width), windows), context, values,
            np.zeros((windows * width, 1), int), 1,
        )  # fmt: skip
        rule = TokenRule("token", ((ANY, 1),), (1.0,))
        found = score_explanations(Explanations({0: rule}, {0: ""}, 1, (), width), rows, seed).scores[0]
        assert found.null is None  # there is no other feature to borrow from
        inside += found.low <= 0.9 <= found.high
    assert inside >= 53


def alternating(documents: int = 200, width: int = 8) -> Rows:
    """Every window holds either token 1, where the feature fires, or token 2, where it does not."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(10, 20, (documents, width))
    tokens[:, 3] = np.where(np.arange(documents) % 2, 1, 2)
    context = np.repeat(np.arange(documents), width)
    values = (tokens.ravel() == 1).astype(np.float32)[:, None]
    return Rows(
        tokens.ravel(), context, np.tile(np.arange(width), documents), context, values,
        np.zeros((documents * width, 1), int), 1,
    )  # fmt: skip


@pytest.mark.parametrize(("token", "expected"), [(1, 1.0), (2, 0.0), (99, 0.5)])
def test_right_inverted_and_empty_rules(token, expected):
    rule = TokenRule("token", ((ANY, token),), (1.0,))
    given = Explanations({0: rule}, {0: ""}, 1, (), 8)
    assert score_explanations(given, alternating()).scores[0].value == expected


def test_memorised_contexts_are_worth_nothing(planted):
    """Knowing every pair around every activation that was explained does not help on new documents."""
    rows = planted.explain
    active = np.flatnonzero((rows.values[:, NOISE] > 0) & (rows.position > 1))
    pairs = set(zip(rows.tokens[active - 1].tolist(), rows.tokens[active].tolist(), strict=True))
    rule = TokenRule("pair", tuple(sorted(pairs)), (1.0,) * len(pairs))
    assert (rule.predict(rows.tokens, rows.context)[active] > 0).all()
    given = Explanations({NOISE: rule}, {NOISE: ""}, 8, (), 32)
    found = score_explanations(given, planted.held_out).scores[NOISE]
    assert found.low <= 0.5 <= found.high


def test_documents_that_were_explained_are_refused(planted, explained):
    with pytest.raises(MechlabError, match="also used to explain"):
        score_explanations(explained, planted.rows)


def test_bad_input_is_refused(planted, explained):
    with pytest.raises(MechlabError, match="as long as a window"):
        score_explanations(replace(explained, window=500), planted.held_out)
    with pytest.raises(MechlabError, match="width"):
        score_explanations(replace(explained, d_sae=9), planted.held_out)


def test_same_seed_same_result_and_json_round_trip(planted, explained, result):
    text = json.dumps(result.to_dict())
    assert json.dumps(score_explanations(explained, planted.held_out, seed=0).to_dict()) == text
    assert json.dumps(score_explanations(explained, planted.held_out, seed=1).to_dict()) != text
    assert DetectionResult.from_dict(json.loads(text)) == result


def test_a_feature_is_scored_alike_whoever_else_is(planted, explained, result):
    alone = Explanations({SET: explained.rules[SET]}, {SET: ""}, 8, explained.documents, explained.window)
    found = score_explanations(alone, planted.held_out, seed=0).scores[SET]
    assert replace(result.scores[SET], null=None) == found


def test_nothing_to_score(planted):
    nothing = score_explanations(Explanations({}, {}, 8, (), 32), planted.held_out)
    assert nothing.total is None
    assert len(nothing.unscored) == 8
    assert DetectionResult.from_dict(nothing.to_dict()) == nothing


def test_windows_are_equal_and_stay_in_their_context():
    context = np.array([0] * 5 + [1] * 3 + [2] * 8)
    rows = Rows(
        np.arange(16), context, np.arange(16), context // 2, np.zeros((16, 1)), np.zeros((16, 1), int), 1
    )
    windows = divide(rows, 4)
    assert windows.of_row.tolist() == [0] * 4 + [-1] * 4 + [1] * 4 + [2] * 4
    assert windows.document.tolist() == [0, 1, 1]
    assert windows.touched(np.array([4, 12])).tolist() == [False, False, True]
    assert windows.peak(np.array([0, 1, 5]), np.array([1.0, 3.0, 9.0])).tolist() == [3.0, 0.0, 0.0]
