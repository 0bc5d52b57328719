"""The front door: scores of explanations on documents that no explainer saw."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from mechlab.errors import MechlabError, near
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.rules import Matcher
from mechlab.features.scoring.asking import Answered, Progress, draw, put
from mechlab.features.scoring.detection import accuracy, by_quantile, precision
from mechlab.features.scoring.held import FEWEST, SAMPLES, Held, hold
from mechlab.features.scoring.intruder import SimilarityJudge, picked
from mechlab.features.scoring.items import BatchJudge, Items, Judge
from mechlab.features.scoring.metrics import with_null
from mechlab.features.scoring.rules import RuleJudge
from mechlab.features.scoring.scorecard import Scorecard, Scored, Unscored
from mechlab.features.scoring.tokens import score_rules
from mechlab.features.windows import WIDTH
from mechlab.scores import Score

_INTRUDER, _TOKENS = "intruder", "tokens"
_TEST_OF: Mapping[str, str] = {
    "detection": "detection",
    "quantiles": "detection",
    "precision": "detection",
    "hard": "hard",
    "fuzzing": "fuzzing",
    _INTRUDER: _INTRUDER,
}
SCORERS = (*_TEST_OF, _TOKENS)
"""detection: windows with the feature from windows without. quantiles: the same for every
rank-quantile, and the top one less the rest. precision: at the true base rate, from the same answers.
hard: negatives are near misses. fuzzing: right marks from wrong ones. intruder: needs no explanation.
tokens: rules only, exactly, over all tokens and windows."""


def score_features(
    index: FeatureIndex,
    explanations: Explanations,
    scorers: Sequence[str] = ("detection", "fuzzing"),
    judge: Judge | BatchJudge | None = None,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    width: int = WIDTH,
    fewest: int = FEWEST,
    neighbours: Mapping[int, Sequence[int]] | None = None,
    concepts: Mapping[str, Collection[str]] | None = None,
    progress: Progress | None = None,
) -> Scorecard:
    """Scores of every explanation, each with the score of another feature's explanation beside it.

    The control stands at chance unless features are active together more (or less) often than by
    chance, or are explained alike, and then shows how much that alone helps.

    Args:
        index: of documents that had no part in the explanations.
        scorers: names out of ``SCORERS``.
        judge: answers about the items; by default rules are executed (explanations without one are
            not scored) and intruders are picked by likeness.
        samples: most items of either class (most groups of an intruder test).
        width: tokens per item.
        fewest: items of either class below which there is no score.
        neighbours: feature → features like it, nearest first, for "hard".
        concepts: lists of words that rules may name.
        progress: told how many questions are answered, and of how many.

    Raises MechlabError for documents that explainers saw, explanations of an index of another size,
    an unknown scorer, and as ``hold`` does.
    """
    _refuse(index, explanations, scorers)
    held = hold(index, width=width, samples=samples, fewest=fewest, neighbours=neighbours, seed=seed)
    rules = RuleJudge(Matcher(index.text, concepts or {}))
    unscored = [Unscored(feature, "", "", why) for feature, why in sorted(explanations.failed.items())]
    judged, asked, groups = [], [], []
    for explanation in explanations.items:
        if judge is None and explanation.rule is None:
            why = "explanation is no rule that can be executed; give a judge"
            unscored.append(Unscored(explanation.feature, explanation.explainer, "", why))
        else:
            judged.append(explanation)
    for test in dict.fromkeys(_TEST_OF[name] for name in scorers if name != _TOKENS):
        # The intruder test is of features, not of what is said of them.
        features = sorted({each.feature for each in explanations.items})
        about = [Explanation(feature, "", "") for feature in features] if test == _INTRUDER else judged
        drawn, left = draw(held, test, about, seed)
        asked_for = [name for name in dict.fromkeys(scorers) if _TEST_OF.get(name) == test]
        unscored += [replace(each, scorer=name) for each in left for name in asked_for]
        if test == _INTRUDER:
            groups = [replace(each, lender=None) for each in drawn]
        else:
            asked += drawn
    answered = put(judge or rules, index.text, asked, progress)
    answered += put(judge or SimilarityJudge(), index.text, groups, progress)
    scored: list[Scored] = []
    for name in dict.fromkeys(scorers):
        if name == _TOKENS:
            scored += score_rules(held, [each for each in explanations.items if each.rule], rules, seed)
            continue
        for found in _measured(held, name, answered):
            if isinstance(found, Scored):
                scored.append(found)
            else:
                unscored.append(found)
    return Scorecard(tuple(sorted(scored, key=lambda each: each.feature)), tuple(unscored), seed)


def _refuse(index: FeatureIndex, explanations: Explanations, scorers: Sequence[str]) -> None:
    seen = np.intersect1d(np.unique(index.text.document), np.array(explanations.documents, np.int64))
    if len(seen):
        raise MechlabError(
            "documents were also used to explain",
            f"{len(seen)} of them, the first {seen[0]}",
            "score on the other half of the split",
        )
    if explanations.n_features != index.n_features:
        raise MechlabError(
            "explanations are of an index of another size",
            f"{explanations.n_features} features",
            f"{index.n_features} expected",
        )
    for name in scorers:
        if name not in SCORERS:
            raise MechlabError("unknown scorer", name, near(name, SCORERS))


def _measured(held: Held, name: str, answered: Sequence[Answered]) -> list[Scored | Unscored]:
    """One scorer's scores of everything that was asked in its test."""
    found: list[Scored | Unscored] = []
    for each in answered:
        if each.asked.test != _TEST_OF[name]:
            continue
        asked, feature = each.asked, each.asked.explanation.feature
        rate = held.base_rate(feature)
        usable = np.isfinite(each.own)
        items = asked.items.take(usable)
        counted = items.label[items.group >= 0]  # not the control groups of an intruder test
        positives, negatives = int(counted.sum()), int((~counted).sum())
        if min(positives, negatives) < held.fewest:
            why = f"judge gave usable answers to only {len(items)} of {len(usable)} items"
            found.append(Unscored(feature, asked.explanation.explainer, name, why))
            continue
        own = _scores(name, asked.items, each.own, each.graded, rate)
        lent = {}
        if each.lent is not None:
            lent = {score.name: score for score in _scores(name, asked.items, each.lent, each.graded, rate)}
        for score in own:
            scored = with_null(score, lent.get(score.name)) if lent else score
            found.append(
                Scored(
                    feature=feature,
                    explainer=asked.explanation.explainer,
                    scorer=score.name,
                    score=scored,
                    base_rate=rate,
                    failed=len(usable) - len(items),
                    n_positive=positives,
                    n_negative=negatives,
                )
            )
    return found


def _scores(
    name: str, items: Items, answer: Float[np.ndarray, "item"], graded: bool, base_rate: float
) -> list[Score]:
    """What one scorer makes of answers; those that are missing count for nothing."""
    usable = np.isfinite(answer)
    items, answer = items.take(usable), answer[usable]
    match name:
        case "intruder":
            return picked(name, items, answer)
        case "quantiles":
            return by_quantile(items, answer, graded)
        case "precision":
            return precision(items, answer, graded, base_rate)
    return accuracy(name, items, answer, graded)
