"""From index, explanations and scores to what the page shows of each feature."""

from __future__ import annotations

from collections.abc import Collection

from mechlab.dashboards.page import ContextRecord, FeatureRecord
from mechlab.features.contexts import Context, context_at, shown
from mechlab.features.explanations import Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.scorecard import Scorecard, Scored
from mechlab.features.statistics import Statistics
from mechlab_kernels.contexts import top_peaks

CONTEXTS = 8
RADIUS = 12
BINS = 24
NEVER = "never fired on the text that was explained"


def feature_records(
    index: FeatureIndex,
    statistics: Statistics,
    explanations: Explanations,
    scores: Scorecard,
    *,
    contexts: int = CONTEXTS,
    radius: int = RADIUS,
) -> tuple[FeatureRecord, ...]:
    """One record per feature of the index, dead ones included.

    Args:
        contexts: strongest contexts per feature.
        radius: tokens shown on either side of a peak.

    Where several explainers spoke of a feature, the first one's words are shown, with their score.
    """
    said = {each.feature: each for each in reversed(explanations.items)}
    why = {each.feature: each.reason for each in reversed(scores.unscored)}
    found: dict[int, Scored] = {}
    for each in scores:
        there = said.get(each.feature)
        if each.scorer == "detection" and there is not None and there.explainer == each.explainer:
            found[each.feature] = each
    live: Collection[int] = set(index.live.tolist())
    text = index.text
    peaks = top_peaks(index.indptr, index.row, index.value, text.tokens, text.bounds, contexts, radius)
    return tuple(
        FeatureRecord(
            index=feature,
            density=float(index.density[feature]),
            maximum=float(index.maximum[feature]),
            mean=float(index.mean[feature]),
            histogram=_coarse(statistics.histogram[feature].tolist()),
            explanation=said[feature].text if feature in said else "",
            score=found[feature].score if feature in found else None,
            unscored="" if feature in found else why.get(feature, "" if feature in live else NEVER),
            contexts=tuple(
                _record(index, feature, context_at(text, row, radius))
                for row in peaks[feature].tolist()
                if row >= 0
            ),
        )
        for feature in range(index.n_features)
    )


def _record(index: FeatureIndex, feature: int, context: Context) -> ContextRecord:
    pieces = shown(index, feature, context)
    return ContextRecord(
        tokens=tuple(piece.text for piece in pieces),
        activations=tuple(piece.activation for piece in pieces),
        document=context.document,
        centre=next(place for place, piece in enumerate(pieces) if piece.centre),
    )


def _coarse(counts: list[int]) -> tuple[int, ...]:
    """A histogram of at most ``BINS`` bins: neighbours added up."""
    step = -(-len(counts) // BINS)
    return tuple(sum(counts[start : start + step]) for start in range(0, len(counts), step))
