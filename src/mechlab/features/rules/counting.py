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
    """Whether a meant token stands at ``offset`` from each row, in its passage."""
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
    """Whether a meant token is among the ``reach`` before each row, in its passage."""
    found = np.zeros(len(rows), np.bool_)
    for i in range(len(rows)):
        for at in range(max(begin[rows[i]], rows[i] - reach), rows[i]):
            if meant[tokens[at]]:
                found[i] = True
                break
    return found


@njit(cache=True, nogil=True)
@no_type_check
def count_at(
    tokens: Shaped[np.ndarray, "row"],
    begin: Shaped[np.ndarray, "row"],
    end: Shaped[np.ndarray, "row"],
    rows: Shaped[np.ndarray, "asked"],
    offset: int,
    size: int,
) -> Shaped[np.ndarray, "token"]:
    """How often each token stands at ``offset`` from the rows, in their passages."""
    found = np.zeros(size, np.int64)
    for i in range(len(rows)):
        at = rows[i] + offset
        if begin[rows[i]] <= at < end[rows[i]]:
            found[tokens[at]] += 1
    return found


@njit(cache=True, nogil=True)
@no_type_check
def count_within(
    tokens: Shaped[np.ndarray, "row"],
    begin: Shaped[np.ndarray, "row"],
    rows: Shaped[np.ndarray, "asked"],
    reaches: Shaped[np.ndarray, "reach"],
    size: int,
) -> Shaped[np.ndarray, "reach token"]:
    """Before how many of the rows each token stands within each reach (ascending), in their passages."""
    found = np.zeros((len(reaches), size), np.int64)
    last_seen = np.full(size, -1, np.int64)
    for i in range(len(rows)):
        bucket = 0
        for distance in range(1, reaches[-1] + 1):
            at = rows[i] - distance
            if at < begin[rows[i]]:
                break
            if distance > reaches[bucket]:
                bucket += 1
            token = tokens[at]
            if last_seen[token] != i:
                last_seen[token] = i
                found[bucket, token] += 1
    for bucket in range(1, len(reaches)):
        found[bucket] += found[bucket - 1]
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
