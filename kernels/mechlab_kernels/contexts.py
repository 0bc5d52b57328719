"""Where every feature is strongest: the rows at the centre of its top contexts.

Of each passage only the strongest row of a feature counts, the first of equals. Those are taken
from the strongest down, equals by place in the stream, passing over any whose context (the tokens
up to ``radius`` on either side, within the passage) reads the same as one already taken.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Int
from numba import njit, prange

from mechlab_kernels.portions import portions
from mechlab_kernels.select import select
from mechlab_kernels.threads import torch_threads

_ROW = 0x7FFFFFFF


def top_peaks(
    indptr: Int[np.ndarray, "feature_plus_1"],
    row: Int[np.ndarray, "entry"],
    value: Float32[np.ndarray, "entry"],
    tokens: Int[np.ndarray, "row"],
    bounds: Int[np.ndarray, "passage_plus_1"],
    count: int,
    radius: int,
) -> Int[np.ndarray, "feature count"]:
    """Rows of the strongest peaks of every feature, strongest first; int32, -1 where there are no more.

    Args:
        indptr, row, value: entries by feature, rows ascending within a feature, values above 0.
        tokens: token of every row.
        bounds: first row of every passage, and the number of rows at the end.
        count: how many rows at most; radius: tokens of a context on either side of its centre.

    A part of ``indptr`` (neighbouring features) may be given with the whole ``row`` and ``value``.
    Raises ValueError for a row outside the text and for a value that is not above 0 and finite.
    """
    if len(bounds) < 1 or bounds[0] != 0 or bounds[-1] != len(tokens) or (np.diff(bounds) < 0).any():
        raise ValueError("bounds do not divide the rows")
    if not (indptr[0] >= 0 and indptr[-1] <= len(row) == len(value)):
        raise ValueError("indptr goes past the entries")
    peaks = np.full((len(indptr) - 1, count), -1, np.int32)
    if count < 1 or radius < 0:
        raise ValueError("count must be positive, radius not negative")
    with torch_threads() as threads:
        whole = _top_peaks(
            portions(indptr, threads), indptr, row, value, tokens, bounds.astype(np.int64), radius, peaks
        )
    if not whole:
        raise ValueError("a row lies outside the text, or a value is not above 0 and finite")
    return peaks


def top_peaks_reference(
    indptr: Int[np.ndarray, "feature_plus_1"],
    row: Int[np.ndarray, "entry"],
    value: Float32[np.ndarray, "entry"],
    tokens: Int[np.ndarray, "row"],
    bounds: Int[np.ndarray, "passage_plus_1"],
    count: int,
    radius: int,
) -> Int[np.ndarray, "feature count"]:
    """The same by definition: every entry in order of strength, refused for its passage or its text."""
    peaks = np.full((len(indptr) - 1, count), -1, np.int32)
    for feature in range(len(indptr) - 1):
        rows = row[indptr[feature] : indptr[feature + 1]]
        values = value[indptr[feature] : indptr[feature + 1]]
        passages: set[int] = set()
        texts: list[bytes] = []
        for peak in rows[np.lexsort((rows, -values))].tolist():
            passage = int(np.searchsorted(bounds, peak, side="right")) - 1
            if len(texts) == count or passage in passages:
                continue
            passages.add(passage)
            first, last = max(peak - radius, bounds[passage]), min(peak + radius + 1, bounds[passage + 1])
            text = tokens[first:last].tobytes()
            if text not in texts:
                peaks[feature, len(texts)] = peak
                texts.append(text)
    return peaks


@njit(cache=True, parallel=True)
@no_type_check
def _top_peaks(cuts, indptr, row, value, tokens, bounds, radius, peaks):
    """Fill ``peaks``; False where an entry is damaged."""
    whole = np.ones(len(cuts) - 1, np.bool_)
    for portion in prange(len(cuts) - 1):
        room = 0
        for feature in range(cuts[portion], cuts[portion + 1]):
            room = max(room, indptr[feature + 1] - indptr[feature])
        keys = np.empty(room, np.int64)
        spans = np.empty((peaks.shape[1], 2), np.int64)
        for feature in range(cuts[portion], cuts[portion + 1]):
            start, stop = indptr[feature], indptr[feature + 1]
            found = _passage_peaks(row[start:stop], value[start:stop], bounds, keys)
            if found < 0:
                whole[portion] = False
            else:
                _choose(keys[:found], tokens, bounds, radius, peaks[feature], spans)
    return whole.all()


@njit(cache=True, nogil=True)
@no_type_check
def _passage_peaks(row, value, bounds, keys):
    """Note the strongest entry of every passage as one integer: its value, then the earlier row first.

    Returns how many; -1 where an entry is damaged.
    """
    found, end, best = 0, np.int64(0), np.int64(-1)
    rows, at = bounds[-1], 0
    for i in range(len(row)):
        # Also false for NaN.
        if not (np.float32(0) < value[i] < np.float32(np.inf)) or row[i] < 0 or row[i] >= rows:
            return -1
        # Above 0, so ordered as its bits are.
        key = (np.int64(np.float32(value[i]).view(np.int32)) << 32) | np.int64(_ROW - row[i])
        if row[i] >= end:
            if best >= 0:
                keys[found] = best
                found += 1
            at = _passage(bounds, row[i], at)
            end, best = bounds[at + 1], key
        elif key > best:
            best = key
    if best >= 0:
        keys[found] = best
        found += 1
    return found


@njit(cache=True, nogil=True)
@no_type_check
def _passage(bounds, row, low):
    """The passage that a row lies in, at ``low`` or after it: by doubling steps, then by halves."""
    step = 1
    high = low + 1
    while bounds[high] <= row:
        low = high
        step *= 2
        high = min(low + step, len(bounds) - 1)
    while high - low > 1:
        middle = (low + high) // 2
        if bounds[middle] <= row:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
@no_type_check
def _choose(keys, tokens, bounds, radius, peaks, spans):
    """The strongest with texts of their own; in growing portions, as most often the first will do."""
    taken, done, portion = 0, 0, 2 * len(peaks)
    while done < len(keys) and taken < len(peaks):
        rest = keys[done:]
        portion = min(portion, len(rest))
        if len(rest) > portion:
            select(rest, portion)
        rest[:portion] = np.sort(rest[:portion])[::-1]
        for i in range(portion):
            if taken == len(peaks):
                break
            peak = _ROW - (rest[i] & _ROW)
            at = _passage(bounds, peak, 0)
            first, last = max(peak - radius, bounds[at]), min(peak + radius + 1, bounds[at + 1])
            if not _read(tokens, spans[:taken], first, last):
                peaks[taken] = peak
                spans[taken, 0], spans[taken, 1] = first, last
                taken += 1
        done += portion
        portion *= 4


@njit(cache=True, nogil=True)
@no_type_check
def _read(tokens, spans, first, last):
    """Whether the tokens from ``first`` to ``last`` read as those of one of the spans."""
    for i in range(len(spans)):
        length = last - first
        if spans[i, 1] - spans[i, 0] == length:
            same = 0
            while same < length and tokens[first + same] == tokens[spans[i, 0] + same]:
                same += 1
            if same == length:
                return True
    return False
