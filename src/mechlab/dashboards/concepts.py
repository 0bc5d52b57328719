"""Which known concept is a feature active on? Where the text's tokens are labelled, as Fable's are.

With "active" as the prediction of a label,

    precision = active and labelled / active,    recall = active and labelled / labelled,

and F1 their harmonic mean. Any activation counts, weak or strong; every feature is held against all
concepts, so the best of them has an F1 above 0 by luck alone, and only one of at least ``LEAST`` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from mechlab.features.index import FeatureIndex

LEAST, TOP = 0.3, 3


@dataclass(frozen=True)
class ConceptMatch:
    """How well one concept's label is predicted by one feature's being active."""

    name: str
    f1: float
    precision: float
    recall: float


def fable_labels(index: FeatureIndex) -> tuple[Bool[np.ndarray, "row concept"], tuple[str, ...]] | None:
    """The concepts of every row of an index of Fable, and their names; None for any other text."""
    from mechlab.data.corpus import SPLITS
    from mechlab.data.fable import CONCEPTS, TOKEN_ID, document, split_size

    about = index.about.get("text", {})
    if about.get("corpus") != "fable" or about.get("split") not in SPLITS:
        return None
    text, split = index.text, about["split"]
    table = np.zeros((len(text), len(CONCEPTS)), bool)
    numbers, first, counts = np.unique(text.document, return_index=True, return_counts=True)
    for number, start, count in zip(numbers.tolist(), first.tolist(), counts.tolist(), strict=True):
        # The corpus numbers the documents of all splits in turn (mechlab.data.corpus).
        one, rest = divmod(number, len(SPLITS))
        if rest != SPLITS.index(split) or one >= split_size(split):
            return None
        labelled = document(split, one)
        said = [TOKEN_ID[token] for token in labelled.tokens[:count]]
        if text.tokens[start : start + count].tolist() != said:
            return None
        table[start : start + count] = labelled.concepts[:count]
    return table, tuple(concept.name for concept in CONCEPTS)


def concept_matches(
    index: FeatureIndex, labels: Bool[np.ndarray, "row concept"], names: Sequence[str]
) -> dict[int, list[ConceptMatch]]:
    """Feature → its best concepts by F1, best first, at most ``TOP`` with an F1 of at least ``LEAST``."""
    both = _together(index, labels)
    active, labelled = index.active[:, None], labels.sum(0)[None]
    f1 = 2 * both / np.maximum(active + labelled, 1)
    order = np.argsort(-f1, axis=1, kind="stable")[:, :TOP]
    found: dict[int, list[ConceptMatch]] = {}
    for feature in np.flatnonzero((f1 >= LEAST).any(1)).tolist():
        found[feature] = [
            ConceptMatch(
                names[concept],
                float(f1[feature, concept]),
                float(both[feature, concept] / active[feature, 0]),
                float(both[feature, concept] / labelled[0, concept]),
            )
            for concept in order[feature].tolist()
            if f1[feature, concept] >= LEAST
        ]
    return found


def _together(
    index: FeatureIndex, labels: Bool[np.ndarray, "row concept"]
) -> Float[np.ndarray, "feature concept"]:
    """Rows on which a feature is active and a concept holds."""
    # scipy is heavy to import and wanted only here.
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    ones = np.ones(len(index.row), np.float32)  # exact up to 2^24 rows
    active = csr_matrix((ones, index.row, index.indptr), (index.n_features, len(labels)))
    product: np.ndarray = active @ labels.astype(np.float32)
    return product.astype(np.float64)
