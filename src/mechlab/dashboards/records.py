"""From index, explanations and scores to what the page shows of each feature."""

from __future__ import annotations

from collections.abc import Callable

from mechlab.dashboards.page import ContextRecord, FeatureRecord
from mechlab.features.token_detection import DetectionResult
from mechlab.features.token_explain import Explanations
from mechlab.features.token_index import FeatureIndex

CONTEXTS = 8
RADIUS = 12
BINS = 24


def feature_records(
    index: FeatureIndex,
    explanations: Explanations,
    detection: DetectionResult,
    decode: Callable[[int], str],
    *,
    contexts: int = CONTEXTS,
    radius: int = RADIUS,
) -> tuple[FeatureRecord, ...]:
    """One record per feature of the dictionary, dead ones included.

    Args:
        decode: token id → the string to show.
        contexts: strongest contexts per feature.
        radius: tokens shown on either side of a peak.
    """
    return tuple(
        FeatureRecord(
            index=feature,
            density=float(index.density[feature]),
            maximum=float(index.maximum[feature]),
            mean=float(index.mean[feature]),
            histogram=tuple(index.histogram(feature, BINS)[0].tolist()),
            explanation=explanations.sentences.get(feature, ""),
            score=detection.scores.get(feature),
            unscored=detection.unscored.get(feature, ""),
            contexts=tuple(
                ContextRecord(
                    tokens=tuple(decode(token) for token in found.tokens.tolist()),
                    activations=tuple(found.activations.tolist()),
                    document=found.document,
                    centre=found.centre,
                )
                for found in index.top_contexts(feature, contexts, radius)
            ),
        )
        for feature in range(index.d_sae)
    )
