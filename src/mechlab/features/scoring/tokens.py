"""Exact measures of rules: every held-out token and window is looked at, at the true base rate.

Balanced detection flatters rules that fire too often: where a feature is active on one token in a
thousand, a rule that is wrong on one in a hundred passes nearly every detection item and is wrong
nine times in ten. Precision and F1 over all tokens say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechlab.features.explanations import Explanation
from mechlab.features.scoring.held import Held, among
from mechlab.features.scoring.metrics import clustered, lenders, with_null
from mechlab.features.scoring.rules import RuleJudge
from mechlab.features.scoring.scorecard import Scored
from mechlab.scores import Score


@dataclass(frozen=True, eq=False)
class Counts:
    """Tokens of every document, by what they are and what the rule says: one row per document."""

    hits: Float[np.ndarray, "document"]
    false: Float[np.ndarray, "document"]
    missed: Float[np.ndarray, "document"]
    rest: Float[np.ndarray, "document"]


class TokenScorer:
    """Scores rules on all tokens, and on all windows, of one index.

    Args:
        held: what is scored on.
    """

    def __init__(self, held: Held) -> None:
        self.held = held
        _, self._of_row = np.unique(held.index.text.document, return_inverse=True)
        _, self._of_window = np.unique(held.windows.document, return_inverse=True)
        self._tokens = np.bincount(self._of_row).astype(np.float64)
        self._windows = np.bincount(self._of_window).astype(np.float64)

    def counts(self, rows: Int[np.ndarray, "hit"], feature: int) -> Counts:
        """What a rule that fires on ``rows`` (ascending) gets right of a feature, token by token."""
        return _counts(rows, self.held.index.entries(feature)[0], self._of_row, self._tokens)

    def window_counts(self, rows: Int[np.ndarray, "hit"], feature: int) -> Counts:
        """The same, window by window; a rule calls a window active when it fires in it."""
        window = self.held.windows.of_row[rows]
        fired = np.unique(window[window >= 0])
        return _counts(fired, self.held.active(feature).window, self._of_window, self._windows)

    def scores(self, rows: Int[np.ndarray, "hit"], feature: int) -> list[Score]:
        """F1, precision, recall and specificity over tokens; precision over windows.

        Intervals have documents as units. The chance of a precision is the base rate; the others have none.
        """
        at, over = self.counts(rows, feature), self.window_counts(rows, feature)
        density = float(self.held.index.density[feature])
        twice = 2 * at.hits
        return [
            clustered("token f1", twice, twice + at.false + at.missed),
            clustered("token precision", at.hits, at.hits + at.false, chance=density),
            clustered("token recall", at.hits, at.hits + at.missed),
            clustered("token specificity", at.rest, at.rest + at.false),
            clustered(
                "window precision", over.hits, over.hits + over.false, chance=self.held.base_rate(feature)
            ),
        ]

    def scored(self, explanation: Explanation, score: Score) -> Scored:
        """A score with what it was measured on."""
        feature, window = explanation.feature, score.name.startswith("window")
        active = len(self.held.active(feature)) if window else int(self.held.index.active[feature])
        of = len(self.held.windows) if window else len(self.held.index.text)
        return Scored(feature, explanation.explainer, score.name, score, active / of, 0, active, of - active)


def score_rules(held: Held, explanations: Sequence[Explanation], rules: RuleJudge, seed: int) -> list[Scored]:
    """Exact scores of explanations that all have rules, each with another feature's rule as its null.

    A feature that is nowhere active has no recall and no F1; its other scores stand.
    """
    scorer, found = TokenScorer(held), []
    for explainer in dict.fromkeys(each.explainer for each in explanations):
        group = [each for each in explanations if each.explainer == explainer]
        others = lenders([each.feature for each in group], np.random.default_rng(seed))
        borrowers: dict[int, list[int]] = {}
        for place, other in enumerate(others or ()):
            borrowers.setdefault(other, []).append(place)
        own: list[list[Score]] = []
        lent: dict[int, list[Score]] = {}
        for place, explanation in enumerate(group):
            assert explanation.rule is not None
            rows = rules.rows(explanation.rule)
            own.append(scorer.scores(rows, explanation.feature))
            for borrower in borrowers.get(place, ()):
                lent[borrower] = scorer.scores(rows, group[borrower].feature)
        for place, explanation in enumerate(group):
            nulls = lent.get(place, [None] * len(own[place]))
            found += [
                scorer.scored(explanation, with_null(score, null))
                for score, null in zip(own[place], nulls, strict=True)
                if not math.isnan(score.value)
            ]
    return found


def _counts(
    fired: Int[np.ndarray, "fired"],
    active: Int[np.ndarray, "active"],
    document: Int[np.ndarray, "unit"],
    total: Float[np.ndarray, "document"],
) -> Counts:
    right = among(fired, active)
    hits = np.bincount(document[fired[right]], minlength=len(total)).astype(np.float64)
    false = np.bincount(document[fired[~right]], minlength=len(total)).astype(np.float64)
    present = np.bincount(document[active], minlength=len(total)).astype(np.float64)
    return Counts(hits, false, present - hits, total - present - false)
