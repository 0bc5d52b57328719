"""Decoders compared, and shares of latents."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.sae.metrics.geometry import cosine_histogram, firing_shares, largest_cosines, stability


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)


@pytest.mark.parametrize(("n", "d", "seed"), [(5, 3, 0), (6, 2, 1), (4, 9, 2)])
def test_the_pairing_is_the_best_of_all(n: int, d: int, seed: int) -> None:
    a, b = rows(n, d, seed), rows(n, d, seed + 100)
    table = cosines(a, b)
    best = max(float(table[range(n), order].mean()) for order in permutations(range(n)))
    got = stability(a, b)
    assert got.cosine.value == pytest.approx(best, abs=1e-6)
    assert got.max_cosine.value == pytest.approx(float(table.amax(1).mean()), abs=1e-6)
    torch.testing.assert_close(got.matched, table[range(n), got.partner], atol=1e-6, rtol=1e-6)


def test_the_same_dictionary_in_another_order_and_length() -> None:
    a = rows(60, 20, 0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    got = stability(a, 3 * a[order])
    assert torch.equal(order[got.partner], torch.arange(60))
    assert got.share.value == 1.0
    assert got.cosine.value == pytest.approx(1)
    assert got.cosine.beats_null
    half = a[order].clone()
    half[:30] = rows(30, 20, 5)
    assert stability(a, half).share.value == pytest.approx(0.5, abs=0.03)


def test_unrelated_dictionaries_stand_at_their_null() -> None:
    got = stability(rows(200, 50, 0), rows(200, 50, 9))
    assert got.share.value == got.share.null.value == 0.0
    assert got.cosine.value == pytest.approx(got.cosine.null.value, abs=0.01)


def test_a_row_may_have_no_partner() -> None:
    a = rows(5, 8, 0)
    got = stability(a, a[[3, 1]])
    assert got.partner.tolist() == [-1, 1, -1, 0, -1]
    assert got.matched.isnan().tolist() == [True, False, True, False, True]
    assert got.cosine.n == 2


def test_blocks_equal_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec = rows(50, 6, 3)
    W_dec[49] = W_dec[2] * 2  # a duplicate, in another block
    table = cosines(W_dec, W_dec).fill_diagonal_(-2)
    monkeypatch.setattr("mechlab.sae.metrics.geometry._BLOCK", 7)
    got = largest_cosines(W_dec)
    torch.testing.assert_close(got, table.amax(1), atol=1e-6, rtol=1e-6)
    counts, edges = cosine_histogram(W_dec, 20)
    assert int(counts.sum()) == 50
    assert int(counts[-1]) == int((got >= edges[-2]).sum()) >= 2
    with pytest.raises(MechlabError, match="cannot be compared"):
        largest_cosines(W_dec[:1])


def test_shares_by_hand() -> None:
    got = firing_shares(torch.tensor([0, 0, 5, 10, 11, 100]), 100)
    assert got["dead"].value == pytest.approx(2 / 6)
    assert got["dense"].value == pytest.approx(2 / 6)
    assert 0 < got["dead"].low < got["dead"].value < got["dead"].high < 1
    with pytest.raises(MechlabError, match="more often than there are rows"):
        firing_shares(torch.tensor([7]), 6)
