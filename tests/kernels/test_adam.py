"""One-pass Adam against torch's."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import config

from mechlab_kernels.adam import adam_, adam_reference_, squared_norm, squared_norm_reference


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (130, 65), (300,), (1,)])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.9)])
def test_equal_to_torch(shape, betas) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([theirs], lr=1e-2, betas=betas, eps=1e-8)
    states = [[start.clone(), torch.zeros(shape), torch.zeros(shape)] for _ in range(2)]
    for step in range(1, 21):
        gradient = torch.randn(shape, generator=generator) * 10.0 ** (step % 5 - 3)
        theirs.grad = gradient * 0.3
        optimizer.step()
        for adam, (parameter, first, second) in zip((adam_, adam_reference_), states, strict=True):
            adam(
                parameter,
                gradient,
                first,
                second,
                lr=1e-2,
                step=step,
                beta1=betas[0],
                beta2=betas[1],
                gradient_scale=0.3,
            )
    for parameter, first, second in states:
        torch.testing.assert_close(parameter, theirs.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(first, optimizer.state[theirs]["exp_avg"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(second, optimizer.state[theirs]["exp_avg_sq"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2), (40, 33), (129, 64)])
def test_unit_rows_stay_and_equal_the_definition(shape) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.nn.functional.normalize(torch.randn(shape, generator=generator))
    fast, slow = ([start.clone(), torch.zeros(shape), torch.zeros(shape)] for _ in range(2))
    for step in range(1, 11):
        gradient = torch.randn(shape, generator=generator)
        for adam, (parameter, first, second) in ((adam_, fast), (adam_reference_, slow)):
            adam(parameter, gradient, first, second, lr=1e-2, step=step, unit_rows=True, gradient_scale=0.5)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast[0].norm(dim=1), torch.ones(shape[0]))


def test_a_gradient_along_unit_rows_moves_nothing() -> None:
    row = torch.nn.functional.normalize(torch.randn(6, 8))
    parameter = row.clone()
    # Rounding leaves 1e-8 of the gradient; eps is large against it.
    adam_(parameter, 3 * row, torch.zeros(6, 8), torch.zeros(6, 8), lr=0.1, step=1, eps=1.0, unit_rows=True)
    torch.testing.assert_close(parameter, row)
    assert squared_norm(3 * row, row) < 1e-10


def test_zero_gradient_and_zero_row_stay_finite() -> None:
    parameter = torch.zeros(3, 4)
    adam_(parameter, torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4), lr=0.1, step=1)
    assert torch.equal(parameter, torch.zeros(3, 4))


@pytest.mark.parametrize("adam", [adam_, adam_reference_])
def test_a_row_of_zeros_cannot_be_made_a_unit_row_but_does_not_become_nan(adam) -> None:
    parameter = torch.zeros(3, 4)
    parameter[0, 0] = 1
    adam(parameter, torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4), lr=0.1, step=1, unit_rows=True)
    assert parameter.norm(dim=1).tolist() == [1.0, 0.0, 0.0]


def test_strided_and_double_go_the_plain_way() -> None:
    start, gradient = torch.randn(6, 9), torch.randn(6, 9)
    expected = start.clone()
    adam_(expected, gradient, torch.zeros(6, 9), torch.zeros(6, 9), lr=0.1, step=1)
    for kind in (lambda t: t.T.contiguous().T, lambda t: t.double()):
        parameter = kind(start.clone())
        adam_(parameter, kind(gradient), kind(torch.zeros(6, 9)), kind(torch.zeros(6, 9)), lr=0.1, step=1)
        torch.testing.assert_close(parameter.float(), expected)


@pytest.mark.parametrize("shape", [(1, 1), (40, 33), (200,), (0, 4)])
def test_squared_norm(shape) -> None:
    gradient = torch.randn(shape)
    assert squared_norm(gradient) == pytest.approx(float(gradient.double().square().sum()), rel=1e-12)
    if len(shape) == 2 and shape[0]:
        row = torch.nn.functional.normalize(torch.randn(shape))
        expected = squared_norm_reference(gradient, row)
        assert squared_norm(gradient, row) == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert squared_norm(gradient.double(), row.double()) == expected


def test_errors(monkeypatch) -> None:
    # The checks of array types are the tests' own: users run without them.
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    a, b = torch.zeros(3, 4), torch.zeros(4, 3)
    with pytest.raises(ValueError, match="shape"):
        adam_(a, b, a, a, lr=0.1, step=1)
    with pytest.raises(ValueError, match="steps"):
        adam_(a, a, a, a, lr=0.1, step=0)
    with pytest.raises(ValueError, match="unit_rows"):
        adam_(a[0], a[0], a[0], a[0], lr=0.1, step=1, unit_rows=True)
    with pytest.raises(ValueError, match="shape"):
        squared_norm(a, b)
