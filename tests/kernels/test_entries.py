"""Gathering, sorting and merging entries must equal their definitions, and the CSR build."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mechlab_kernels.csr import build_csr
from mechlab_kernels.entries import (
    gather,
    gather_reference,
    merge,
    merge_reference,
    sort_entries,
    sort_entries_reference,
)

SHAPES = [(0, 3, 5), (5, 0, 4), (1, 1, 1), (7, 3, 5), (50, 8, 8), (300, 16, 64)]


def codes(seed: int, rows: int, k: int, width: int):
    rng = np.random.default_rng(seed)
    values = rng.random((rows, k)).astype(np.float32)
    values[rng.random((rows, k)) < 0.3] = 0
    indices = np.argsort(rng.random((rows, max(width, k))), axis=1)[:, :k]
    values[indices >= width] = 0
    return values, indices


def same(ours, theirs) -> bool:
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "k", "width"), SHAPES)
def test_fast_equals_reference(seed, rows, k, width):
    values, indices = codes(seed, rows, k, width)
    entries = gather(values, indices, 11, width)
    assert same(entries, gather_reference(values, indices, 11, width))
    found = sort_entries(*entries, width)
    assert same(found, sort_entries_reference(*entries, width))
    indptr, row, value = build_csr(values, indices, width)
    assert same(found, (indptr, row + np.int32(11), value))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "k", "width"), SHAPES)
@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_sorted_pieces_merge_to_the_whole(seed, rows, k, width, pieces):
    values, indices = codes(seed, rows, k, width)
    cuts = np.linspace(0, rows, pieces + 1).astype(int)
    parts = [
        sort_entries(*gather(values[a:b], indices[a:b], int(a), width), width)
        for a, b in itertools.pairwise(cuts)
    ]
    first = np.cumsum([0, *(len(part[1]) for part in parts)])
    starts = np.stack([part[0] + at for part, at in zip(parts, first, strict=False)])
    joined = starts, np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])
    assert same(merge(*joined), merge_reference(*joined))
    assert same(merge(*joined), sort_entries(*gather(values, indices, 0, width), width))


@pytest.mark.parametrize("index", [np.int16, np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_do_not_matter(dtype, index):
    values, indices = codes(1, 40, 4, 16)
    values = values.astype(np.float16)
    plain = gather(values.astype(np.float32), indices, 0, 16)
    assert same(gather(values.astype(dtype), indices.astype(index), 0, 16), plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 1e300])
def test_bad_values_are_refused(bad):
    values, indices = codes(1, 40, 4, 16)
    values = values.astype(np.float64)
    values[17, 2] = bad
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="not finite"):
        gather(values, indices, 0, 16)
    entry = np.zeros(1, np.int32)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="not finite"):
        sort_entries(entry, entry, np.array([bad], np.float32), 4)


@pytest.mark.parametrize("bad", [-1, 16, 2**31, 2**40])
def test_features_outside_are_refused_where_active(bad):
    values, indices = codes(1, 40, 4, 16)
    indices[17, 2], values[17, 2] = bad, 0
    gather(values, indices, 0, 16)
    values[17, 2] = 1
    with pytest.raises(ValueError, match="outside"):
        gather(values, indices, 0, 16)


@pytest.mark.parametrize("bad", [-1, 4])
def test_sorting_refuses_features_outside(bad):
    with pytest.raises(ValueError, match="outside"):
        sort_entries(np.zeros(1, np.int32), np.array([bad], np.int32), np.ones(1, np.float32), 4)


def test_a_feature_named_twice_on_a_row_is_refused():
    row, feature = np.array([3, 4, 4, 4], np.int32), np.array([1, 1, 0, 1], np.int32)
    for sort in (sort_entries, sort_entries_reference):
        with pytest.raises(ValueError, match="twice"):
            sort(row, feature, np.ones(4, np.float32), 2)


def test_shapes_that_differ_are_refused():
    values, indices = codes(1, 40, 4, 16)
    with pytest.raises((ValueError, TypeError)):
        gather(values, indices[:, :3], 0, 16)


def test_pieces_that_do_not_fit_are_refused():
    starts, row, value = np.array([[0, 1, 2], [2, 3, 3]]), np.zeros(3, np.int32), np.ones(3, np.float32)
    merge(starts, row, value)
    for broken in (np.array([[0, 1, 2], [2, 3, 4]]), np.array([[0, 1, 3], [2, 3, 3]]), starts[:, ::-1]):
        with pytest.raises(ValueError, match="pieces"):
            merge(broken.copy(), row, value)
