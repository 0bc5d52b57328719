"""Crosscoders: planted shared and exclusive features, and what their norms say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.batchtopk import BatchTopKConfig
from mechlab.sae.config import TrainConfig
from mechlab.sae.crosscoder import norm_shares, site_norms
from mechlab.sae.relu import Relu, ReluConfig
from mechlab.sae.scaling import look
from mechlab.sae.source import tables
from mechlab.sae.topk import TopKConfig
from mechlab.sae.train import train
from mechlab.sae.trainee import Trainee

SITES = "a,b"


def planted(n: int = 30_000, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Rows at two sites of different size: features 0-7 in both, 8-11 in a alone, 12-15 in b alone."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2, 16, 12, generator=generator)
    directions /= directions.norm(dim=-1, keepdim=True)
    directions[1, 8:12] = 0
    directions[0, 12:] = 0
    chosen = torch.rand(n, 16, generator=generator).topk(2, dim=1).indices
    codes = torch.zeros(n, 16).scatter_(1, chosen, 1 + torch.rand(n, 2, generator=generator))
    return {"a": codes @ directions[0] + 1, "b": 50 * (codes @ directions[1]) - 3}, directions


SHARED = {"site": SITES, "d_sae": 32, "lr": 1e-2, "tokens": 80_000, "batch_size": 256}


@pytest.mark.parametrize(
    "config",
    [BatchTopKConfig(**SHARED, k=2, dead_after=3000), ReluConfig(**SHARED, sparsity=0.3, decoder="free")],
    ids=lambda config: config.arch,
)
def test_shared_and_exclusive_features_are_recovered(config: TrainConfig) -> None:
    rows, directions = planted(10_000)
    trained = train(tables(rows), [config])[0]
    mean_norms = [float(rows[site].norm(dim=1).mean()) for site in ("a", "b")]
    shares = norm_shares(trained.sae, mean_norms)
    torch.testing.assert_close(shares.sum(1), torch.ones(32))
    # Each planted feature's latent is the one whose decoder is most like it, at both sites together.
    truth = torch.cat([directions[0], 50 * directions[1]], dim=1)
    scale = torch.cat([torch.full((12,), norm) for norm in mean_norms])
    truth, made = truth / scale, trained.sae.W_dec / scale
    cosine = (truth / truth.norm(dim=1, keepdim=True)) @ (made / made.norm(dim=1, keepdim=True)).T
    best, latent = cosine.max(1)
    assert best.mean() > 0.92
    of_b = shares[latent, 1]
    # An L1 penalty leaves some of a latent at the wrong site (Minder et al. 2025, arXiv 2504.02922).
    assert of_b[8:12].max() < 0.35
    assert of_b[12:].min() > 0.7
    assert 0.4 < of_b[:8].mean() < 0.8


def test_a_penalty_weighs_a_latent_by_the_sum_of_its_norms() -> None:
    sae = Relu(ReluConfig(site=SITES, d_sae=2, decoder="free"), (2, 1))
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[3.0, 4.0, 2.0], [0.0, 0.0, 7.0]]))
    torch.testing.assert_close(sae.latent_norms(), torch.tensor([7.0, 7.0]))
    torch.testing.assert_close(site_norms(sae), torch.tensor([[5.0, 2.0], [0.0, 7.0]]))
    torch.testing.assert_close(norm_shares(sae), torch.tensor([[5 / 7, 2 / 7], [0.0, 1.0]]))
    # A mean norm of 10 in 2 dimensions and of 1 in 1: units of 10/sqrt(2) and 1.
    scaled = torch.tensor([[5 / 10 * 2**0.5, 2.0], [0.0, 7.0]])
    torch.testing.assert_close(site_norms(sae, [10.0, 1.0]), scaled)
    with torch.no_grad():
        sae.W_dec.zero_()
    assert torch.equal(norm_shares(sae), torch.zeros(2, 2))


def test_starting_from_a_finished_crosscoder_changes_nothing() -> None:
    """Sites of different scale: units there and back, decoder rows at norm 1 again."""
    rows, _ = planted(4000)
    config = TopKConfig(site=SITES, d_sae=16, k=2, tokens=20_000, batch_size=512)
    first = train(tables(rows), [config])[0].sae
    scales = {site: look(site, table) for site, table in rows.items()}
    again = Trainee(config, scales, rows, seed=1, device=torch.device("cpu"))
    again.start_from(first)
    torch.testing.assert_close(again.sae.W_dec.norm(dim=1), torch.ones(16))
    x = torch.cat([rows["a"], rows["b"]], dim=1)[:500]
    torch.testing.assert_close(again.sae(x * again.x_scale) / again.y_scale, first(x), rtol=1e-3, atol=1e-3)


def test_refusals() -> None:
    sae = Relu(ReluConfig(site=SITES, d_sae=2), (2, 1))
    for norms in ([1.0], [1.0, 0.0]):
        with pytest.raises(MechlabError, match="mean norms do not fit the sites"):
            norm_shares(sae, norms)
    with pytest.raises(MechlabError, match="batches lack the site: c"):
        train(tables(planted(600)[0]), [TopKConfig(site="a,c", d_sae=8, k=2, tokens=600, batch_size=100)])
