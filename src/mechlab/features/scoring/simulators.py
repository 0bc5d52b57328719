"""Who predicts activations token by token, and the simulation score of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError, near
from mechlab.features.explanations import Explanation
from mechlab.features.index import FeatureIndex
from mechlab.features.rules import Matcher
from mechlab.features.scoring.simulation import (
    CALIBRATIONS,
    LEVELS,
    calibrated,
    expected_level,
    simulation_scores,
)
from mechlab.features.text import Text
from mechlab.features.windows import Windows, divide
from mechlab.models.subject import Subject
from mechlab.scores import Score

WINDOWS = 20


@runtime_checkable
class Simulator(Protocol):
    """Predicts the activation on every token of some windows, in units of its own; NaN where it cannot."""

    def __call__(
        self, explanation: Explanation, text: Text, start: Int[np.ndarray, "window"], width: int
    ) -> Float[np.ndarray, "window pos"]:
        """Predictions for the rows ``start`` to ``start + width`` of each window."""
        ...


@dataclass(frozen=True)
class RuleSimulator:
    """The simulator that runs rules: exact, and free of charge."""

    matcher: Matcher

    def __call__(
        self, explanation: Explanation, text: Text, start: Int[np.ndarray, "window"], width: int
    ) -> Float[np.ndarray, "window pos"]:
        """What the rule predicts, in units of the activation. MechlabError without a rule."""
        if explanation.rule is None:
            raise MechlabError("explanation is no rule", repr(explanation.text), "simulate it with a model")
        if text is not self.matcher.text:
            raise MechlabError("matcher is of another text", len(text), "make one of the text that is scored")
        return self.matcher.predict(explanation.rule)[start[:, None] + np.arange(width)]


PROMPT = (
    "A neuron of a language model responds to something in text. Its activation on a token is a whole "
    "number from 0 (not active) to 10 (most active).\n\nThe neuron responds to: {explanation}\n\n"
    "Tokens and activations of a text, divided by a tab; not every activation is known:\n"
)


@dataclass(frozen=True)
class ModelSimulator:
    """A causal model that is asked for all tokens at once.

    The prompt lists every token as "token, tab, unknown"; at each "unknown" the model's own
    probabilities for the numbers 0 to 10 in its place give the expected level, so that one forward
    simulates a whole window (Bills et al. 2023, "all at once"). Predictions are levels, 0 to 10.

    Attributes:
        subject: any causal model whose tokenizer has a token for each digit.
        prompt: what comes before the list; holds "{explanation}".
    """

    subject: Subject
    prompt: str = PROMPT
    _numbers: dict[int, str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if "{explanation}" not in self.prompt:
            raise MechlabError("prompt has no place for the explanation", None, "put {explanation} in it")
        texts = [self.subject.token_text(t) for t in range(len(self.subject.tokenizer))]
        wanted = {str(level) for level in range(LEVELS + 1)}
        self._numbers.update({t: said for t, said in enumerate(texts) if said.strip() in wanted})
        missing = {str(level) for level in range(LEVELS)} - {said.strip() for said in self._numbers.values()}
        if missing:
            raise MechlabError(
                f"{self.subject.name} has no token for a level", min(missing), "simulate with another model"
            )

    @torch.no_grad()
    def __call__(
        self, explanation: Explanation, text: Text, start: Int[np.ndarray, "window"], width: int
    ) -> Float[np.ndarray, "window pos"]:
        """Expected levels. MechlabError when the prompt does not fit into the model's context."""
        found = np.zeros((len(start), width))
        for row, at in enumerate(start.tolist()):
            tokens, asked = self._tokens(explanation.text, text, text.tokens[at : at + width])
            logits = self.subject.logits(torch.tensor([tokens]))[0, asked].double().log_softmax(-1).cpu()
            for place, alternatives in enumerate(logits[:, list(self._numbers)].tolist()):
                told = dict.fromkeys(self._numbers.values(), 0.0)
                for said, logprob in zip(self._numbers.values(), alternatives, strict=True):
                    told[said] += float(np.exp(logprob))
                logs = {said: float(np.log(p)) if p > 0 else -np.inf for said, p in told.items()}
                found[row, place] = expected_level(logs)
        return found

    def _tokens(
        self, explanation: str, text: Text, window: Int[np.ndarray, "pos"]
    ) -> tuple[list[int], list[int]]:
        """The prompt's tokens, and the places whose next token is the first of an "unknown"."""
        tokenizer = self.subject.tokenizer
        tokens = self.subject.tokens(self.prompt.replace("{explanation}", explanation)).tolist()
        unknown = tokenizer.encode("unknown\n", add_special_tokens=False)
        asked = []
        for token in window.tolist():
            tokens += tokenizer.encode(text.vocabulary[token] + "\t", add_special_tokens=False)
            asked.append(len(tokens) - 1)
            tokens += unknown
        if len(tokens) > self.subject.n_ctx:
            raise MechlabError(
                "simulation prompt is longer than the model's context",
                f"{len(tokens)} tokens",
                f"{self.subject.name} takes {self.subject.n_ctx}; use narrower windows",
            )
        return tokens, asked


@dataclass(frozen=True)
class Simulated:
    """Simulation scores of one explanation of a feature.

    Attributes:
        scores: by name (see ``mechlab.features.scoring.simulation``), with a null each.
        failed: windows without a prediction.
    """

    feature: int
    explainer: str
    scores: dict[str, Score]
    failed: int


def score_simulations(
    index: FeatureIndex,
    explanations: Sequence[Explanation],
    simulator: Simulator,
    *,
    windows: int = WINDOWS,
    width: int = 32,
    calibrate: str | None = "linear",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Simulated]:
    """Simulation scores of explanations on held-out text.

    For each feature: the ``windows`` windows with its largest activations, one per document, and as
    many at random. With a calibration every second of them, by document, is spent on it. The null is
    what the explanation of the next feature predicts on the same windows, calibrated anew.

    Args:
        index: of documents that no explainer saw.
        explanations: in any order; features with fewer than 4 active documents here are left out.
        calibrate: "linear", "percentile", or None where predictions are in units of the activation.
        progress: told (done, all) after each.

    Raises MechlabError for an unknown calibration and whatever the simulator raises.
    """
    if calibrate not in (None, *CALIBRATIONS):
        raise MechlabError("unknown calibration", calibrate, near(calibrate, CALIBRATIONS))
    places = divide(index.text, width)
    found: list[Simulated] = []
    for at, explanation in enumerate(explanations):
        others = [each for each in explanations if each.feature != explanation.feature]
        starts = simulation_windows(index, explanation.feature, places, windows, seed)
        if len(starts) >= 4:
            other = others[at % len(others)] if others else None
            found.append(_one(index, explanation, other, simulator, starts, width, calibrate, seed))
        if progress is not None:
            progress(at + 1, len(explanations))
    return found


def simulation_windows(
    index: FeatureIndex, feature: int, places: Windows, count: int, seed: int
) -> Int[np.ndarray, "window"]:
    """First rows of the top windows, one per document, and of as many random ones; none if too few fire."""
    row, value = index.entries(feature)
    window, peak = places.peaks(np.asarray(row), np.asarray(value))
    ranked = window[np.argsort(-peak, kind="stable")]
    _, first = np.unique(places.document[ranked], return_index=True)
    top = ranked[np.sort(first)[:count]]
    if len(top) < 4:
        return np.zeros(0, np.int64)
    rest = np.setdiff1d(np.arange(len(places)), top)
    generator = np.random.default_rng([seed, feature])
    drawn = generator.choice(rest, min(len(top), len(rest)), replace=False)
    return places.start[np.concatenate([top, drawn])]


def _one(
    index: FeatureIndex,
    explanation: Explanation,
    other: Explanation | None,
    simulator: Simulator,
    starts: Int[np.ndarray, "window"],
    width: int,
    calibrate: str | None,
    seed: int,
) -> Simulated:
    truth = index.dense(explanation.feature)[starts[:, None] + np.arange(width)].astype(np.float64)
    document = index.text.document[starts].astype(np.int64)
    # Ranked documents take turns, so that both parts hold strong and weak windows.
    _, first, place = np.unique(document, return_index=True, return_inverse=True)
    fits: Bool[np.ndarray, "window"] = (np.argsort(np.argsort(first))[place] % 2).astype(bool)
    kept = np.ones(len(starts), bool) if calibrate is None else ~fits

    def measured(said: Explanation, nulls: dict[str, Score] | None) -> tuple[dict[str, Score], int]:
        predicted = simulator(said, index.text, starts, width)
        failed = int((~np.isfinite(predicted).all(1)).sum())
        if calibrate is not None:
            predicted = calibrated(truth, predicted, fits, calibrate)
        return simulation_scores(truth[kept], predicted[kept], document[kept], seed=seed, nulls=nulls), failed

    nulls = None if other is None else measured(other, None)[0]
    scores, failed = measured(explanation, nulls)
    return Simulated(explanation.feature, explanation.explainer, scores, failed)
