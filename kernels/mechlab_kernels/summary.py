"""Statistics of every feature's activations, from its entries: what is not an entry is 0."""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Float32, Int
from numba import njit, prange

from mechlab_kernels.portions import blocks, portions
from mechlab_kernels.threads import torch_threads

_BLOCK = 2**22  # entries worked on at a time: 16 MB


class Summary(NamedTuple):
    """Statistics by feature; all 0 for one that is never active.

    Attributes:
        maximum: largest activation.
        moments: mean, variance, skewness and kurtosis over all rows, the inactive ones too. Variance
            is the mean square about the mean; kurtosis is 3 for a normal distribution. Skewness
            and kurtosis are 0 where the variance is.
        histogram: active rows in bins of equal width from 0 to the maximum; a bin has its lower
            edge, the last one both, as in ``numpy.histogram``.
        quantile: the least activation that at least a share j / levels of the active rows does
            not exceed, for j = 0 … levels: always an activation that occurs (the inverse of
            the distribution function, Hyndman & Fan 1996, definition 1).
    """

    maximum: Float32[np.ndarray, "feature"]
    moments: Float[np.ndarray, "feature 4"]
    histogram: Int[np.ndarray, "feature bin"]
    quantile: Float32[np.ndarray, "feature level"]


def summarise(
    indptr: Int[np.ndarray, "feature_plus_1"],
    value: Float32[np.ndarray, "entry"],
    rows: int,
    bins: int,
    levels: int,
) -> Summary:
    """Statistics of every feature over ``rows`` rows.

    A part of ``indptr`` (neighbouring features) may be given with the whole ``value``. Raises
    ValueError for a value that is not above 0 and finite, and for more entries than rows.
    """
    features = len(indptr) - 1
    if not (indptr[0] >= 0 and indptr[-1] <= len(value)) or (np.diff(indptr) > rows).any():
        raise ValueError("indptr does not fit the entries and the rows")
    found = Summary(
        np.zeros(features, np.float32),
        np.zeros((features, 4)),
        np.zeros((features, bins), np.int32),
        np.zeros((features, levels + 1), np.float32),
    )
    for first, last in blocks(indptr, _BLOCK):
        part = indptr[first : last + 1] - indptr[first]
        ordered = value[indptr[first] : indptr[last]].copy()
        # NumPy sorts in vector registers: sixteen times as fast as a compiled loop does.
        for feature in np.flatnonzero(np.diff(part)).tolist():
            ordered[part[feature] : part[feature + 1]].sort()
        with torch_threads() as threads:
            here = (each[first:last] for each in found)
            whole = _summarise(portions(part, threads), part, ordered, rows, *here)
        if not whole:
            raise ValueError("a value is not above 0 and finite")
    return found


def summarise_reference(
    indptr: Int[np.ndarray, "feature_plus_1"],
    value: Float32[np.ndarray, "entry"],
    rows: int,
    bins: int,
    levels: int,
) -> Summary:
    """The same by definition, feature by feature, on the activations with their zeros."""
    features = len(indptr) - 1
    found = Summary(
        np.zeros(features, np.float32),
        np.zeros((features, 4)),
        np.zeros((features, bins), np.int32),
        np.zeros((features, levels + 1), np.float32),
    )
    for feature in range(features):
        active = value[indptr[feature] : indptr[feature + 1]].astype(np.float64)
        if not len(active):
            continue
        dense = np.concatenate([active, np.zeros(rows - len(active))])
        away = dense - dense.mean()
        variance = (away**2).mean()
        found.maximum[feature] = active.max()
        found.moments[feature, :2] = dense.mean(), variance
        if variance > 0:
            found.moments[feature, 2] = (away**3).mean() / variance**1.5
            found.moments[feature, 3] = (away**4).mean() / variance**2
        found.histogram[feature] = np.histogram(active, bins, (0.0, active.max()))[0]
        ordered = np.sort(active)
        below = np.searchsorted(ordered, ordered, side="right")
        for j in range(levels + 1):
            found.quantile[feature, j] = ordered[np.argmax(levels * below >= j * len(active))]
    return found


@njit(cache=True, parallel=True)
@no_type_check
def _summarise(cuts, indptr, ordered, rows, maximum, moments, histogram, quantile):
    """Fill in the statistics; False where a value is out of range."""
    whole = np.ones(len(cuts) - 1, np.bool_)
    for portion in prange(len(cuts) - 1):
        for feature in range(cuts[portion], cuts[portion + 1]):
            values = ordered[indptr[feature] : indptr[feature + 1]]
            if len(values) == 0:
                continue
            # In order, NaN after all others.
            if not (values[0] > 0 and values[-1] < np.float32(np.inf)):
                whole[portion] = False
                continue
            maximum[feature] = values[-1]
            _moments(values, rows, moments[feature])
            _histogram(values, np.float64(values[-1]), histogram[feature])
            _quantiles(values, quantile[feature])
    return whole.all()


@njit(cache=True, nogil=True)
@no_type_check
def _moments(values, rows, out):
    total = 0.0
    for v in values:
        total += v
    mean = total / rows
    second, third, fourth = 0.0, 0.0, 0.0
    for v in values:
        away = v - mean
        second += away**2
        third += away**3
        fourth += away**4
    silent = rows - len(values)
    variance = (second + silent * mean**2) / rows
    out[0], out[1] = mean, variance
    if variance > 0:
        out[2] = (third - silent * mean**3) / rows / variance**1.5
        out[3] = (fourth + silent * mean**4) / rows / variance**2


@njit(cache=True, nogil=True)
@no_type_check
def _histogram(values, top, out):
    bins = len(out)
    width = top / bins
    for v in values:
        at = min(int(v / top * bins), bins - 1)
        # Rounding must not move a value over an edge.
        if v < at * width:
            at -= 1
        elif at < bins - 1 and v >= (at + 1) * width:
            at += 1
        out[at] += 1


@njit(cache=True, nogil=True)
@no_type_check
def _quantiles(ordered, out):
    levels = len(out) - 1
    for j in range(levels + 1):
        # The share j / levels of n, rounded up, in whole numbers.
        out[j] = ordered[max((j * len(ordered) + levels - 1) // levels, 1) - 1]
