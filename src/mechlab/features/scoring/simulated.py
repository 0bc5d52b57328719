"""The simulation scores of features: predicted against true activations on held-out windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechlab.errors import MechlabError, near
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.scorecard import Scorecard, Scored, Unscored
from mechlab.features.scoring.simulation import CALIBRATIONS, calibrated, simulation_scores
from mechlab.features.scoring.simulators import Simulator
from mechlab.features.windows import WIDTH, Windows, divide
from mechlab.scores import Score

WINDOWS = 20
FEWEST = 4
"""Held-out documents in which a feature must be active to be scored."""


def score_simulations(
    index: FeatureIndex,
    explanations: Explanations,
    simulator: Simulator,
    *,
    windows: int = WINDOWS,
    width: int = WIDTH,
    calibrate: str | None = "linear",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scorecard:
    """Simulation scores, by scorers "simulation correlation", "simulation r_squared" and so on.

    For each feature: the windows with its largest activations, one per document, and as many at
    random. With a calibration every second of them, by document, is spent on it. The null is what
    the next feature's explanation predicts on the same windows, calibrated anew.

    Args:
        index: of documents that no explainer saw.
        simulator: ``RuleSimulator``, ``ModelSimulator``, or a language model behind a server
            (``mechlab.features.llm.simulator``).
        windows: most windows of either kind.
        calibrate: "linear", "percentile", or None where predictions are in units of the activation.
        progress: told (done, all) after each.

    Raises MechlabError for an unknown calibration, documents that explainers saw, and whatever the
    simulator raises.
    """
    if calibrate is not None and calibrate not in CALIBRATIONS:
        raise MechlabError("unknown calibration", calibrate, near(calibrate, CALIBRATIONS))
    seen = np.intersect1d(np.unique(index.text.document), np.array(explanations.documents, np.int64))
    if len(seen):
        raise MechlabError(
            "documents were also used to explain",
            f"{len(seen)} of them, the first {seen[0]}",
            "score on the other half of the split",
        )
    places, items = divide(index.text, width), explanations.items
    scored: list[Scored] = []
    unscored: list[Unscored] = []
    for at, explanation in enumerate(items):
        starts = simulation_windows(index, explanation.feature, places, windows, seed)
        if len(starts):
            after = (*items[at + 1 :], *items[:at])
            other = next((each for each in after if each.feature != explanation.feature), None)
            asked = _Asked(index, starts, width, simulator, calibrate, seed)
            scored += asked.scores(explanation, other)
        else:
            why = f"active in fewer than {FEWEST} held-out documents"
            unscored.append(Unscored(explanation.feature, explanation.explainer, "simulation", why))
        if progress is not None:
            progress(at + 1, len(items))
    return Scorecard(tuple(scored), tuple(unscored), seed)


def simulation_windows(
    index: FeatureIndex, feature: int, places: Windows, count: int, seed: int
) -> Int[np.ndarray, "window"]:
    """First rows of the top windows, one per document, and of as many random ones; none if too few fire."""
    window, peak = places.peaks(*index.entries(feature))
    ranked = window[np.argsort(-peak, kind="stable")]
    _, first = np.unique(places.document[ranked], return_index=True)
    top = ranked[np.sort(first)[:count]]
    if len(top) < FEWEST:
        return np.zeros(0, np.int64)
    rest = np.setdiff1d(np.arange(len(places)), top)
    generator = np.random.default_rng([seed, feature])
    drawn = generator.choice(rest, min(len(top), len(rest)), replace=False)
    starts: np.ndarray = places.start[np.concatenate([top, drawn])]
    return starts


@dataclass(frozen=True)
class _Asked:
    """Windows of one feature, the top ones first, and how they are asked about."""

    index: FeatureIndex
    starts: Int[np.ndarray, "window"]
    width: int
    simulator: Simulator
    calibrate: str | None
    seed: int

    def scores(self, explanation: Explanation, other: Explanation | None) -> list[Scored]:
        rows = self.starts[:, None] + np.arange(self.width)
        truth = self.index.dense(explanation.feature)[rows].astype(np.float64)
        nulls = None if other is None else self._measured(other, truth, None)[0]
        found, failed = self._measured(explanation, truth, nulls)
        active = int((truth > 0).any(1).sum())
        return [
            Scored(
                feature=explanation.feature,
                explainer=explanation.explainer,
                scorer=f"simulation {name}",
                score=each,
                base_rate=float(self.index.density[explanation.feature]),
                failed=failed,
                n_positive=active,
                n_negative=len(truth) - active,
            )
            for name, each in found.items()
        ]

    def _measured(
        self, said: Explanation, truth: Float[np.ndarray, "window pos"], nulls: dict[str, Score] | None
    ) -> tuple[dict[str, Score], int]:
        predicted = self.simulator(said, self.index.text, self.starts, self.width)
        failed = int((~np.isfinite(predicted).all(1)).sum())
        document = self.index.text.document[self.starts].astype(np.int64)
        kept = np.ones(len(truth), bool)
        if self.calibrate is not None:
            # Documents in order of rank take turns, so that both parts hold strong and weak windows.
            _, first, place = np.unique(document, return_index=True, return_inverse=True)
            kept = np.argsort(np.argsort(first))[place] % 2 == 0
            predicted = calibrated(truth, predicted, ~kept, self.calibrate)
        return simulation_scores(
            truth[kept], predicted[kept], document[kept], seed=self.seed, nulls=nulls
        ), failed
