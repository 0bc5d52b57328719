"""Matching pursuit: the algorithm by hand, gradients, stopping, refusals."""

from __future__ import annotations

import pytest
import torch
from small_sae import check_against, small, step
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae, Step
from mechlab.sae.codes import scatter
from mechlab.sae.matching_pursuit import MatchingPursuit, MatchingPursuitConfig


def pursued(sae: Sae, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense codes and last residual, row by row."""
    config = sae.config
    most = config.max_iterations or sae.d_in
    codes, residuals = [], []
    for row in x - sae.b_dec:
        code = torch.zeros(sae.d_sae, dtype=x.dtype)
        for _ in range(most):
            best = int((sae.W_dec @ row).argmax())
            value = (row * sae.W_dec[best]).sum().relu()
            known = code[best] != 0 or value == 0
            code = code + value * torch.nn.functional.one_hot(torch.tensor(best), sae.d_sae)
            row = row - value * sae.W_dec[best]
            if (known and config.stop_on_duplicate_support) or row.norm() < config.residual_threshold:
                break
        codes.append(code)
        residuals.append(row)
    return torch.stack(codes), torch.stack(residuals)


def written_out(sae: Sae, x: Tensor, y: Tensor, at: Step) -> Tensor:
    return pursued(sae, x)[1].pow(2).sum(1).mean() / at.variance


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "settings",
    [
        {"max_iterations": 1},
        {"max_iterations": 3},
        {"max_iterations": None, "residual_threshold": 0.6},
        {"max_iterations": 12, "residual_threshold": 0.0, "stop_on_duplicate_support": False},
        {"max_iterations": 12, "residual_threshold": 0.0},
    ],
)
def test_codes_loss_and_gradients_as_written_out(seed: int, settings: dict[str, object]) -> None:
    sae, x, y = small("matching_pursuit", seed=seed, d_sae=9, **settings)
    got = check_against(written_out, sae, x, y, step())
    codes, _ = pursued(sae, x)
    found = sae.encode(x)
    torch.testing.assert_close(scatter(found, 9), codes.detach())
    assert float(got.l0) == pytest.approx(float((codes != 0).sum(1).double().mean()))
    assert torch.equal(got.fired, (codes != 0).any(0))
    # A latent that was taken twice has one slot.
    assert torch.equal(found.l0(), (codes != 0).sum(1))


def test_by_hand() -> None:
    sae = MatchingPursuit(MatchingPursuitConfig(d_sae=2, max_iterations=2), 2)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
        sae.b_dec.copy_(torch.tensor([1.0, 1.0]))
    # r = (2, 1): products 2 and 2.0; ties go to the first. r = (0, 1): 0 and 0.8.
    codes = scatter(sae.encode(torch.tensor([[3.0, 2.0]])), 2)
    torch.testing.assert_close(codes, torch.tensor([[2.0, 0.8]]))
    torch.testing.assert_close(sae(torch.tensor([[3.0, 2.0]])), torch.tensor([[3.48, 1.64]]))


def test_changing_units_is_exact() -> None:
    sae, x, _ = small("matching_pursuit", residual_threshold=0.5)
    codes, made = scatter(sae.encode(x * 3), 30), sae(x * 3)
    sae.change_units(torch.full((7,), 3.0), torch.full((7,), 3.0))
    torch.testing.assert_close(scatter(sae.encode(x), 30), codes / 3)
    torch.testing.assert_close(sae(x), made / 3)
    assert sae.config.residual_threshold == pytest.approx(0.5 / 3)
    with pytest.raises(MechlabError, match="knows one scale"):
        sae.change_units(torch.arange(1.0, 8.0), torch.ones(7))
    with pytest.raises(MechlabError, match="one scale"):
        sae.scale_codes(2.0)


def test_codes_again_with_gradient() -> None:
    sae, x, _ = small("matching_pursuit", max_iterations=4)
    x.requires_grad_()
    found = sae.encode(x)
    again = sae.differentiable(x, found)
    assert torch.equal(again.indices, found.indices)
    torch.testing.assert_close(again.values, found.values)
    (again.values**2).sum().backward()
    mine, x.grad = x.grad.clone(), None
    pursued(sae, x)[0].pow(2).sum().backward()
    torch.testing.assert_close(mine, x.grad)


def test_refusals() -> None:
    with pytest.raises(MechlabError, match="matching pursuit reconstructs one site: a → b"):
        MatchingPursuit(MatchingPursuitConfig(site="a", target="b"), 4, 4)
    with pytest.raises(MechlabError, match="matching pursuit reconstructs one site: a,b"):
        MatchingPursuit(MatchingPursuitConfig(site="a,b"), (4, 4))
    with pytest.raises(MechlabError, match="unit decoder rows: free"):
        MatchingPursuit(MatchingPursuitConfig(decoder="free"), 4)
    with pytest.raises(MechlabError, match="max_iterations is out of range: 0"):
        MatchingPursuitConfig(max_iterations=0)
