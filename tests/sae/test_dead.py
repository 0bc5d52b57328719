"""Latents that stopped firing: known faults of AuxK and resampling, one test each."""

from __future__ import annotations

import pytest
import torch
from planted_rows import planted
from small_sae import small, step
from torch import Tensor

from mechlab.sae.base import Sae
from mechlab.sae.dead import resample
from mechlab.sae.optimiser import Adam
from mechlab.sae.registry import architecture
from mechlab.sae.source import tables
from mechlab.sae.train import train

PENALISED = ["relu", "gated", "jumprelu"]


@pytest.mark.parametrize("arch", ["topk", "abstopk", "batchtopk", "matryoshka"])
def test_auxk_trains_encoder_bias_and_decoder_of_dead_latents_only(arch: str) -> None:
    sae, x, _ = small(arch, k=2)
    dead = [4, 11, 12, 25]
    with torch.no_grad():
        sae.b_enc.add_(20.0 if arch != "abstopk" else 0.0)
        sae.b_enc[dead] = 0.3
    (sae.loss(x, x, step(dead)).total - sae.loss(x, x, step()).total).backward()
    alive = [n for n in range(30) if n not in dead]
    for gradient in (sae.W_enc.grad.T, sae.b_enc.grad, sae.W_dec.grad):
        assert gradient[dead].abs().sum() > 0
        assert gradient[alive].abs().sum() < 1e-9 * gradient[dead].abs().sum()
    # Neither does it pull at b_dec: the error that it rebuilds is a constant.
    assert sae.b_dec.grad.abs().max() < 1e-9


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("arch", ["topk", "clt"])
def test_auxk_keeps_its_size_on_rows_without_a_spread(arch: str, rows: int) -> None:
    """One row, or the same token twice, has no variance to divide by."""
    more = {"site": "a,b", "target": "c,d"} if arch == "clt" else {}
    sizes = ((4, 3), (4, 3)) if arch == "clt" else ((7,), None)
    config = architecture(arch).Config.model_validate({"d_sae": 30, "k": 2, **more})
    sae = architecture(arch)(config, *sizes).double()
    sae.initialise(torch.zeros(7), torch.Generator().manual_seed(0))
    x = torch.randn(1, 7, generator=torch.Generator().manual_seed(1)).double().expand(rows, -1)
    auxiliary = sae.loss(x, x, step([1, 4, 20])).total - sae.loss(x, x, step()).total
    assert 0 < float(auxiliary.detach()) < 1


@pytest.mark.parametrize("arch", PENALISED)
@pytest.mark.parametrize("arrangement", ["plain", "tied", "free", "transcoder"])
def test_resampling_writes_into_the_weights(arch: str, arrangement: str) -> None:
    sae, x, y = small(arch, arrangement)
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    dead = torch.tensor([1, 5, 17])
    living = sae.encoder.norm(dim=1)[[n for n in range(30) if n not in (1, 5, 17)]].mean()
    rest = y - sae.b_dec - (x @ sae.W_skip.T if sae.W_skip is not None else 0)
    resample(sae, x, y, dead, torch.Generator().manual_seed(0))
    for name, p in sae.named_parameters():
        rows, old = (p.T, before[name].T) if name == "W_enc" else (p, before[name])
        if name in ("b_dec", "W_skip"):
            assert torch.equal(rows, old)
            continue
        kept = [n for n in range(30) if n not in dead]
        assert torch.equal(rows[kept], old[kept])
        assert not torch.isclose(rows[dead], old[dead]).all(dim=-1).any(), name
    # Each decoder row is one of the rows it was drawn from, at norm 1.
    units = rest / rest.norm(dim=1, keepdim=True)
    torch.testing.assert_close((sae.W_dec[dead] @ units.T).amax(1), torch.ones(3).double())
    if arrangement != "tied":
        torch.testing.assert_close(sae.encoder[dead].norm(dim=1), (0.2 * living).expand(3))
    names = {"relu": ["b_enc"], "gated": ["b_gate", "b_mag", "r_mag"], "jumprelu": ["b_enc"]}[arch]
    for name in names:
        assert not getattr(sae, name)[dead].any()
    if arch == "jumprelu":
        torch.testing.assert_close(sae.threshold[dead], torch.full((3,), 0.2).double())


@pytest.mark.parametrize("arch", PENALISED)
def test_forgetting_resets_the_moments_of_all_that_was_rewritten(arch: str) -> None:
    sae, x, y = small(arch)
    sae.float()
    optimiser = Adam(sae)
    for number in (1, 2):
        sae.loss(x.float(), y.float(), step([1, 2])).total.backward()
        optimiser.step(number, 1e-3, 1.0)
    dead = torch.tensor([0, 7])
    kept = [n for n in range(30) if n not in (0, 7)]
    before = {name: moment.clone() for name, moment in optimiser.second.items()}
    optimiser.forget(dead)
    for moments in (optimiser.first, optimiser.second):
        for name, moment in moments.items():
            if name != "b_dec":
                assert not moment[dead].any(), name
    for name, moment in optimiser.second.items():
        where = slice(None) if name == "b_dec" else kept
        assert torch.equal(moment[where], before[name][where])


def test_badly_reconstructed_rows_are_drawn_most() -> None:
    sae, x, _ = small("relu")
    bad = x.clone()
    bad[3] = bad[3] * 200
    for seed in range(5):
        resample(sae, bad, bad, torch.tensor([seed]), torch.Generator().manual_seed(seed))
        unit = (bad[3] - sae.b_dec) / (bad[3] - sae.b_dec).norm()
        assert float((sae.W_dec[seed] @ unit).detach()) > 0.999


@pytest.mark.parametrize("arch", PENALISED)
def test_resampling_revives_latents_in_training(arch: str) -> None:
    """Rows of the encoder that point nowhere fire again, against a run without resampling."""
    x, _ = planted(n=4000, d_in=12, features=16)
    start = _with_dead_latents(arch, x)
    dead = []
    for times in (0, 3):
        config = architecture(arch).Config.model_validate(
            {
                "site": "a",
                "d_sae": 32,
                "tokens": 30_000,
                "batch_size": 250,
                "dead_after": 2000,
                "sparsity": 0.3,
            }
            | {"resample": times}
            | ({"pre_act": 0.0, "threshold": 0.1, "bandwidth": 0.1} if arch == "jumprelu" else {})
        )
        made = train(tables({"a": x}), [config], start=[start])[0]
        dead.append(made.metrics[-1]["dead"])
    assert dead[0] >= 0.5
    assert dead[1] < 0.2


def test_moments_of_one_latent_or_one_dimension_are_found() -> None:
    for d_in, d_sae in ((1, 6), (5, 1), (1, 1), (5, 5)):
        sae = architecture("relu")(architecture("relu").Config(d_sae=d_sae), d_in)
        sae.initialise(torch.zeros(d_in), torch.Generator().manual_seed(0))
        optimiser = Adam(sae)
        x = torch.randn(9, d_in)
        sae.loss(x, x, step()).total.backward()
        optimiser.step(1, 1e-3, 1.0)
        assert optimiser.first["W_enc"].shape == (d_sae, d_in)
        optimiser.forget(torch.tensor([d_sae - 1]))
        assert not optimiser.second["W_enc"][-1].any()


def _with_dead_latents(arch: str, x: Tensor) -> Sae:
    kind = architecture(arch)
    sae = kind(kind.Config(d_sae=32), 12)
    sae.initialise(x.mean(0), torch.Generator().manual_seed(0))
    with torch.no_grad():
        (sae.b_gate if arch == "gated" else sae.b_enc)[:16] = -1e6
    return sae
