"""Targeted and spurious concept removal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_concepts import planted

from mechlab.errors import MechlabError
from mechlab.sae.codes import scatter, sparse
from mechlab.sae.metrics.removal import _drops, _removed, _won_back, spurious_removal, targeted_removal


def test_drops_by_hand() -> None:
    # Two probes, right on 8 and 9 of 10 rows. Ablating concept 0 leaves 5 and 8, concept 1 leaves 8 and 4.
    totals = np.array([[8, 9, 10, 10, 5, 8, 8, 4]], dtype=float)
    assert _drops(2, "intended")(totals)[0] == pytest.approx((0.3 + 0.5) / 2)
    assert _drops(2, "unintended")(totals)[0] == pytest.approx((0.1 + 0.0) / 2)
    assert _drops(2, "tpp")(totals)[0] == pytest.approx(0.35)


def test_won_back_by_hand() -> None:
    assert _won_back(np.array([[8.0, 6.0, 10.0, 10.0]]))[0] == pytest.approx(0.5)
    assert np.isnan(_won_back(np.array([[8.0, 10.0, 10.0, 10.0]]))[0])


def test_ablating_equals_decoding_without_the_latents() -> None:
    data = planted()
    w, held = (
        torch.randn(data.d_sae, generator=torch.Generator().manual_seed(0)),
        torch.zeros(data.d_sae).bool(),
    )
    held[[0, 5, 9]] = True
    dense = scatter(data.codes, data.d_sae)
    error = data.x - dense @ data.W_dec
    slow = dense.masked_fill(held, 0) @ data.W_dec + error
    got = data.x @ w - _removed(data.codes, held, data.W_dec @ w)
    torch.testing.assert_close(got, slow @ w, atol=1e-4, rtol=1e-4)


def test_planted_latents_remove_their_concept_alone() -> None:
    data = planted(4)
    got = targeted_removal(data.codes, data.x, data.W_dec, data.labels, data.documents, ns=(1, 3))
    assert got.concepts == (0, 1, 2, 3)
    assert got.accuracy.value > 0.98
    assert got.accuracy.n == 20  # held-out documents
    assert got.intended[1].value == pytest.approx(0.5, abs=0.05)
    assert got.unintended[1].value == pytest.approx(0, abs=0.02)
    assert got.tpp[1].value == pytest.approx(got.intended[1].value - got.unintended[1].value)
    assert got.tpp[1].beats_null


@pytest.mark.parametrize("seed", range(3))
def test_random_latents_stand_at_chance(seed: int) -> None:
    data = planted(6, d_sae=40, seed=seed)
    got = targeted_removal(data.codes, data.x, data.W_dec, data.labels, data.documents, ns=(1,), seed=seed)
    assert got.tpp[1].chance == 0.0
    assert got.tpp[1].null.value == pytest.approx(0, abs=0.1)


def signed(seed: int = 0):
    """Two concepts, each with a latent for yes and one for no, beside latents of noise."""
    generator = torch.Generator().manual_seed(seed)
    rows, d = 2400, 16
    a, b = (torch.rand(rows, generator=generator) < 0.5 for _ in range(2))
    directions = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    W_dec = torch.cat([directions[:1], -directions[:1], directions[1:2], -directions[1:2], directions[2:]])
    noise = (torch.rand(rows, d - 2, generator=generator) < 0.2).float()
    dense = torch.cat([torch.stack([a, ~a, b, ~b], dim=1).float(), noise], dim=1)
    x = dense @ W_dec + 0.1 * torch.randn(rows, d, generator=generator)
    return sparse(dense), x, W_dec, a, b, torch.arange(rows) // 40


def test_ablating_the_spurious_latents_wins_the_accuracy_back() -> None:
    codes, x, W_dec, a, b, documents = signed()
    got = spurious_removal(codes, x, W_dec, a, b, documents, ns=(1, 2))
    assert got.clean.value > 0.98
    assert got.biased.value == pytest.approx(0.75, abs=0.05)
    assert got.scr[2].value > 0.9
    assert got.scr[2].beats_null
    assert got.scr[2].chance == 0.0
    assert got.scr[2].null.value < 0.5


def test_refusals() -> None:
    codes, x, W_dec, a, b, documents = signed()
    with pytest.raises(MechlabError, match="out of range"):
        spurious_removal(codes, x, W_dec, a, b, documents, ns=())
    with pytest.raises(MechlabError, match="combination of the two concepts is too rare"):
        spurious_removal(codes, x, W_dec, a, a, documents)
    with pytest.raises(MechlabError, match="TPP compares concepts"):
        targeted_removal(codes, x, W_dec, a[:, None], documents)
