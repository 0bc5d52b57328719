"""The gated dictionary: loss and gradients as written out, both paths by hand."""

from __future__ import annotations

import pytest
import torch
from small_sae import ARRANGEMENTS, bias, centred, check_against, encoder, small, step, weights_of
from torch import Tensor

from mechlab.sae.base import Sae, Step
from mechlab.sae.codes import scatter
from mechlab.sae.gated import Gated, GatedConfig


def codes(sae: Sae, x: Tensor) -> Tensor:
    z = centred(sae, x) @ encoder(sae)
    return (z + sae.b_gate > 0) * (z * sae.r_mag.exp() + sae.b_mag).relu()


def written_out(sae: Sae, x: Tensor, y: Tensor, at: Step) -> Tensor:
    error = (y - codes(sae, x) @ sae.W_dec - bias(sae, x)).pow(2).sum(1)
    gate = (centred(sae, x) @ encoder(sae) + sae.b_gate).relu()
    penalty = (gate * weights_of(sae)).sum(1)
    frozen, frozen_bias = sae.W_dec.detach(), bias(sae, x).detach()
    by_gate = (y - gate @ frozen - frozen_bias).pow(2).sum(1)
    return (error + sae.config.sparsity * at.sparsity * penalty + by_gate).mean() / at.variance


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("density", [1.0, 0.01])
def test_loss_and_gradients_as_written_out(arrangement: str, density: float) -> None:
    sae, x, y = small("gated", arrangement)
    got = check_against(written_out, sae, x, y, step(density=density))
    f = codes(sae, x)
    assert torch.equal(got.fired, (f > 0).any(0))
    assert float(got.l0) == pytest.approx(float((f > 0).sum(1).double().mean()))
    torch.testing.assert_close(scatter(sae.encode(x), 30), f)


def test_gate_and_magnitude_by_hand() -> None:
    sae = Gated(GatedConfig(d_sae=3), 1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 1.0, -1.0]]))
        sae.b_gate.copy_(torch.tensor([0.0, -5.0, 5.0]))
        sae.b_mag.copy_(torch.tensor([1.0, 9.0, 1.0]))
        sae.r_mag.copy_(torch.tensor([2.0, 1.0, 1.0]).log())
    # z = 2, 2, -2: open and 2 * 2 + 1; shut; open but -2 + 1 < 0.
    assert scatter(sae.encode(torch.tensor([[2.0]])), 3).tolist() == [[5.0, 0.0, 0.0]]


def test_there_is_no_encoder_bias() -> None:
    sae = Gated(GatedConfig(d_sae=3), 2)
    assert sae.b_enc is None
    names = {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"}
    assert set(sae.state_dict()) == names


def test_codes_again_with_gradient() -> None:
    sae, x, _ = small("gated")
    x.requires_grad_()
    found = sae.encode(x)
    again = sae.differentiable(x, found)
    torch.testing.assert_close(again.values, found.values)
    (again.values**2).sum().backward()
    mine, x.grad = x.grad.clone(), None
    codes(sae, x).pow(2).sum().backward()
    torch.testing.assert_close(mine, x.grad)
