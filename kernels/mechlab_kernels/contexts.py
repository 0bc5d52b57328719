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
_STRIDE = 64  # rows between those whose passage is looked up beforehand
_SPARE = 8  # peaks noted for every one that is asked for


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
    if count < 1 or radius < 0:
        raise ValueError("count must be positive, radius not negative")
    peaks = np.full((len(indptr) - 1, count), -1, np.int32)
    near = np.searchsorted(bounds, np.arange(0, len(tokens), _STRIDE), side="right") - 1
    with torch_threads() as threads:
        cuts = portions(indptr, threads)
        whole = _top_peaks(cuts, indptr, row, value, tokens, bounds, near, radius, peaks)
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
def _top_peaks(cuts, indptr, row, value, tokens, bounds, near, radius, peaks):
    """Fill ``peaks``; False where an entry is damaged."""
    whole = np.ones(len(cuts) - 1, np.bool_)
    count = peaks.shape[1]
    for portion in prange(len(cuts) - 1):
        room = _SPARE * count
        for feature in range(cuts[portion], cuts[portion + 1]):
            room = max(room, indptr[feature + 1] - indptr[feature])
        keys = np.empty(room, np.int64)
        spans = np.empty((count, 2), np.int64)
        for feature in range(cuts[portion], cuts[portion + 1]):
            rows, values = (
                row[indptr[feature] : indptr[feature + 1]],
                value[indptr[feature] : indptr[feature + 1]],
            )
            # Weak entries need no look while most texts differ: if that was too few, all are looked at.
            for most in (_SPARE * count, room):
                found, all_of_them = _passage_peaks(rows, values, bounds, near, keys[:most], 2 * count)
                if found < 0:
                    whole[portion] = False
                    break
                if _choose(keys[:found], tokens, bounds, near, radius, peaks[feature], spans) or all_of_them:
                    break
    return whole.all()


@njit(cache=True, nogil=True)
@no_type_check
def _passage_peaks(row, value, bounds, near, keys, kept):
    """Note the strongest entry of every passage as one integer: its value, then the earlier row first.

    When ``keys`` is full, all but the ``kept`` strongest are dropped, and what is weaker is passed over.
    Returns how many are noted (-1 where an entry is damaged), and whether those are all.
    """
    found, end, best, least, all_of_them = 0, np.int64(0), np.int64(-1), np.float32(0), True
    for i in range(len(row)):
        # Also false for NaN.
        if not (np.float32(0) < value[i] < np.float32(np.inf)) or row[i] < 0 or row[i] >= bounds[-1]:
            return -1, False
        if value[i] < least:
            continue
        # Above 0, so ordered as its bits are.
        key = (np.int64(np.float32(value[i]).view(np.int32)) << 32) | np.int64(_ROW - row[i])
        if row[i] < end:
            best = max(best, key)
            continue
        if best >= 0:
            if found == len(keys):
                select(keys, kept)
                found, all_of_them = kept, False
                least = np.int32(keys[kept - 1] >> 32).view(np.float32)
            keys[found] = best
            found += 1
        end, best = bounds[_passage(bounds, near, row[i]) + 1], key
    if best >= 0:
        if found == len(keys):
            select(keys, kept)
            found, all_of_them = kept, False
        keys[found] = best
        found += 1
    return found, all_of_them


@njit(cache=True, nogil=True)
@no_type_check
def _passage(bounds, near, row):
    """The passage that a row lies in."""
    at = near[row // _STRIDE]
    while bounds[at + 1] <= row:
        at += 1
    return at


@njit(cache=True, nogil=True)
@no_type_check
def _choose(keys, tokens, bounds, near, radius, peaks, spans):
    """Fill ``peaks`` with the strongest that have texts of their own; False when there are too few."""
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
            at = _passage(bounds, near, peak)
            first, last = max(peak - radius, bounds[at]), min(peak + radius + 1, bounds[at + 1])
            if not _read(tokens, spans[:taken], first, last):
                peaks[taken] = peak
                spans[taken, 0], spans[taken, 1] = first, last
                taken += 1
        done += portion
        portion *= 4
    return taken == len(peaks)


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
