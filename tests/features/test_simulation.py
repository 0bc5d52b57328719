"""Simulation: expected levels, the four scores against naive formulas, calibration, rules and models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.rules import Clause, Matcher, Rule, Token
from mechlab.features.scoring.simulated import score_simulations
from mechlab.features.scoring.simulation import (
    calibrated,
    expected_level,
    levels,
    linear_calibration,
    percentile_calibration,
    simulation_scores,
)
from mechlab.features.scoring.simulators import ModelSimulator, RuleSimulator
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary, vocabulary_of
from mechlab.models.subject import load_model

WORDS = Vocabulary(tuple(f" w{i}" for i in range(50)))


def planted(seed: int = 0, noise: float = 0.0) -> FeatureIndex:
    """Feature f is active on the word f and, more strongly, on the word f + 10."""
    generator = np.random.default_rng(seed)
    text = text_of([generator.integers(0, 50, 40) for _ in range(200)], WORDS)
    found = {}
    for feature in range(4):
        value = 1.0 * (text.tokens == feature) + 3.0 * (text.tokens == feature + 10)
        found[feature] = value * (1 + noise * generator.standard_normal(len(text)))
    return index_of(text, found)


def rule(feature: int, *, scale: float = 1.0) -> Explanation:
    made = Rule(
        (
            Clause((Token((f" w{feature}",)),), scale),
            Clause((Token((f" w{feature + 10}",)),), 3 * scale),
        )
    )
    return Explanation(feature, "rules", made.sentence(), made)


def test_expected_level_by_hand() -> None:
    assert expected_level({"3": math.log(0.5)}) == pytest.approx(3.0)
    # 0.2 on 0, 0.6 on 10, the rest on words: q = 1/4, 3/4.
    assert expected_level({"0": math.log(0.2), "10": math.log(0.6), "ten": math.log(0.2)}) == pytest.approx(
        7.5
    )
    # Spellings of one number add up: q(1) = 0.4/0.8, q(5) = 0.4/0.8.
    assert expected_level({" 1": math.log(0.2), "1": math.log(0.2), "5": math.log(0.4)}) == pytest.approx(3.0)
    assert math.isnan(expected_level({"11": 0.0, "x": 0.0, "-1": 0.0}))


def test_levels_by_hand() -> None:
    found = levels(np.array([-1.0, 0.0, 0.19, 0.2, 1.99, 2.0, 5.0]), 2.0)
    assert found.tolist() == [0, 0, 0, 1, 9, 10, 10]
    with pytest.raises(MechlabError, match="dead"):
        levels(np.array([0.0]), 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_their_formulas_on_all_tokens_together(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = np.maximum(generator.standard_normal((12, 7)), 0) * generator.integers(1, 5, (12, 1))
    predicted = truth * generator.random((12, 7)) + 0.1
    document = generator.integers(0, 6, 12)
    found = simulation_scores(truth, predicted, document, seed=seed)
    a, s = truth.ravel(), predicted.ravel()
    assert found["correlation"].value == pytest.approx(np.corrcoef(a, s)[0, 1])
    error = ((a - s) ** 2).sum()
    assert found["r_squared"].value == pytest.approx(1 - error / ((a - a.mean()) ** 2).sum())
    assert found["r_squared_uncentred"].value == pytest.approx(1 - error / (a**2).sum())
    explained = 1 - np.abs(a - s).sum() / np.abs(a).sum()
    assert found["absolute_deviation_explained"].value == pytest.approx(explained)
    assert all(each.n == len(np.unique(document)) for each in found.values())
    # Not the mean of the correlations of single windows.
    rows = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(truth, predicted, strict=True)])
    assert abs(found["correlation"].value - rows) > 1e-3


def test_windows_without_prediction_are_left_out() -> None:
    truth, predicted = (
        np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]]),
        np.array([[0.0, 1.0], [2.0, 0.0], [9, 9]]),
    )
    predicted[2, 0] = np.nan
    found = simulation_scores(truth, predicted, np.arange(3))
    assert found["correlation"].value == pytest.approx(1.0)
    assert found["correlation"].n == 2
    nothing = simulation_scores(truth, np.full((3, 2), np.nan), np.arange(3))
    assert all(math.isnan(each.value) for each in nothing.values())


def test_a_constant_prediction_has_no_correlation() -> None:
    truth = np.random.default_rng(0).random((4, 5))
    assert math.isnan(simulation_scores(truth, np.full((4, 5), 0.1), np.arange(4))["correlation"].value)


def test_calibrations() -> None:
    generator = np.random.default_rng(0)
    predicted = generator.random(200)
    line = linear_calibration(predicted, 3 * predicted + 2)
    assert line(np.array([0.0, 1.0])) == pytest.approx([2.0, 5.0])
    assert linear_calibration(np.ones(3), np.array([0.0, 1.0, 5.0]))(np.array([7.0])) == pytest.approx([2.0])
    truth = generator.random(200) ** 3
    match = percentile_calibration(predicted, truth)
    assert np.sort(match(predicted)) == pytest.approx(np.sort(truth))
    assert percentile_calibration(np.array([0.0, 0, 1, 1]), np.array([5.0, 1, 9, 3]))(
        np.array([-1.0, 0, 0.5, 1, 2])
    ) == pytest.approx([2.0, 2.0, 4.5, 7.0, 7.0])
    fits = np.array([True, False])
    assert np.isnan(calibrated(np.ones((2, 1)), np.array([[np.nan], [1.0]]), fits, "linear")).all()
    with pytest.raises(MechlabError, match="did you mean linear"):
        calibrated(np.ones((2, 1)), np.ones((2, 1)), fits, "linaer")


def these(*items: Explanation) -> Explanations:
    return Explanations(items, (), 4)


def test_true_rules_simulate_perfectly_and_false_ones_at_chance() -> None:
    index = planted()
    simulator = RuleSimulator(Matcher(index.text))
    for method in (None, "linear", "percentile"):
        found = score_simulations(index, these(*map(rule, range(4))), simulator, calibrate=method)
        assert len(found) == 16
        assert found.unscored == ()
        for each in found:
            assert each.failed == 0
            assert each.score.value == pytest.approx(1.0, abs=1e-6), (method, each.scorer)
            assert each.n_positive >= 20
        for each in found.of("simulation correlation").values():
            assert each.score.null is not None
            assert abs(each.score.null.value) < 0.15
            assert each.score.beats_null


def test_calibration_mends_the_scale_and_is_fitted_on_other_documents() -> None:
    index = planted(noise=0.05)
    simulator = RuleSimulator(Matcher(index.text))
    said = these(rule(0, scale=5.0), rule(1, scale=5.0))
    raw = score_simulations(index, said, simulator, calibrate=None)
    mended = score_simulations(index, said, simulator, calibrate="linear")
    for feature in range(2):
        before, after = (each.of("simulation r_squared")[feature].score for each in (raw, mended))
        assert before.value < -1
        assert 0.95 < after.value < 1
        assert after.n < before.n
    assert score_simulations(index, said, simulator, calibrate="linear") == mended


def test_refusals() -> None:
    index = planted()
    simulator = RuleSimulator(Matcher(index.text))
    with pytest.raises(MechlabError, match="unknown calibration"):
        score_simulations(index, these(rule(0)), simulator, calibrate="none")
    with pytest.raises(MechlabError, match="is no rule"):
        score_simulations(index, these(Explanation(0, "person", "words")), simulator)
    with pytest.raises(MechlabError, match="another text"):
        score_simulations(planted(1), these(rule(0)), simulator)
    with pytest.raises(MechlabError, match="documents were also used to explain: 1 of them, the first 7"):
        score_simulations(index, Explanations((rule(0),), (7, 900), 4), simulator)
    assert len(score_simulations(index, these(), simulator)) == 0
    silent = index.restrict(index.text.document < 3)
    few = score_simulations(silent, these(rule(0)), RuleSimulator(Matcher(silent.text)))
    assert [each.reason for each in few.unscored] == ["active in fewer than 4 held-out documents"]


def test_a_model_simulates_all_tokens_in_one_forward(stories_model: Path) -> None:
    subject = load_model(stories_model)
    simulator = ModelSimulator(subject, prompt="{explanation}\n")
    words = vocabulary_of(subject)
    text = text_of([subject.tokens("Lily and Tim saw a dog.")[1:].tolist()] * 2, words)
    starts = np.array([0, 4])
    found = simulator(Explanation(0, "person", "dogs"), text, starts, 4)
    assert found.shape == (2, 4)
    assert ((found >= 0) & (found <= 10)).all()
    # The same, one place at a time and by the text of the alternatives.
    tokens, asked = simulator._tokens("dogs", text, text.tokens[4:8])
    for place, at in enumerate(asked):
        logprobs = subject.logits(torch.tensor([tokens[: at + 1]]))[0, -1].double().log_softmax(-1)
        told: dict[str, float] = {}
        for token, logprob in enumerate(logprobs.tolist()):
            said = subject.token_text(token).strip()
            told[said] = float(np.logaddexp(told.get(said, -np.inf), logprob))
        assert found[1, place] == pytest.approx(expected_level(told), abs=1e-4)
    with pytest.raises(MechlabError, match="longer than the model's context"):
        simulator(Explanation(0, "person", "dogs " * 600), text, starts, 4)
    with pytest.raises(MechlabError, match="no token for a level"):
        ModelSimulator(load_model("fable"))


def test_the_correlation_of_what_is_seldom_active_holds_zero() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        one, other = (
            (generator.random((30, 32)) < 0.05) * generator.exponential(size=(30, 32)) for _ in "ab"
        )
        found = simulation_scores(one, other, np.arange(30))["correlation"]
        held += found.low <= 0 <= found.high
    assert held >= 90
