"""Statistics of every feature at once: how often, how strong, how its activations are distributed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mechlab.artifacts import open_artifact
from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab_kernels.summary import summarise

STATISTICS_FILE = "statistics.safetensors"
BINS, LEVELS = 50, 20


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the activations of each feature are like; all 0 for a feature that is never active.

    Attributes:
        rows: tokens that the features were computed on.
        active: number of rows on which each feature is active.
        maximum: largest activation.
        mean, variance, skewness, kurtosis: over all rows, the inactive ones as 0. Variance is the mean
            square about the mean; kurtosis is 3 for a normal distribution (Pearson's).
        histogram: active rows by activation, in bins of equal width from 0 to the maximum.
        quantile: activations that shares 0, 1/20, … 1 of the active rows do not exceed: by rank, so
            always an activation that occurs (Hyndman & Fan 1996, definition 1).
    """

    rows: int
    active: Int[np.ndarray, "feature"]
    maximum: Float32[np.ndarray, "feature"]
    mean: Float[np.ndarray, "feature"]
    variance: Float[np.ndarray, "feature"]
    skewness: Float[np.ndarray, "feature"]
    kurtosis: Float[np.ndarray, "feature"]
    histogram: Int[np.ndarray, "feature bin"]
    quantile: Float32[np.ndarray, "feature level"]

    @property
    def n_features(self) -> int:
        """Number of features, live or dead."""
        return len(self.active)

    @property
    def density(self) -> Float[np.ndarray, "feature"]:
        """Share of rows on which each feature is active; 0 without rows."""
        return self.active / max(self.rows, 1)

    @property
    def active_mean(self) -> Float[np.ndarray, "feature"]:
        """Mean activation over the rows where the feature is active; 0 when dead."""
        mean: np.ndarray = self.mean * (self.rows / np.maximum(self.active, 1))
        return mean

    def edges(self, feature: int) -> Float[np.ndarray, "bin_plus_1"]:
        """Edges of the feature's histogram; a bin has its lower edge, the last one both."""
        self._require(feature)
        return np.linspace(0.0, float(self.maximum[feature]), self.histogram.shape[1] + 1)

    def at(self, feature: int, share: float) -> float:
        """The activation that a share of the feature's active rows does not exceed.

        Raises MechlabError for a share that is no twentieth between 0 and 1.
        """
        self._require(feature)
        levels = self.quantile.shape[1] - 1
        level = round(share * levels)
        if not 0 <= level <= levels or abs(level - share * levels) > 1e-9:
            raise MechlabError("share is not one of those kept", share, f"give a multiple of 1/{levels}")
        return float(self.quantile[feature, level])

    def to_dict(self, feature: int) -> dict[str, Any]:
        """One feature's statistics as plain JSON values."""
        self._require(feature)
        found = {each.name: getattr(self, each.name)[feature].tolist() for each in fields(self)[1:]}
        return {"rows": self.rows, "density": float(self.density[feature]), **found}

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        arrays = {each.name: np.ascontiguousarray(getattr(self, each.name)) for each in fields(self)[1:]}
        return bytes(save({"rows": np.array([self.rows], np.int64), **arrays}))

    def _require(self, feature: int) -> None:
        if not 0 <= feature < self.n_features:
            raise MechlabError(
                "feature does not exist", feature, f"give a number from 0 to {self.n_features - 1}"
            )


def summary_of(
    indptr: Int[np.ndarray, "feature_plus_1"], value: Float32[np.ndarray, "entry"], rows: int
) -> Statistics:
    """Statistics of entries by feature, as a feature index has them.

    Raises MechlabError for activations that are not above 0 and finite.
    """
    try:
        maximum, moments, histogram, quantile = summarise(indptr, value, rows, BINS, LEVELS)
    except ValueError as error:
        raise MechlabError("entries of the index are damaged", str(error), "make the index again") from error
    mean, variance, skewness, kurtosis = moments.T
    return Statistics(rows, np.diff(indptr), maximum, mean, variance, skewness, kurtosis, histogram, quantile)


def statistics_of(index: FeatureIndex) -> Statistics:
    """Statistics of all features of an index. MechlabError when it is damaged."""
    return summary_of(index.indptr, index.value, len(index.text))


def joined(parts: list[Statistics]) -> Statistics:
    """Statistics of groups of features over the same rows, one group after the other."""
    names = [each.name for each in fields(Statistics)[1:]]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Statistics(parts[0].rows, **arrays)


def load_statistics(path: Path | str) -> Statistics:
    """The statistics kept with the index at ``path``. MechlabError when there is none, or it is damaged."""
    file = open_artifact(path, "feature-index").file(STATISTICS_FILE)
    try:
        arrays = load_file(file)
        return Statistics(rows=int(arrays.pop("rows")[0]), **arrays)
    except (SafetensorError, KeyError, TypeError) as error:
        raise MechlabError("statistics cannot be read", file, "make the index again") from error
