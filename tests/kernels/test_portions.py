"""Divisions of features cover them all, in order."""

from __future__ import annotations

import numpy as np
import pytest

from mechlab_kernels.portions import blocks, portions


def pointers(seed: int, features: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([[0], np.cumsum(rng.integers(9, size=features) ** 3)])


@pytest.mark.parametrize("features", [0, 1, 7, 200])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_portions_cover_the_features(features, threads):
    indptr = pointers(features, features)
    cuts = portions(indptr, threads)
    assert cuts[0] == 0
    assert cuts[-1] == features
    assert (np.diff(cuts) >= 0).all()


def test_portions_are_alike():
    indptr = pointers(1, 5000)
    work = np.diff(indptr[portions(indptr, 2)])
    assert work.max() < 1.1 * work.mean()


def test_a_part_of_the_features():
    assert portions(pointers(1, 50)[20:31] + 9, 2)[-1] == 10


@pytest.mark.parametrize("entries", [1, 100, 10**9])
@pytest.mark.parametrize("features", [0, 1, 60])
def test_blocks(features, entries):
    indptr = pointers(3, features)
    found = list(blocks(indptr, entries))
    assert [f for first, last in found for f in range(first, last)] == list(range(features))
    for first, last in found:
        assert last == first + 1 or indptr[last] - indptr[first] <= entries
        # Nor smaller than need be.
        assert last == features or indptr[last + 1] - indptr[first] > entries
