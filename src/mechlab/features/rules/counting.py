"""Compiled loops over rows: which words stand near them.

``begin`` and ``end`` hold the first row of each row's passage and the row after its last one.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Shaped
from numba import njit


# numba compiles the plain functions and cannot see through a run-time type check.
@njit(cache=True, nogil=True)
@no_type_check
def stands(
    tokens: Shaped[np.ndarray, "row"],
    begin: Shaped[np.ndarray, "row"],
    end: Shaped[np.ndarray, "row"],
    rows: Shaped[np.ndarray, "asked"],
    offset: int,
    meant: Shaped[np.ndarray, "token"],
) -> Shaped[np.ndarray, "asked"]:
    """Whether a token that is meant stands at ``offset`` from each row, in its passage."""
    found = np.zeros(len(rows), np.bool_)
    for i in range(len(rows)):
        at = rows[i] + offset
        if begin[rows[i]] <= at < end[rows[i]]:
            found[i] = meant[tokens[at]]
    return found


@njit(cache=True, nogil=True)
@no_type_check
def stands_within(
    tokens: Shaped[np.ndarray, "row"],
    begin: Shaped[np.ndarray, "row"],
    rows: Shaped[np.ndarray, "asked"],
    reach: int,
    meant: Shaped[np.ndarray, "token"],
) -> Shaped[np.ndarray, "asked"]:
    """Whether a token that is meant is among the ``reach`` before each row, in its passage."""
    found = np.zeros(len(rows), np.bool_)
    for i in range(len(rows)):
        for at in range(max(begin[rows[i]], rows[i] - reach), rows[i]):
            if meant[tokens[at]]:
                found[i] = True
                break
    return found


@njit(cache=True, nogil=True)
@no_type_check
def bits_within(
    tokens: Shaped[np.ndarray, "row"],
    begin: Shaped[np.ndarray, "row"],
    rows: Shaped[np.ndarray, "asked"],
    reach: int,
    bits: Shaped[np.ndarray, "token"],
) -> Shaped[np.ndarray, "asked"]:
    """The bits of the tokens among the ``reach`` before each row, in its passage."""
    found = np.zeros(len(rows), np.uint8)
    for i in range(len(rows)):
        for at in range(max(begin[rows[i]], rows[i] - reach), rows[i]):
            found[i] |= bits[tokens[at]]
    return found


@njit(cache=True, nogil=True)
@no_type_check
def count_at(
    tokens: Shaped[np.ndarray, "row"],
    begin: Shaped[np.ndarray, "row"],
    end: Shaped[np.ndarray, "row"],
    rows: Shaped[np.ndarray, "asked"],
    offsets: Shaped[np.ndarray, "offset"],
    size: int,
) -> Shaped[np.ndarray, "offset token"]:
    """How often each token stands at each offset from the rows, in their passages."""
    found = np.zeros((len(offsets), size), np.int64)
    for i in range(len(rows)):
        row = rows[i]
        first, last = begin[row], end[row]
        for which in range(len(offsets)):
            at = row + offsets[which]
            if first <= at < last:
                found[which, tokens[at]] += 1
    return found


@njit(cache=True, nogil=True)
@no_type_check
def count_marks(
    marks: Shaped[np.ndarray, "row"],
    position: Shaped[np.ndarray, "row"],
    rows: Shaped[np.ndarray, "asked"],
    n_marks: int,
    last: int,
) -> tuple[Shaped[np.ndarray, "mark"], Shaped[np.ndarray, "position"]]:
    """How many of the rows have each of the marks (bits of a number), and each position up to ``last``."""
    marked, placed = np.zeros(n_marks, np.int64), np.zeros(last + 1, np.int64)
    for i in range(len(rows)):
        placed[position[rows[i]]] += 1
        bits = marks[rows[i]]
        for which in range(n_marks):
            marked[which] += (bits >> which) & 1
    return marked, placed


@njit(cache=True, nogil=True)
@no_type_check
def add_classes(
    counts: Shaped[np.ndarray, "token"],
    start: Shaped[np.ndarray, "token_plus_1"],
    classes: Shaped[np.ndarray, "member"],
    n_classes: int,
) -> Shaped[np.ndarray, "class"]:
    """Counts of tokens summed over classes; token t is in ``classes[start[t]:start[t + 1]]``."""
    found = np.zeros(n_classes, np.int64)
    for token in range(len(counts)):
        if counts[token] != 0:
            for place in range(start[token], start[token + 1]):
                found[classes[place]] += counts[token]
    return found


@njit(cache=True, nogil=True)
@no_type_check
def list_near(
    tokens: Shaped[np.ndarray, "row"],
    begin: Shaped[np.ndarray, "row"],
    rows: Shaped[np.ndarray, "asked"],
    reach: int,
    size: int,
) -> Shaped[np.ndarray, "near"]:
    """Tokens, ascending, that stand among the ``reach`` before any of the rows, in their passages."""
    stands_there = np.zeros(size, np.bool_)
    for i in range(len(rows)):
        for at in range(max(begin[rows[i]], rows[i] - reach), rows[i]):
            stands_there[tokens[at]] = True
    return np.flatnonzero(stands_there)


@njit(cache=True, nogil=True)
@no_type_check
def count_near(
    tokens: Shaped[np.ndarray, "row"],
    begin: Shaped[np.ndarray, "row"],
    rows: Shaped[np.ndarray, "asked"],
    reaches: Shaped[np.ndarray, "reach"],
    near: Shaped[np.ndarray, "near"],
    size: int,
) -> Shaped[np.ndarray, "near reach"]:
    """Before how many of the rows each token stands within each reach (ascending), in their passages."""
    found = np.zeros((len(near), len(reaches)), np.int64)
    slot = np.full(size, -1, np.int32)
    slot[near] = np.arange(len(near), dtype=np.int32)
    last_seen = np.full(len(near), -1, np.int64)
    bucket_of = np.zeros(reaches[-1] + 1, np.int64)
    for distance in range(1, reaches[-1] + 1):
        bucket_of[distance] = np.searchsorted(reaches, distance)
    for i in range(len(rows)):
        row = rows[i]
        for at in range(row - 1, max(begin[row], row - reaches[-1]) - 1, -1):
            which = slot[tokens[at]]
            if which >= 0 and last_seen[which] != i:
                last_seen[which] = i
                found[which, bucket_of[row - at]] += 1
    for which in range(len(near)):
        for bucket in range(1, len(reaches)):
            found[which, bucket] += found[which, bucket - 1]
    return found


@njit(cache=True, nogil=True)
@no_type_check
def rows_after(
    places: Shaped[np.ndarray, "place"], end: Shaped[np.ndarray, "row"], reach: int
) -> Shaped[np.ndarray, "hit"]:
    """Rows, ascending, that have one of the places (ascending) among the ``reach`` rows before them."""
    found = np.empty(min(len(places) * reach, len(end)), np.int32)
    count, next_free = 0, 0
    for place in places:
        for row in range(max(place + 1, next_free), min(place + 1 + reach, end[place])):
            found[count] = row
            count += 1
            next_free = row + 1
    return found[:count].copy()
