"""Feature absorption."""

from __future__ import annotations

import pytest
import torch
from planted_concepts import planted

from mechlab.errors import MechlabError
from mechlab.sae.codes import Codes, sparse
from mechlab.sae.metrics.absorption import absorption, main_latents, row_absorption

# Latents: 0 and 1 are main; 2, 3, 4, 5 could absorb; 6 is aligned too little for the fraction, 7 for either.
ALIGNED = torch.tensor([1.0, 0.5, 0.5, 0.4, 0.3, 0.2, 0.09, 0.02])
MAIN = torch.tensor([0, 1])


def rows_of(*rows: dict[int, float]) -> Codes:
    dense = torch.zeros(len(rows), 8)
    for row, active in enumerate(rows):
        for latent, value in active.items():
            dense[row, latent] = value
    return sparse(dense)


@pytest.mark.parametrize(
    ("active", "projection", "full", "fraction"),
    [
        ({2: 1.0}, 1.0, True, 1.0),  # silent main, one absorber with half of the projection
        ({2: 0.7}, 1.0, False, 0.0),  # 0.35 of it: below the share
        ({0: 0.4, 2: 1.0}, 1.0, False, 0.5 / 0.9),  # main gives 0.4, the absorber 0.5
        ({0: 0.4, 2: 3.0}, 1.0, False, 0.6),  # absorbers count for what main leaves open
        ({0: 1.0, 2: 3.0}, 1.0, False, 0.0),  # main accounts for all of it
        ({2: 0.4, 3: 0.5, 4: 0.5, 5: 0.5}, 1.0, False, 1.0),  # three largest: 0.2 + 0.2 + 0.15
        ({6: 6.0}, 1.0, True, 0.0),  # cosine 0.09: full only
        ({7: 30.0}, 1.0, False, 0.0),  # cosine 0.02: neither
        ({2: 1.0}, -1.0, False, 0.0),  # the probe does not point there
        ({}, 1.0, False, 0.0),
        ({0: 0.1, 2: 1.2, 6: 0.1}, 1.0, False, 0.6 / 0.7),
    ],
)
def test_rows_by_hand(active: dict[int, float], projection: float, full: bool, fraction: float) -> None:
    got = row_absorption(rows_of(active, {0: 1.0}), torch.tensor([projection, 1.0]), ALIGNED, ALIGNED, MAIN)
    assert bool(got.full[0]) is full
    assert float(got.fraction[0]) == pytest.approx(fraction, abs=1e-6)
    assert not got.full[1]


def family(children: int, share: float, seed: int = 0):
    """A parent concept, each of whose children takes ``share`` of its rows away from its latent."""
    generator = torch.Generator().manual_seed(seed)
    rows, d = 3000, 8
    directions = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    parent = torch.rand(rows, generator=generator) < 0.4
    roll = (torch.rand(rows, generator=generator) / share).long()
    child = torch.where(parent & (roll < children), roll, -1)
    dense = torch.zeros(rows, d)
    dense[:, 0] = parent & (child < 0)
    W_dec = directions.clone()
    for c in range(children):
        dense[:, 1 + c] = child == c
        W_dec[1 + c] = directions[0] + directions[1 + c]  # the child's latent carries the parent along
    x = dense @ W_dec + 0.05 * torch.randn(rows, d, generator=generator)
    return sparse(dense), x, W_dec, parent[:, None], torch.arange(rows) // 50, child


@pytest.mark.parametrize(("children", "share"), [(1, 0.04), (3, 0.04)])
def test_planted_absorption_is_measured(children: int, share: float) -> None:
    codes, x, W_dec, labels, documents, child = family(children, share)
    got = absorption(codes, x, W_dec, labels, documents)
    assert got.main[0].tolist() == [0]
    truth = float((child >= 0).sum() / labels.sum())
    assert got.full.value == pytest.approx(truth, abs=0.04)
    assert got.fraction.value == pytest.approx(truth, abs=0.04)
    assert got.full.low > 0
    assert got.full.n == 30  # held-out documents
    assert float(got.full_by_concept[0]) == pytest.approx(got.full.value)
    assert got.full.null is not None
    assert got.full.null.value < got.full.low


def test_no_absorption_without_it() -> None:
    data = planted()
    got = absorption(data.codes, data.x, data.W_dec, data.labels, data.documents)
    assert [latents.tolist() for latents in got.main] == [[0], [1], [2]]
    assert got.full.value == 0.0
    assert got.fraction.value < 0.01


def test_a_split_concept_is_not_called_absorbed() -> None:
    codes, x, W_dec, labels, documents, _ = family(2, 0.4)
    got = absorption(codes, x, W_dec, labels, documents)
    assert sorted(got.main[0].tolist()) == [0, 1, 2]
    assert got.full.value == 0.0


def test_a_larger_decoder_with_smaller_codes_changes_nothing() -> None:
    codes, x, W_dec, labels, documents, _ = family(1, 0.05)
    got = absorption(codes, x, W_dec, labels, documents)
    other = absorption(Codes(codes.values / 2, codes.indices), x, W_dec * 2, labels, documents)
    assert other.full.value == got.full.value
    assert other.fraction.value == pytest.approx(got.fraction.value, abs=1e-4)


def test_main_latents_are_few_and_positive() -> None:
    label = torch.arange(40) % 2 == 0
    dense = torch.zeros(40, 12)
    dense[:, 3], dense[:, 4] = label.float(), (~label) * 5.0
    assert main_latents(sparse(dense), label, 12).tolist() == [3]


def test_refusals() -> None:
    data = planted()
    labels = torch.zeros_like(data.labels)
    with pytest.raises(MechlabError, match="no concept can be scored"):
        absorption(data.codes, data.x, data.W_dec, labels, data.documents)
