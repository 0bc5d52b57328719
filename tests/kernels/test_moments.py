"""One-pass moments against their definition."""

from __future__ import annotations

import pytest
import torch

from mechlab_kernels.moments import moments, moments_reference


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_to_the_definition(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, dim = (int(torch.randint(1, 70, (1,), generator=generator)) for _ in range(2))
    x = (torch.randn(rows, dim, generator=generator) * 3 + 5).to(dtype)
    fast, slow = moments(x, x[0]), moments_reference(x, x[0])
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    x = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0)) + 10_000
    exact = x.double()
    found = moments(x, x[0])
    mean = x[0].double() + found.first.double() / len(x)
    variance = found.second.double() / len(x) - (found.first.double() / len(x)) ** 2
    torch.testing.assert_close(mean, exact.mean(0), rtol=1e-8, atol=0)
    torch.testing.assert_close(variance, exact.var(0, unbiased=False), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_value_shows_in_its_row_and_nowhere_else(bad: float) -> None:
    x = torch.randn(9, 33)
    x[4, 17] = bad
    finite = moments(x, torch.zeros(33)).square.isfinite()
    assert finite.tolist() == [i != 4 for i in range(9)]


def test_columns_of_a_wider_block() -> None:
    x = torch.randn(20, 12)
    for a, b in zip(moments(x[:, 3:7], x[0, 3:7]), moments_reference(x[:, 3:7], x[0, 3:7]), strict=True):
        torch.testing.assert_close(a, b)
