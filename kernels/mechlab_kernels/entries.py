"""Sparse codes that arrive a portion at a time: gathered as entries, sorted by feature, merged.

An entry is one active (row, feature, value). ``gather`` picks the entries out of ``[row, k]``
codes; ``sort_entries`` orders a portion of them by feature, as ``csr.build_csr`` does;
``merge`` joins portions that were sorted one by one.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped
from numba import njit, prange

from mechlab_kernels.portions import portions
from mechlab_kernels.threads import torch_threads

_OUTSIDE, _BAD, _TWICE = -1, -2, -3
_MEANING = {
    _OUTSIDE: "an active slot names a feature outside the dictionary",
    _BAD: "an activation is negative or not finite",
    _TWICE: "a row names a feature twice",
}
Sorted = tuple[Int[np.ndarray, "feature_plus_1"], Int[np.ndarray, "entry"], Float[np.ndarray, "entry"]]


def gather(
    values: Float[np.ndarray, "row k"], indices: Int[np.ndarray, "row k"], first: int, n_features: int
) -> tuple[Int[np.ndarray, "entry"], Int[np.ndarray, "entry"], Float32[np.ndarray, "entry"]]:
    """The active slots in order: ``(row int32, feature int32, value float32)``.

    Args:
        values: activations, at least 0; 0 means not active.
        first: number of the first row.

    Raises ValueError for codes of two shapes, for an activation that is negative or not finite, and
    for an active slot that names a feature outside ``[0, n_features)``.
    """
    if values.shape != indices.shape:
        raise ValueError(f"values and indices differ in shape: {values.shape} and {indices.shape}")
    values = np.ascontiguousarray(values, np.float32)
    if indices.dtype not in (np.int32, np.int64):
        indices = indices.astype(np.int64)
    row, feature = np.empty(values.size, np.int32), np.empty(values.size, np.int32)
    value = np.empty(values.size, np.float32)
    found = _gather(values, np.ascontiguousarray(indices), first, n_features, row, feature, value)
    _refuse(found)
    row, feature, value = row[:found], feature[:found], value[:found]
    # Mostly inactive slots are not worth the memory.
    return (row.copy(), feature.copy(), value.copy()) if 2 * found < values.size else (row, feature, value)


def gather_reference(
    values: Float[np.ndarray, "row k"], indices: Int[np.ndarray, "row k"], first: int, n_features: int
) -> tuple[Int[np.ndarray, "entry"], Int[np.ndarray, "entry"], Float32[np.ndarray, "entry"]]:
    """The same by definition."""
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(_MEANING[_BAD])
    row, slot = np.nonzero(values)
    feature = indices[row, slot]
    if ((feature < 0) | (feature >= n_features)).any():
        raise ValueError(_MEANING[_OUTSIDE])
    return (row + first).astype(np.int32), feature.astype(np.int32), values[row, slot].astype(np.float32)


def sort_entries(
    row: Int[np.ndarray, "entry"],
    feature: Int[np.ndarray, "entry"],
    value: Float32[np.ndarray, "entry"],
    n_features: int,
) -> Sorted:
    """Entries by feature, each feature's in the order they came in.

    Args:
        row: ascending.
        value: 0 or more; entries of 0 stay.

    Returns ``(indptr int64, row int32, value float32)`` as ``csr.build_csr`` does. Raises ValueError for a
    feature outside ``[0, n_features)``, a feature named twice on a row, and an activation that is
    negative or not finite.
    """
    indptr = np.zeros(n_features + 1, np.int64)
    rows, values = np.empty(len(row), np.int32), np.empty(len(row), np.float32)
    _refuse(_sort(row, feature, value, indptr, rows, values))
    return indptr, rows, values


def sort_entries_reference(
    row: Int[np.ndarray, "entry"],
    feature: Int[np.ndarray, "entry"],
    value: Float32[np.ndarray, "entry"],
    n_features: int,
) -> Sorted:
    """The same by definition."""
    if len(feature) and not (feature.min() >= 0 and feature.max() < n_features):
        raise ValueError(_MEANING[_OUTSIDE])
    if not np.isfinite(value).all() or (value < 0).any():
        raise ValueError(_MEANING[_BAD])
    if len({*zip(row.tolist(), feature.tolist(), strict=True)}) < len(row):
        raise ValueError(_MEANING[_TWICE])
    order = np.argsort(feature, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=n_features))])
    return indptr, row[order].astype(np.int32), value[order]


def merge(
    starts: Int[np.ndarray, "piece feature_plus_1"],
    row: Int[np.ndarray, "entry"],
    value: Float32[np.ndarray, "entry"],
) -> Sorted:
    """Join pieces that are sorted by feature: of every feature the entries of the first piece, and so on.

    Args:
        starts: piece p has feature f in entries ``starts[p, f]`` to ``starts[p, f + 1]``.
        row, value: the pieces one after the other.

    Raises ValueError when the pieces do not make up all the entries.
    """
    ends = np.append(starts[1:, 0], len(row))
    if len(row) != len(value) or (np.diff(starts) < 0).any() or (starts[:, -1] != ends).any() or starts[0, 0]:
        raise ValueError("pieces do not make up the entries")
    indptr = np.concatenate([[0], np.cumsum(np.diff(starts).sum(0))]).astype(np.int64)
    rows, values = np.empty(len(row), np.int32), np.empty(len(row), np.float32)
    with torch_threads() as threads:
        _merge(portions(indptr, threads), starts, row, value, indptr, rows, values)
    return indptr, rows, values


def merge_reference(
    starts: Int[np.ndarray, "piece feature_plus_1"],
    row: Int[np.ndarray, "entry"],
    value: Float32[np.ndarray, "entry"],
) -> Sorted:
    """The same by definition."""
    features, pieces = range(starts.shape[1] - 1), range(len(starts))
    places = [np.arange(starts[p, f], starts[p, f + 1]) for f in features for p in pieces]
    order = np.concatenate([*places, np.zeros(0, np.int64)]).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(np.diff(starts).sum(0))]).astype(np.int64)
    return indptr, row[order].astype(np.int32), value[order]


def _refuse(found: int) -> None:
    if found < 0:
        raise ValueError(_MEANING[found])


@njit(cache=True, nogil=True)
@no_type_check
def _gather(values: Shaped[np.ndarray, "row k"], indices, first, n_features, row, feature, value):
    """Fill in the entries; how many there are, or what is wrong."""
    rows, k = values.shape
    found = 0
    for r in range(rows):
        for j in range(k):
            v = values[r, j]
            if v != 0:  # NaN too
                # Also false for NaN.
                if not (np.float32(0) < v < np.float32(np.inf)):
                    return _BAD
                if indices[r, j] < 0 or indices[r, j] >= n_features:
                    return _OUTSIDE
                row[found], feature[found], value[found] = first + r, indices[r, j], v
                found += 1
    return found


@njit(cache=True, nogil=True)
@no_type_check
def _sort(row, feature, value, indptr, rows, values):
    """The counting sort; 0, or what is wrong."""
    n_features = len(indptr) - 1
    for i in range(len(row)):
        if feature[i] < 0 or feature[i] >= n_features:
            return _OUTSIDE
        if not (np.float32(0) <= value[i] < np.float32(np.inf)):
            return _BAD
        indptr[feature[i] + 1] += 1
    for f in range(n_features):
        indptr[f + 1] += indptr[f]
    at = indptr[:-1].copy()
    for i in range(len(row)):
        f = feature[i]
        place = at[f]
        if place > indptr[f] and rows[place - 1] == row[i]:
            return _TWICE
        rows[place], values[place] = row[i], value[i]
        at[f] = place + 1
    return 0


@njit(cache=True, parallel=True)
@no_type_check
def _merge(cuts, starts, row, value, indptr, rows, values):
    for portion in prange(len(cuts) - 1):
        for feature in range(cuts[portion], cuts[portion + 1]):
            at = indptr[feature]
            for piece in range(len(starts)):
                for i in range(starts[piece, feature], starts[piece, feature + 1]):
                    rows[at], values[at] = row[i], value[i]
                    at += 1
