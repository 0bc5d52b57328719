"""AbsTopK: selection by magnitude, signs kept, AuxK by magnitude."""

from __future__ import annotations

import pytest
import torch
from small_sae import ARRANGEMENTS, bias, centred, check_against, encoder, small, step
from torch import Tensor

from mechlab.sae.base import Sae, Step
from mechlab.sae.codes import scatter


def largest(pre: Tensor, k: int) -> Tensor:
    return torch.where(pre.abs() >= pre.abs().topk(k, dim=1).values[:, -1:], pre, 0)


def written_out(sae: Sae, x: Tensor, y: Tensor, at: Step) -> Tensor:
    codes = largest(centred(sae, x) @ encoder(sae) + sae.b_enc, sae.config.k)
    error = y - codes @ sae.W_dec - bias(sae, x)
    target = error.detach()
    pre = centred(sae, x).detach() @ encoder(sae)[:, at.dead] + sae.b_enc[at.dead]
    made = largest(pre, 2) @ sae.W_dec[at.dead]
    rest = (target - made).pow(2).sum(1).mean() / (target - target.mean(0)).pow(2).sum(1).mean()
    return error.pow(2).sum(1).mean() / at.variance + rest / 32


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_loss_and_gradients_as_written_out(arrangement: str) -> None:
    sae, x, y = small("abstopk", arrangement, k=4, aux_k=2)
    got = check_against(written_out, sae, x, y, step([3, 8, 9, 28]))
    codes = largest(centred(sae, x) @ encoder(sae) + sae.b_enc, 4)
    assert (codes < 0).any()
    assert torch.equal(got.fired, (codes != 0).any(0))
    assert float(got.l0) == 4
    torch.testing.assert_close(scatter(sae.encode(x), 30), codes)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_both_sides_are_the_same_dictionary(arrangement: str) -> None:
    """Twice the latents, none below zero, as an index of both signs numbers them."""
    sae, x, _ = small("abstopk", arrangement, k=4)
    twice = sae.both_sides()
    codes = scatter(sae.encode(x), 30)
    torch.testing.assert_close(
        scatter(twice.encode(x), 60), torch.cat([codes.relu(), (-codes).relu()], dim=1)
    )
    torch.testing.assert_close(twice(x), sae(x))
    assert (twice.in_sizes, twice.out_sizes, twice.d_sae) == (sae.in_sizes, sae.out_sizes, 60)
