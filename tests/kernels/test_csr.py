"""The fast CSR build must equal its definition, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import config

from mechlab_kernels.csr import build_csr, build_csr_reference


def codes(seed: int, rows: int, k: int, width: int, dtype=np.float32, index=np.int64):
    rng = np.random.default_rng(seed)
    values = rng.random((rows, k)).astype(dtype)
    values[rng.random((rows, k)) < 0.3] = 0
    indices = np.stack([rng.permutation(max(width, k))[:k] for _ in range(rows)]) if rows else None
    indices = np.zeros((0, k), index) if indices is None else indices.astype(index)
    values[indices >= width] = 0
    return values, indices


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rows", "k", "width"), [(0, 3, 5), (1, 1, 1), (7, 3, 5), (50, 8, 8), (300, 16, 64)])
def test_fast_equals_reference(seed, rows, k, width):
    values, indices = codes(seed, rows, k, width)
    fast = build_csr(values, indices, width)
    slow = build_csr_reference(torch.from_numpy(values), torch.from_numpy(indices), width)
    for ours, theirs in zip(fast, slow, strict=True):
        assert np.array_equal(ours, theirs.numpy())
        assert ours.dtype == theirs.numpy().dtype


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("index", [np.int32, np.int64, np.int16])
def test_dtypes_do_not_matter(dtype, index):
    values, indices = codes(1, 40, 4, 16, np.float16)
    plain = build_csr(values.astype(np.float32), indices, 16)
    other = build_csr(values.astype(dtype), indices.astype(index), 16)
    assert all(np.array_equal(a, b) for a, b in zip(plain, other, strict=True))


def test_layout_by_hand():
    values = np.array([[2.0, 1.0], [0.0, 3.0]], np.float32)
    indices = np.array([[2, 0], [1, 2]])
    indptr, row, value = build_csr(values, indices, 4)
    assert indptr.tolist() == [0, 1, 1, 3, 3]
    assert row.tolist() == [0, 0, 1]
    assert value.tolist() == [1.0, 2.0, 3.0]


def test_order_of_slots_within_a_row_does_not_matter():
    values, indices = codes(3, 60, 6, 20)
    order = np.random.default_rng(0).permutation(6)
    plain, shuffled = build_csr(values, indices, 20), build_csr(values[:, order], indices[:, order], 20)
    assert all(np.array_equal(a, b) for a, b in zip(plain, shuffled, strict=True))


def test_blocks_of_rows_add_up():
    values, indices = codes(4, 90, 5, 12)
    indptr, row, _ = build_csr(values, indices, 12)
    parts = [build_csr(values[a:b], indices[a:b], 12) for a, b in ((0, 30), (30, 31), (31, 90))]
    assert np.array_equal(np.diff(indptr), sum(np.diff(part[0]) for part in parts))
    joined = [
        np.concatenate(
            [part[1][part[0][f] : part[0][f + 1]] + a for part, a in zip(parts, (0, 30, 31), strict=True)]
        )
        for f in range(12)
    ]
    assert np.array_equal(row, np.concatenate(joined))


@pytest.mark.parametrize("bad", [-1, 5, 2**31 + 1, -(2**32), 1 - 2**32])
def test_feature_outside_the_dictionary_is_refused(bad):
    values, indices = np.ones((2, 1), np.float32), np.array([[0], [bad]])
    with pytest.raises(ValueError, match="feature"):
        build_csr(values, indices, 5)
    if abs(bad) < 2**31:
        with pytest.raises(ValueError, match="outside"):
            build_csr_reference(torch.from_numpy(values), torch.from_numpy(indices), 5)


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (6,), (3, 1), (2, 3, 1)])
def test_values_and_indices_of_different_shape_are_refused(shape, monkeypatch):
    # The checks of array types are the tests' own: users run without them.
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="shape"):
        build_csr(np.ones((2, 3), np.float32), np.zeros(shape, np.int64), 5)
    with pytest.raises(ValueError, match="shape"):
        build_csr(np.ones(shape, np.float32), np.zeros((2, 3), np.int64), 5)


def test_inactive_slot_may_name_anything():
    indptr, row, value = build_csr(np.zeros((2, 2), np.float32), np.full((2, 2), -7), 3)
    assert indptr.tolist() == [0, 0, 0, 0]
    assert len(row) == len(value) == 0
