"""Detection: can an explanation tell windows where the feature fires from windows where it does not?

For each feature up to 50 windows with an activation and 50 without (looked up, not
assumed) are drawn at random from documents the explainer never saw, at most one of either
class per document. The rule says "active" when its prediction passes its threshold on any
token. The score is balanced accuracy, so a rule that always gives one answer gets 1/2.

The interval is Wilson's for either class, joined by the square-and-add rule; windows of one
class come from different documents, so they are independent draws, and unlike a bootstrap
it does not collapse to a point when every answer is right.

The control scores every feature on the same windows with another feature's rule, by a
permutation that leaves none in place. It stands at 1/2 unless features fire together more
(or less) often than chance, in which case it shows by how much that alone helps.

Sources: Paulo et al. (2024), *Automatically interpreting millions of features in large
language models* (detection); Newcombe (1998), *Interval estimation for the difference
between independent proportions*, method 10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from mechlab.errors import MechlabError
from mechlab.features.token_explain import Explanations
from mechlab.features.token_index import build_index
from mechlab.features.token_rows import Rows
from mechlab.features.token_rules import KINDS, KeyTable, TokenRule
from mechlab.features.token_windows import Windows, divide
from mechlab.scores import Score, mean, score, wilson

WINDOWS = 50
FEWEST = 5
CHANCE = 0.5


@dataclass(frozen=True)
class DetectionResult:
    """Detection of every feature.

    Attributes:
        scores: feature → balanced accuracy, with the score under another feature's
            rule as its null.
        unscored: feature → why it has no score.
        total: mean over scored features with an interval over features; its null is the
            mean of the nulls. None when no feature could be scored.
    """

    scores: dict[int, Score]
    unscored: dict[int, str]
    total: Score | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "total": None if self.total is None else self.total.to_dict(),
            "features": [{"feature": f, **score.to_dict()} for f, score in sorted(self.scores.items())],
            "unscored": [{"feature": f, "reason": reason} for f, reason in sorted(self.unscored.items())],
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> DetectionResult:
        """The inverse of ``to_dict``."""
        return cls(
            scores={each["feature"]: Score.from_dict(each) for each in fields["features"]},
            unscored={each["feature"]: each["reason"] for each in fields["unscored"]},
            total=None if fields["total"] is None else Score.from_dict(fields["total"]),
        )


@dataclass(frozen=True)
class _Sample:
    """Windows drawn for one feature."""

    active: Int[np.ndarray, "active"]
    inactive: Int[np.ndarray, "inactive"]
    documents: int


def score_explanations(
    explanations: Explanations, rows: Rows, seed: int = 0, *, sample: int = WINDOWS, fewest: int = FEWEST
) -> DetectionResult:
    """Detection score of every explained feature on ``rows``.

    Args:
        rows: codes of documents that had no part in the explanations.
        seed: decides which windows are drawn and whose rule serves as control.
        sample: most windows of either class.
        fewest: windows of either class below which a feature is not scored.

    Raises MechlabError when a document was also used to explain, when the dictionaries
    differ in width, or when no context is as long as a window.
    """
    _refuse_leaks(explanations, rows)
    windows = divide(rows, explanations.window)
    if len(windows) == 0:
        raise MechlabError(
            "no context is as long as a window", f"{windows.width} tokens", "use longer contexts"
        )
    index = build_index(rows)
    unscored = dict.fromkeys(explanations.dead, "never fired on the text that was explained")
    samples: dict[int, _Sample] = {}
    for feature in sorted(explanations.rules):
        generator = np.random.default_rng([seed, feature])
        drawn = _draw(windows, windows.touched(index.entries(feature)[0]), sample, generator)
        if len(drawn.active) < fewest:
            unscored[feature] = f"fires in only {len(drawn.active)} held-out documents"
        elif len(drawn.inactive) < fewest:
            unscored[feature] = f"silent in windows of only {len(drawn.inactive)} held-out documents"
        else:
            samples[feature] = drawn
    features = list(samples)
    tables = {kind: KeyTable(kind, rows.tokens, rows.context) for kind in KINDS}
    lent = dict(zip(features, _derangement(len(features), seed), strict=True))
    scores: dict[int, Score] = {}
    nulls: dict[int, Score] = {}
    for feature in features:
        fired = _fired(explanations.rules[feature], tables, windows)
        scores[feature] = _balanced_accuracy(fired, samples[feature])
        if len(features) > 1:
            borrower = features[lent[feature]]
            nulls[borrower] = _balanced_accuracy(fired, samples[borrower])
    joined = {f: _with_null(scores[f], nulls.get(f)) for f in features}
    return DetectionResult(joined, unscored, _total(list(joined.values()), seed))


def _refuse_leaks(explanations: Explanations, rows: Rows) -> None:
    seen = np.intersect1d(np.unique(rows.document), np.array(explanations.documents, np.int64))
    if len(seen):
        raise MechlabError(
            "documents were also used to explain",
            f"{len(seen)} of them, the first {seen[0]}",
            "score on other documents, numbered differently",
        )
    if rows.d_sae != explanations.d_sae:
        raise MechlabError("dictionaries differ in width", f"{rows.d_sae}", f"{explanations.d_sae} expected")


def _draw(
    windows: Windows, active: Bool[np.ndarray, "window"], most: int, generator: np.random.Generator
) -> _Sample:
    """Windows of either class in random order, the first of each document, up to ``most``."""
    order = generator.permutation(len(windows))
    drawn = []
    for members in (order[active[order]], order[~active[order]]):
        _, first = np.unique(windows.document[members], return_index=True)
        drawn.append(members[np.sort(first)[:most]])
    both = np.unique(windows.document[np.concatenate(drawn)])
    return _Sample(drawn[0], drawn[1], len(both))


def _fired(rule: TokenRule, tables: dict[str, KeyTable], windows: Windows) -> Bool[np.ndarray, "window"]:
    rows, predicted = tables[rule.kind].predict(rule)
    return windows.touched(rows[predicted > rule.threshold])


def _balanced_accuracy(fired: Bool[np.ndarray, "window"], sample: _Sample) -> Score:
    value, below, above = 0.0, 0.0, 0.0
    for correct, n in (
        (int(fired[sample.active].sum()), len(sample.active)),
        (int((~fired[sample.inactive]).sum()), len(sample.inactive)),
    ):
        low, high = wilson(correct, n)
        value += correct / n / 2
        below += (correct / n - low) ** 2
        above += (high - correct / n) ** 2
    return Score(
        name="detection",
        value=value,
        low=value - math.sqrt(below) / 2,
        high=value + math.sqrt(above) / 2,
        n=sample.documents,
        chance=CHANCE,
    )


def _derangement(n: int, seed: int) -> list[int]:
    """A random permutation without a fixed place: one cycle through all places in random order."""
    cycle = np.random.default_rng(seed).permutation(n)
    image = np.empty(n, np.int64)
    image[cycle] = np.roll(cycle, -1)
    return image.tolist()


def _with_null(real: Score, null: Score | None) -> Score:
    return Score(real.name, real.value, real.low, real.high, real.n, null, CHANCE)


def _total(scores: list[Score], seed: int) -> Score | None:
    if not scores:
        return None
    nulls = [each.null.value for each in scores if each.null is not None]
    null = _mean("detection, shuffled explanations", nulls, seed, None) if nulls else None
    return _mean("detection", [each.value for each in scores], seed, null)


def _mean(name: str, values: list[float], seed: int, null: Score | None) -> Score:
    sums = np.stack([np.array(values), np.ones(len(values))], axis=1)
    return score(name, sums, mean, seed=seed, null=null, chance=CHANCE)
