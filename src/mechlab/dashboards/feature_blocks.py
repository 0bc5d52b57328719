"""The blocks of a page that are about features: a light overview of all, and records some at a time.

``overview`` holds one column for every figure, one entry a feature, so that a page can list, search and
sort thousands at once; ``features-K`` holds all there is to see of ``CHUNK`` features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from mechlab.dashboards.block_values import short
from mechlab.dashboards.feature_contexts import choose_contexts, strongest
from mechlab.dashboards.feature_material import FeatureMaterial
from mechlab.dashboards.feature_record import Recorder, Strings
from mechlab.features.contexts import context_at
from mechlab.features.text import Text
from mechlab.sae.metrics.geometry import DENSE

CHUNK = 64
# Different tokens at the strongest peaks by which a feature can be found.
_TOKENS = 5


def feature_blocks(
    material: FeatureMaterial, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[str, Any]]:
    """Name and value of every block, ``overview`` first; one at a time is in memory.

    Args:
        seed: random contexts follow from it.
        progress: told how many features are done, and of how many.

    Values are plain JSON: numbers with at most 4 significant digits, None for those that are undefined.
    Raises MechlabError when the index is damaged.
    """
    index = material.index
    recorder, peaks = Recorder(material), strongest(index)
    yield "overview", _overview(material, recorder, peaks)
    for start in range(0, index.n_features, CHUNK):
        strings, records = Strings(), {}
        stop = min(start + CHUNK, index.n_features)
        for feature in range(start, stop):
            chosen = choose_contexts(index, feature, peaks[feature], material.neighbours(feature), seed)
            judged = None if material.drill is None else material.drill.of(feature)
            records[str(feature)] = recorder.record(feature, chosen, judged, strings)
        yield f"features-{start // CHUNK}", {"strings": strings.finish(), "features": records}
        if progress is not None:
            progress(stop, index.n_features)


def _overview(
    material: FeatureMaterial, recorder: Recorder, peaks: Int[np.ndarray, "feature top"]
) -> dict[str, Any]:
    index, every = material.index, range(material.index.n_features)
    first = [recorder.first(feature) for feature in every]
    by_scorer: dict[str, dict[str, list[Any]]] = {}
    for feature, said in enumerate(first):
        for scored in recorder.scores(feature, said.explainer if said else ""):
            empty = {name: [None] * len(every) for name in ("value", "low", "high", "null")}
            columns, score = by_scorer.setdefault(scored.scorer, empty), scored.score
            null = None if score.null is None else score.null.value
            for name, value in zip(columns, (score.value, score.low, score.high, null), strict=True):
                columns[name][feature] = short(value)
    return {
        "features": index.n_features,
        "chunk": CHUNK,
        "scorers": list(by_scorer),
        "columns": {
            "n": list(every),
            "density": [short(each) for each in index.density.tolist()],
            "max": [short(each) for each in index.maximum.tolist()],
            "mean": [short(each) for each in index.mean.tolist()],
            "said": [said.text if said else "" for said in first],
            "by": [said.explainer if said else "" for said in first],
            "tokens": [_tokens(index.text, row) for row in peaks],
            "scores": by_scorer,
            "flags": [
                "dead" if not each else "dense" if each > DENSE else "" for each in index.density.tolist()
            ],
            "label": [material.notes.labels.get(feature, "") for feature in every],
            "concept": [
                material.concepts[feature][0].name if feature in material.concepts else ""
                for feature in every
            ],
        },
    }


def _tokens(text: Text, peaks: Int[np.ndarray, "top"]) -> list[str]:
    """What the tokens at a feature's strongest peaks say, the strongest first."""
    found: dict[str, None] = {}
    for row in peaks[peaks >= 0].tolist():
        token = int(text.tokens[row])
        said = text.vocabulary[token]
        if token in text.vocabulary.partial:
            context = context_at(text, row, 0)
            pieces = text.vocabulary.pieces(text.tokens[context.start : context.stop])
            said = next(piece.text for piece in pieces if piece.start <= context.centre < piece.stop)
        found[said or f"<{token}>"] = None
    return list(found)[:_TOKENS]
