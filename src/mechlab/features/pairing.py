"""Compiled loops over pairs of features that are active on one row."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Shaped
from numba import njit, prange


# numba compiles the plain functions and cannot see through a run-time type check.
@njit(cache=True, nogil=True)
@no_type_check
def by_row(
    indptr: Shaped[np.ndarray, "feature_plus_1"], row: Shaped[np.ndarray, "entry"], n_rows: int
) -> tuple[Shaped[np.ndarray, "row_plus_1"], Shaped[np.ndarray, "entry"]]:
    """Entries by feature turned into entries by row: where each row begins, and its features ascending."""
    starts = np.zeros(n_rows + 1, np.int64)
    for entry in range(len(row)):
        starts[row[entry] + 1] += 1
    for at in range(n_rows):
        starts[at + 1] += starts[at]
    place = starts[:-1].copy()
    feature = np.empty(len(row), np.int32)
    for f in range(len(indptr) - 1):
        for entry in range(indptr[f], indptr[f + 1]):
            feature[place[row[entry]]] = f
            place[row[entry]] += 1
    return starts, feature


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def most_together(
    indptr: Shaped[np.ndarray, "feature_plus_1"],
    row: Shaped[np.ndarray, "entry"],
    starts: Shaped[np.ndarray, "row_plus_1"],
    feature: Shaped[np.ndarray, "entry"],
    top: int,
    fewest: int,
    jaccard: bool,
) -> tuple[Shaped[np.ndarray, "feature top"], Shaped[np.ndarray, "feature top"]]:
    """For every feature the others with the largest Jaccard index (or lift) and the rows they share.

    Ties go to the smaller feature; −1 and 0 where there are no more. One counter for every feature
    and thread is all the memory that pairs take.
    """
    n_features = len(indptr) - 1
    found = np.full((n_features, top), -1, np.int64)
    together = np.zeros((n_features, top), np.int64)
    for f in prange(n_features):
        own = indptr[f + 1] - indptr[f]
        if own == 0:
            continue
        joint = np.zeros(n_features, np.int32)
        for entry in range(indptr[f], indptr[f + 1]):
            for at in range(starts[row[entry]], starts[row[entry] + 1]):
                joint[feature[at]] += 1
        best = np.zeros(top)
        count = 0
        for g in range(n_features):
            if joint[g] < fewest or g == f:
                continue
            other = indptr[g + 1] - indptr[g]
            # Lift up to a factor that all of a feature's pairs share.
            value = joint[g] / (own + other - joint[g]) if jaccard else joint[g] / other
            if count == top and value <= best[top - 1]:
                continue
            slot = min(count, top - 1)
            while slot > 0 and best[slot - 1] < value:
                best[slot] = best[slot - 1]
                found[f, slot], together[f, slot] = found[f, slot - 1], together[f, slot - 1]
                slot -= 1
            best[slot] = value
            found[f, slot], together[f, slot] = g, joint[g]
            count = min(count + 1, top)
    return found, together
