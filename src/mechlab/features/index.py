"""The feature index: for every feature, the tokens on which it is active.

Compressed sparse rows by feature, over a text that the index keeps with it, so that contexts
can be shown and explanations tested without the activations or the model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from mechlab.errors import MechlabError
from mechlab.features.split import Split
from mechlab.features.text import Text


@dataclass(frozen=True, eq=False)
class FeatureIndex:
    """Feature f is active on rows ``row[indptr[f]:indptr[f+1]]``, ascending, with the values there.

    The arrays may be memory-mapped files.

    Attributes:
        text: the tokens that the features were computed on.
        indptr: where each feature's entries begin and end.
        row: row in the text of each entry, int32.
        value: activation of each entry, > 0, float32.
        about: what the features are (kind, site, fingerprints); plain JSON values.
    """

    text: Text
    indptr: Int[np.ndarray, "feature_plus_1"]
    row: Int[np.ndarray, "entry"]
    value: Float32[np.ndarray, "entry"]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_features(self) -> int:
        """Number of features, live or dead."""
        return len(self.indptr) - 1

    @functools.cached_property
    def active(self) -> Int[np.ndarray, "feature"]:
        """Number of rows on which each feature is active."""
        return np.diff(self.indptr)

    @functools.cached_property
    def live(self) -> Int[np.ndarray, "live"]:
        """Features that are active anywhere, ascending."""
        return np.flatnonzero(self.active)

    @functools.cached_property
    def density(self) -> Float[np.ndarray, "feature"]:
        """Share of rows on which each feature is active; 0 without rows."""
        return self.active / max(len(self.text), 1)

    @functools.cached_property
    def maximum(self) -> Float[np.ndarray, "feature"]:
        """Largest activation of each feature; 0 when dead."""
        largest = np.zeros(self.n_features)
        if len(self.live):
            largest[self.live] = np.maximum.reduceat(self.value, self.indptr[self.live])
        return largest

    @functools.cached_property
    def mean(self) -> Float[np.ndarray, "feature"]:
        """Mean activation of each feature over the rows where it is active; 0 when dead."""
        total = np.zeros(self.n_features)
        if len(self.live):
            total[self.live] = np.add.reduceat(self.value, self.indptr[self.live], dtype=np.float64)
        mean: np.ndarray = total / np.maximum(self.active, 1)
        return mean

    def entries(self, feature: int) -> tuple[Int[np.ndarray, "entry"], Float32[np.ndarray, "entry"]]:
        """Rows (ascending) and activations of one feature. MechlabError when it does not exist."""
        if not 0 <= feature < self.n_features:
            raise MechlabError(
                "feature does not exist", feature, f"give a number from 0 to {self.n_features - 1}"
            )
        here = slice(int(self.indptr[feature]), int(self.indptr[feature + 1]))
        return self.row[here], self.value[here]

    def dense(self, feature: int) -> Float32[np.ndarray, "row"]:
        """One feature's activation on every row, 0 where it is not active."""
        row, value = self.entries(feature)
        found = np.zeros(len(self.text), np.float32)
        found[row] = value
        return found

    def restrict(self, keep: Bool[np.ndarray, "row"]) -> FeatureIndex:
        """The index of the rows where ``keep`` is true, in memory. Keep whole documents."""
        number = (np.cumsum(keep) - 1).astype(np.int32)
        here = keep[self.row]
        before = np.concatenate([[0], np.cumsum(here)])
        return FeatureIndex(
            self.text.select(keep),
            before[self.indptr].astype(np.int64),
            number[self.row[here]],
            self.value[here],
            self.about,
        )

    def halves(self, split: Split) -> tuple[FeatureIndex, FeatureIndex]:
        """The index of the documents to explain on, and that of those to score on."""
        explains = split.explains(self.text.document)
        return self.restrict(explains), self.restrict(~explains)


def index_of(text: Text, features: Mapping[int, Float[np.ndarray, "row"]], **about: Any) -> FeatureIndex:
    """An index of features given as one activation per row of the text (≤ 0: not active).

    Args:
        features: number → activations. Numbers that are left out are dead features.
    """
    count = max(features, default=-1) + 1
    indptr, rows, values = np.zeros(count + 1, np.int64), [], []
    for feature in range(count):
        activation = features.get(feature)
        # Rounded first: what float32 cannot tell from 0 is not active.
        value = np.zeros(0, np.float32) if activation is None else activation.astype(np.float32)
        row = np.flatnonzero(value > 0).astype(np.int32)
        indptr[feature + 1] = indptr[feature] + len(row)
        rows.append(row)
        values.append(value[row])
    return FeatureIndex(
        text,
        indptr,
        np.concatenate(rows or [np.zeros(0, np.int32)]),
        np.concatenate(values or [np.zeros(0, np.float32)]),
        about,
    )
