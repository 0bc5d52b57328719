"""Sparse products against their definitions."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import config
from torch import Tensor

from mechlab_kernels import sparse

SHAPES = [(0, 3, 5, 4), (1, 1, 1, 1), (7, 3, 5, 2), (50, 8, 8, 33), (300, 16, 64, 130)]


def codes(seed: int, rows: int, k: int, latents: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, k, generator=generator)
    values[torch.rand(rows, k, generator=generator) < 0.3] = 0
    return values, torch.randint(0, latents, (rows, k), generator=generator)


def dense(values: Tensor, indices: Tensor, latents: int) -> Tensor:
    matrix = torch.zeros(len(values), latents, dtype=torch.float64)
    return matrix.scatter_add(1, indices, values.double())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_all_equal_the_dense_products(seed, shape, dtype) -> None:
    rows, k, latents, d = shape
    values, indices = codes(seed, rows, k, latents)
    values = values.to(dtype)
    weight, x = torch.randn(latents, d).to(dtype), torch.randn(rows, d).to(dtype)
    matrix = dense(values, indices, latents)
    dots = (x.double() @ weight.double().T).gather(1, indices)
    tolerance = {"rtol": 1e-2, "atol": 1e-1} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
    for suffix in ("", "_reference"):
        decode, accumulate, column_sums, gathered_dots = (
            getattr(sparse, name + suffix)
            for name in ("decode", "accumulate", "column_sums", "gathered_dots")
        )
        for ours, theirs in [
            (decode(values, indices, weight), matrix @ weight.double()),
            (accumulate(values, indices, x, latents), matrix.T @ x.double()),
            (column_sums(values, indices, latents), matrix.sum(0)),
            (gathered_dots(x, indices, weight), dots),
        ]:
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), theirs, **tolerance)


def test_results_go_where_asked() -> None:
    values, indices = codes(0, 30, 4, 12)
    weight, x = torch.randn(12, 9), torch.randn(30, 9)
    for run, shape in [
        (lambda out: sparse.decode(values, indices, weight, out), (30, 9)),
        (lambda out: sparse.gathered_dots(x, indices, weight, out), (30, 4)),
        (lambda out: sparse.accumulate(values, indices, x, 12, out), (12, 9)),
    ]:
        expected = run(None)
        for out in (torch.full(shape, torch.nan), torch.full(shape[::-1], torch.nan).T):
            assert run(out) is out
            assert torch.equal(out, expected)


def test_other_layouts_and_index_dtypes() -> None:
    values, indices = codes(1, 30, 4, 12)
    weight, x = torch.randn(12, 9), torch.randn(30, 9)
    expected = (sparse.decode(values, indices, weight), sparse.accumulate(values, indices, x, 12))
    turned = [part.T.contiguous().T for part in (values, indices.int(), weight, x)]
    found = (sparse.decode(*turned[:3]), sparse.accumulate(turned[0], turned[1], turned[3], 12))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert torch.equal(
        sparse.gathered_dots(x, indices, weight), sparse.gathered_dots(turned[3], *turned[1:3])
    )
    assert torch.equal(sparse.column_sums(values, indices, 12), sparse.column_sums(*turned[:2], 12))


def test_unused_slots_add_nothing_whatever_they_name() -> None:
    values, indices = torch.tensor([[2.0, 0.0]]), torch.tensor([[0, 1]])
    weight = torch.tensor([[1.0, 2.0], [torch.inf, torch.nan]])
    for decode in (sparse.decode, sparse.decode_reference):
        assert decode(values, indices, weight).tolist() == [[2.0, 4.0]]
    x = torch.tensor([[torch.nan, 1.0]])
    for accumulate in (sparse.accumulate, sparse.accumulate_reference):
        assert accumulate(values, indices, x, 2)[1].tolist() == [0.0, 0.0]


def test_number_of_threads_does_not_matter() -> None:
    values, indices = codes(2, 500, 6, 40)
    weight, x = torch.randn(40, 65), torch.randn(500, 65)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                [
                    sparse.decode(values, indices, weight),
                    sparse.gathered_dots(x, indices, weight),
                    sparse.accumulate(values, indices, x, 40),
                    sparse.column_sums(values, indices, 40),
                ]
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("bad", [-1, 12, 2**40])
def test_indices_outside_the_dictionary_are_refused(bad) -> None:
    values, indices = codes(3, 5, 2, 12)
    weight, x = torch.randn(12, 3), torch.randn(5, 3)
    indices[2, 1] = bad
    for run in (
        lambda: sparse.decode(values, indices, weight),
        lambda: sparse.gathered_dots(x, indices, weight),
        lambda: sparse.accumulate(values, indices, x, 12),
        lambda: sparse.column_sums(values, indices, 12),
    ):
        with pytest.raises(ValueError, match="outside"):
            run()


def test_shapes_that_do_not_fit_are_refused(monkeypatch) -> None:
    # The checks of array types are the tests' own: users run without them.
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    values, indices = codes(3, 5, 2, 12)
    weight, x = torch.randn(12, 3), torch.randn(5, 3)
    for run in (
        lambda: sparse.decode(values[1:], indices, weight),
        lambda: sparse.decode(values, indices, weight, x[1:]),
        lambda: sparse.gathered_dots(x[1:], indices, weight),
        lambda: sparse.gathered_dots(x[:, 1:], indices, weight),
        lambda: sparse.accumulate(values, indices, x[1:], 12),
        lambda: sparse.accumulate(values, indices[:, 1:], x, 12),
        lambda: sparse.column_sums(values[0], indices[0], 12),
    ):
        with pytest.raises(ValueError, match=r"shape|fit"):
            run()
