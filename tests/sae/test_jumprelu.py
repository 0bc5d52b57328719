"""The JumpReLU dictionary: straight-through gradients by definition, penalties, thresholds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_sae import ARRANGEMENTS, bias, centred, check_against, encoder, small, step, weights_of
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae, Step
from mechlab.sae.codes import scatter
from mechlab.sae.jumprelu import JumpReLU, JumpReLUConfig
from mechlab.sae.schedule import L0Controller

PENALTIES = ["step", "quadratic", "tanh"]


class Jump(torch.autograd.Function):
    """Rajamanoharan et al. (2024), equations 11 and 12, as an autograd function."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: float, through: bool, size: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.settings = width, through, size
        active = (pre > threshold).to(pre)
        return pre * active if size else active

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        pre, threshold = ctx.saved_tensors
        width, through, size = ctx.settings
        inside = ((pre - threshold).abs() / width < 0.5).to(pre)
        estimate = (threshold if size else 1.0) / width * inside * gradient
        to_pre = (pre > threshold) * gradient if size else torch.zeros_like(pre)
        return to_pre + estimate if through else to_pre, -estimate.sum(0), None, None, None


def written_out(sae: Sae, x: Tensor, y: Tensor, at: Step) -> Tensor:
    config = sae.config
    through = config.penalty == "tanh"
    pre = centred(sae, x) @ encoder(sae) + sae.b_enc
    f = Jump.apply(pre, sae.threshold, config.bandwidth, through, True)
    active = Jump.apply(pre, sae.threshold, config.bandwidth, through, False)
    error = (y - f @ sae.W_dec - bias(sae, x)).pow(2).sum(1).mean()
    l0 = active.sum(1).mean()
    if config.penalty == "step":
        penalty = l0
    elif config.penalty == "quadratic":
        penalty = config.target_l0 * (l0 / config.target_l0 - 1) ** 2
    else:
        penalty = torch.tanh(4 * f * weights_of(sae)).sum(1).mean()
    total = error + config.sparsity * at.sparsity * penalty
    if len(at.dead):
        pre = centred(sae, x).detach() @ encoder(sae) + sae.b_enc
        lift = (sae.threshold - pre).relu() * weights_of(sae)
        total = total + config.pre_act * lift[:, at.dead].sum(1).mean()
    return total / at.variance


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("low", [False, True])
def test_loss_and_gradients_as_written_out(arrangement: str, penalty: str, low: bool) -> None:
    sae, x, y = small("jumprelu", arrangement, penalty=penalty, bandwidth=0.9, target_l0=3.0, pre_act=0.2)
    if low:
        with torch.no_grad():
            above = centred(sae, x) @ encoder(sae) + sae.b_enc - sae.threshold + 0.45
            sae.b_enc.sub_(above.flatten().quantile(0.955))
    assert isinstance(sae, JumpReLU)
    assert (sae._bar(sae.centre(x)) is None) != low  # both forms are looked at
    got = check_against(written_out, sae, x, y, step([2, 3, 29]))
    pre = centred(sae, x) @ encoder(sae) + sae.b_enc
    f = pre * (pre > sae.threshold)
    assert float(got.l0) > 0
    assert torch.equal(got.fired, (f > 0).any(0))
    torch.testing.assert_close(scatter(sae.encode(x), 30), f)


def test_thresholds_stay_positive_and_go_on_learning() -> None:
    sae, x, _ = small("jumprelu")
    with torch.no_grad():
        sae.threshold.fill_(-0.02)
    # Used as it is, a negative threshold counts as zero.
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(scatter(sae.encode(x), 30), pre.relu())
    sae.loss(x, x, step()).total.backward()
    assert float(sae.threshold.detach().min()) == 0
    assert float(sae.threshold.grad.abs().max()) > 0
    with torch.no_grad():
        sae.threshold.fill_(-1.0)
    assert float(sae.finish().threshold.detach().min()) == 0


def test_the_quadratic_penalty_is_not_controlled_twice() -> None:
    assert L0Controller(JumpReLUConfig(penalty="quadratic", target_l0=5.0)).target is None
    assert L0Controller(JumpReLUConfig(target_l0=5.0)).target == 5.0


def test_settings_out_of_range() -> None:
    with pytest.raises(MechlabError, match="bandwidth is out of range"):
        JumpReLUConfig(bandwidth=0.0)
    with pytest.raises(MechlabError, match="threshold is out of range"):
        JumpReLUConfig(threshold=-1.0)
    with pytest.raises(MechlabError, match="quadratic penalty needs a target"):
        JumpReLUConfig(penalty="quadratic")
