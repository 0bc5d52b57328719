"""Sparse codes, row-major to feature-major: the compressed sparse rows (CSR) of the transpose.

Codes come as two ``[row, k]`` arrays: slot ``(r, j)`` says that feature ``indices[r, j]``
has activation ``values[r, j]`` on row ``r``; 0 means "not active" and is dropped. The
result lists each feature's active rows next to one another:

    feature f is active on row[indptr[f] : indptr[f + 1]], with value[indptr[f] : indptr[f + 1]]

ordered by row (and by slot, should a row name a feature twice). The build is a counting
sort: count per feature, cumulate into ``indptr``, place. O(rows · k + features) time.
The only temporaries are a copy of ``indptr`` and, where they are not contiguous float32 and
int32 already, converted copies of the two inputs.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numba import njit
from torch import Tensor


def build_csr(
    values: Float[np.ndarray, "row k"], indices: Int[np.ndarray, "row k"], n_features: int
) -> tuple[Int[np.ndarray, "feature_plus_1"], Int[np.ndarray, "entry"], Float[np.ndarray, "entry"]]:
    """Sort sparse codes by feature.

    Args:
        values: activations; 0 means not active. Computed in float32.
        indices: feature of each slot, in ``[0, n_features)`` wherever the value is not 0.
        n_features: width of the dictionary.

    Returns ``(indptr int64 [n_features + 1], row int32 [entry], value float32 [entry])``.
    Raises ValueError when the two arrays are not of one two-dimensional shape, or an active slot
    names a feature outside the dictionary.
    """
    # Compiled code checks no bounds: a difference in shape would read past the end.
    if values.ndim != 2 or values.shape != indices.shape:
        raise ValueError(f"values and indices differ in shape: {values.shape} and {indices.shape}")
    indptr, row, value = _count_and_place(
        np.ascontiguousarray(values, dtype=np.float32), _as_int32(indices), n_features
    )
    if len(indptr) == 0:
        raise ValueError(f"an active slot names a feature outside [0, {n_features})")
    return indptr, row, value


def build_csr_reference(
    values: Float[Tensor, "row k"], indices: Int[Tensor, "row k"], n_features: int
) -> tuple[Int[Tensor, "feature_plus_1"], Int[Tensor, "entry"], Float[Tensor, "entry"]]:
    """The same by definition: list the active slots in order, then sort them stably by feature."""
    row, slot = torch.nonzero(values, as_tuple=True)
    feature = indices[row, slot].long()
    if feature.numel() and not (int(feature.min()) >= 0 and int(feature.max()) < n_features):
        raise ValueError(f"an active slot names a feature outside [0, {n_features})")
    order = torch.argsort(feature, stable=True)
    counts = torch.bincount(feature, minlength=n_features)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return indptr, row[order].int(), values[row, slot][order].float()


def _as_int32(indices: Int[np.ndarray, "row k"]) -> Int[np.ndarray, "row k"]:
    # Numbers outside 32 bits would wrap around and look valid; no dictionary is that wide.
    bounds = np.iinfo(np.int32)
    if indices.size and not (bounds.min <= int(indices.min()) and int(indices.max()) <= bounds.max):
        raise ValueError("feature numbers must fit in 32 bits")
    return np.ascontiguousarray(indices, dtype=np.int32)


# numba compiles the plain function and cannot see through a run-time type check.
@njit(cache=True)
@no_type_check
def _count_and_place(
    values: Shaped[np.ndarray, "row k"], indices: Shaped[np.ndarray, "row k"], n_features: int
) -> tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."]]:
    """The counting sort; an empty ``indptr`` reports a feature out of range."""
    rows, k = values.shape
    indptr = np.zeros(n_features + 1, np.int64)
    for r in range(rows):
        for j in range(k):
            if values[r, j] != 0:
                feature = indices[r, j]
                if feature < 0 or feature >= n_features:
                    return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
                indptr[feature + 1] += 1
    for feature in range(n_features):
        indptr[feature + 1] += indptr[feature]
    row = np.empty(indptr[-1], np.int32)
    value = np.empty(indptr[-1], np.float32)
    at = indptr[:-1].copy()
    for r in range(rows):
        for j in range(k):
            if values[r, j] != 0:
                place = at[indices[r, j]]
                row[place] = r
                value[place] = values[r, j]
                at[indices[r, j]] = place + 1
    return indptr, row, value
