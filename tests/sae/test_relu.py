"""The ReLU dictionary: loss and gradients as written out, sparse as dense, annealing of p."""

from __future__ import annotations

import pytest
import torch
from small_sae import ARRANGEMENTS, bias, centred, check_against, encoder, small, step, weights_of
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae, Step
from mechlab.sae.codes import scatter
from mechlab.sae.relu import Relu, ReluConfig


def written_out(sae: Sae, x: Tensor, y: Tensor, at: Step) -> Tensor:
    f = (centred(sae, x) @ encoder(sae) + sae.b_enc).relu()
    error = (y - f @ sae.W_dec - bias(sae, x)).pow(2).sum(1)
    p = sae.config.p
    weighted = f * weights_of(sae)
    penalty = (weighted if p == 1 else (weighted + 1e-3) ** p - 1e-3**p).sum(1)
    return (error + sae.config.sparsity * at.sparsity * penalty).mean() / at.variance


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("density", [1.0, 0.01])
@pytest.mark.parametrize("p", [1.0, 0.4])
def test_loss_and_gradients_as_written_out(arrangement: str, density: float, p: float) -> None:
    sae, x, y = small("relu", arrangement, p=p)
    got = check_against(written_out, sae, x, y, step(density=density))
    f = (centred(sae, x) @ encoder(sae) + sae.b_enc).relu()
    assert torch.equal(got.fired, (f > 0).any(0))
    assert float(got.l0) == pytest.approx(float((f > 0).sum(1).double().mean()))
    torch.testing.assert_close(scatter(sae.encode(x), 30), f)


@pytest.mark.parametrize("seed", range(3))
def test_sparse_and_dense_agree_in_float32(seed: int) -> None:
    sae, x, _ = small("relu", "free", seed=seed, d_sae=300)
    sae.float()
    with torch.no_grad():
        sae.b_enc.sub_(2.5)
    found = []
    for density in (1.0, 0.01):
        sae.zero_grad()
        loss = sae.loss(x.float(), x.float(), step(density=density))
        loss.total.backward()
        found.append([loss.total.detach(), *(p.grad.clone() for p in sae.parameters())])
    assert 0 < float(loss.l0) < 30
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(dense, sparse, rtol=1e-4, atol=1e-5)


def test_p_falls_after_the_warm_up_and_the_penalty_stays() -> None:
    """With weights that do not change, lowering p leaves the penalty where it was."""
    config = {"p_end": 0.2, "sparsity_warmup": 0.25}
    sae, x, _ = small("relu", **config)
    assert isinstance(sae, Relu)
    powers = [sae.config.p_at(n, 100) for n in range(100)]
    assert powers[:26] == [1.0] * 26
    assert powers[99] == pytest.approx(0.2)
    assert powers[62] == pytest.approx(0.6, abs=0.01)
    first, last = (
        [sae.loss(x, x, step(number=n)).penalty for n in range(*span)] for span in ((0, 99), (99, 100))
    )
    torch.testing.assert_close(last[0], first[0], rtol=1e-6, atol=0)
    assert float(sae.annealed) != pytest.approx(1.0)
    assert "annealed" in sae.state_dict()
    assert "annealed" not in sae.finish().state_dict()


def test_slope_at_zero_is_finite_for_small_p() -> None:
    sae, x, _ = small("relu", p=0.2)
    with torch.no_grad():
        sae.b_enc.copy_(-((x - sae.b_dec) @ sae.W_enc).amax(0) + 1e-12)
    sae.loss(x, x, step()).total.backward()
    assert sae.W_enc.grad.abs().max() < 1e4


@pytest.mark.parametrize("settings", [{"p": 0.0}, {"p": 1.5}, {"p_end": 0.0}, {"p": 0.5, "p_end": 0.9}])
def test_powers_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(MechlabError, match=r"p(_end)? is out of range"):
        ReluConfig(**settings)
