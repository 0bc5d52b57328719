"""Learn a token rule for every live feature from token statistics.

For one feature and one kind of key, let key i occur n_i times and be active on a_i of
them, and let the feature be active on A of N rows. Choosing at most C keys S to maximise

    F1(S) = 2 Σ_S a_i / (Σ_S n_i + A)

is a fractional program, solved exactly by Dinkelbach's iteration: for a trial value λ
keep the C keys with the largest positive 2 a_i - λ n_i, set λ to their F1, repeat until it
stops growing. To keep rare keys from looking perfect, a_i is replaced by the m-estimate
n_i (a_i + m A/N) / (n_i + m), which pulls a key seen only once towards the base rate; that
also lets the three kinds of key compete fairly, as pairs are rarer than tokens.

The threshold between "active" and "not active" is then the one with the best balanced
accuracy over windows of the same text.

Sources: Dinkelbach (1967), *On nonlinear fractional programming*; Cestnik (1990),
*Estimating probabilities: a crucial task in machine learning*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError
from mechlab.features.token_index import FeatureIndex
from mechlab.features.token_rows import Rows
from mechlab.features.token_rules import KINDS, Decode, KeyTable, TokenRule
from mechlab.features.token_windows import WIDTH, Windows, divide

MAX_KEYS = 16
PRIOR = 2.0
"""Strength m of the m-estimate, in occurrences."""


@dataclass(frozen=True)
class Explanations:
    """A rule and its sentence for every live feature.

    Attributes:
        rules: feature → rule.
        sentences: feature → the rule in English.
        d_sae: number of features, so that the missing ones are known to be dead.
        documents: documents the rules were learnt from, sorted.
        window: width of the windows the thresholds were chosen on.
    """

    rules: dict[int, TokenRule]
    sentences: dict[int, str]
    d_sae: int
    documents: tuple[int, ...]
    window: int

    @property
    def dead(self) -> list[int]:
        """Features that never fired on the text that was explained."""
        return [feature for feature in range(self.d_sae) if feature not in self.rules]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "d_sae": self.d_sae,
            "window": self.window,
            "documents": list(self.documents),
            "features": [
                {"feature": feature, "sentence": self.sentences[feature], "rule": rule.to_dict()}
                for feature, rule in sorted(self.rules.items())
            ],
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Explanations:
        """The inverse of ``to_dict``."""
        return cls(
            rules={each["feature"]: TokenRule.from_dict(each["rule"]) for each in fields["features"]},
            sentences={each["feature"]: each["sentence"] for each in fields["features"]},
            d_sae=fields["d_sae"],
            documents=tuple(fields["documents"]),
            window=fields["window"],
        )


def explain_features(
    index: FeatureIndex, rows: Rows, decode: Decode, *, max_keys: int = MAX_KEYS, window: int = WIDTH
) -> Explanations:
    """A token rule for every feature that fires on ``rows``.

    Args:
        index: the index built from these very rows.
        decode: token id → the string to show.
        max_keys: most keys in one rule.
        window: tokens per window when the threshold is chosen.

    Raises MechlabError when the index was built from other rows.
    """
    if not (np.array_equal(index.tokens, rows.tokens) and np.array_equal(index.document, rows.document)):
        raise MechlabError(
            "index and rows differ",
            f"{len(index.tokens)} and {len(rows)} rows",
            "build the index from the rows to be explained",
        )
    tables = [KeyTable(kind, rows.tokens, rows.context) for kind in KINDS]
    windows = divide(rows, window)
    rules: dict[int, TokenRule] = {}
    for feature in np.flatnonzero(index.active).tolist():
        active, value = index.entries(feature)
        # Ties go to the simpler kind, which comes first.
        best = max((_learn(table, active, value, max_keys) for table in tables), key=lambda found: found[0])
        rules[feature] = _finish(best[1], tables[KINDS.index(best[1].kind)], active, value, windows)
    return Explanations(
        rules=rules,
        sentences={feature: rule.sentence(decode) for feature, rule in rules.items()},
        d_sae=index.d_sae,
        documents=tuple(np.unique(rows.document).tolist()),
        window=window,
    )


def _learn(
    table: KeyTable, active: Int[np.ndarray, "entry"], value: Float[np.ndarray, "entry"], max_keys: int
) -> tuple[float, TokenRule]:
    """The best rule of one kind, with the (shrunken) F1 it was chosen by."""
    known = table.codes[active] >= 0
    codes, inverse, hits = np.unique(table.codes[active][known], return_inverse=True, return_counts=True)
    if len(codes) == 0:  # active only where no token comes before
        return -1.0, TokenRule(table.kind, ((0, 0),), (0.0,))
    mass = np.bincount(inverse, weights=value[known], minlength=len(codes))
    seen = table.count(codes)
    base = len(active) / len(table.codes)
    expected = seen * (hits + PRIOR * base) / (seen + PRIOR)
    chosen, f1 = best_f1(expected, seen.astype(np.float64), float(len(active)), max_keys)
    keys = tuple(table.key(code) for code in codes[chosen].tolist())
    return f1, TokenRule(table.kind, keys, tuple((mass[chosen] / seen[chosen]).tolist()))


def best_f1(
    hits: Float[np.ndarray, "key"], seen: Float[np.ndarray, "key"], positives: float, limit: int
) -> tuple[Int[np.ndarray, "chosen"], float]:
    """At most ``limit`` keys with the largest 2 Σ hits / (Σ seen + positives), and that value.

    At least one key is always chosen. Ties are broken by place.
    """
    level, chosen = -1.0, np.zeros(0, np.int64)
    reached = float((2 * hits / (seen + positives)).max())
    while reached > level:
        level = reached
        gain = 2 * hits - level * seen
        order = np.argsort(-gain, kind="stable")[:limit]
        chosen = order[gain[order] > 0]
        reached = float(2 * hits[chosen].sum() / (seen[chosen].sum() + positives))
    return chosen, max(reached, level)


def _finish(
    rule: TokenRule,
    table: KeyTable,
    active: Int[np.ndarray, "entry"],
    value: Float[np.ndarray, "entry"],
    windows: Windows,
) -> TokenRule:
    """The rule with its threshold, and what it achieves above it."""
    rows, predicted = table.predict(rule)
    levels = np.unique(np.array([0.0, *rule.activations]))
    threshold = best_threshold(windows.peak(rows, predicted), windows.touched(active), levels[:-1])
    fired = rows[predicted > threshold]
    correct = np.isin(active, fired)
    hits = int(correct.sum())
    return TokenRule(
        kind=rule.kind,
        keys=rule.keys,
        activations=rule.activations,
        threshold=threshold,
        share=float(value[correct].sum() / value.sum()),
        precision=hits / max(len(fired), 1),
        f1=2 * hits / (len(fired) + len(active)),
    )


def best_threshold(
    peak: Float[np.ndarray, "window"], active: Bool[np.ndarray, "window"], levels: Float[np.ndarray, "level"]
) -> float:
    """The level with the best balanced accuracy of ``peak > level``; the lowest among equals.

    The lowest level, too, when all windows are of one class and nothing can be told.
    """
    positives, negatives = int(active.sum()), int((~active).sum())
    if positives == 0 or negatives == 0:
        return float(levels[0])
    above = np.searchsorted(levels, peak, "left")  # number of levels below the peak
    caught = np.bincount(above[active], minlength=len(levels) + 1)[::-1].cumsum()[::-1][1:]
    false = np.bincount(above[~active], minlength=len(levels) + 1)[::-1].cumsum()[::-1][1:]
    return float(levels[np.argmax(caught / positives - false / negatives)])
