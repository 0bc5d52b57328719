"""Toy models of superposition: figures by hand, and the facts of the paper in small."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mechlab.data.superposition import (
    Phase,
    PhaseDiagram,
    dimensionality,
    interference,
    phase_diagram,
    phases,
    train_toys,
)
from mechlab.errors import MechlabError

IMPORTANCE, DENSITY = torch.tensor([0.1, 0.4, 5.0]), torch.tensor([1.0, 0.05])


def polygon(n: int) -> Tensor:
    """Directions of a regular polygon, side by side ``[1, 2, n]``."""
    angle = 2 * math.pi * torch.arange(n) / n
    return torch.stack([angle.cos(), angle.sin()])[None]


@pytest.mark.parametrize(
    ("W", "share", "overlap", "phase"),
    [
        (torch.eye(3)[None], 1.0, 0.0, Phase.DEDICATED),
        (torch.tensor([[[1.0, -1.0]]]), 0.5, 1.0, Phase.SUPERPOSED),
        (polygon(3), 2 / 3, 0.5, Phase.SUPERPOSED),
        (polygon(5), 0.4, 1.5, Phase.SUPERPOSED),
        (torch.zeros(1, 2, 4), 0.0, 0.0, Phase.DROPPED),
    ],
)
def test_figures_by_hand(W: Tensor, share: float, overlap: float, phase: Phase) -> None:
    torch.testing.assert_close(dimensionality(W), torch.full((1, W.shape[2]), share))
    torch.testing.assert_close(interference(W), torch.full((1, W.shape[2]), overlap))
    assert set(phases(W)[0].tolist()) == {phase}


def test_dimensionality_ignores_scale_of_the_whole_and_sums_to_at_most_m() -> None:
    W = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dimensionality(W), dimensionality(2 * W))
    assert bool((dimensionality(W).sum(1) <= 3 + 1e-5).all())


def crafted(r: float, p: float) -> dict[Phase, float]:
    """Loss of the three answers to two features in one dimension, worked out by hand.

    Leaving a feature out and guessing its mean costs its variance; opposite directions cost
    (1 + r) E[min(x1, x2)^2] = (1 + r) / 6 where both are there, and nothing elsewhere.
    """
    variance = p / 3 - p * p / 4
    return {
        Phase.DROPPED: r * variance,
        Phase.DEDICATED: variance,
        Phase.SUPERPOSED: p * p * (1 + r) / 6,
    }


@pytest.fixture(scope="module")
def two_in_one() -> PhaseDiagram:
    return phase_diagram(2, 1, IMPORTANCE, DENSITY, repeats=6, steps=1000)


def test_two_features_in_one_dimension(two_in_one: PhaseDiagram) -> None:
    for i, r in enumerate(IMPORTANCE.tolist()):
        for j, p in enumerate(DENSITY.tolist()):
            losses = crafted(r, p)
            assert two_in_one.phase[i, j] == min(losses, key=lambda phase: losses[phase]), (r, p)
            assert float(two_in_one.loss[i, j]) < 1.1 * min(losses.values())


def test_three_features_in_two_dimensions() -> None:
    diagram = phase_diagram(3, 2, IMPORTANCE[[0, 2]], DENSITY, repeats=6, steps=1000)
    assert diagram.phase[0].tolist() == [Phase.DROPPED, Phase.SUPERPOSED]
    # Important enough to be kept whole while the other two are dense.
    assert diagram.phase[1, 0] == Phase.DEDICATED
    assert diagram.norm[0, 0] < 0.1


def test_dense_features_take_dimensions_by_importance_and_sparse_ones_share() -> None:
    falling = 0.8 ** torch.arange(5)
    weights = torch.stack([falling] * 4 + [torch.ones(5)] * 4)
    density = torch.tensor([1.0] * 4 + [0.05] * 4)
    toys = train_toys(weights, density, 2, steps=1500)
    dense, sparse = int(toys.loss[:4].argmin()), 4 + int(toys.loss[4:].argmin())
    assert phases(toys.W)[dense].tolist() == [Phase.DEDICATED] * 2 + [Phase.DROPPED] * 3
    torch.testing.assert_close(toys.W[dense, :, :2].T @ toys.W[dense, :, :2], torch.eye(2), atol=0.1, rtol=0)
    # Five features in two dimensions: a pentagon, each with two fifths of a dimension.
    assert phases(toys.W)[sparse].tolist() == [Phase.SUPERPOSED] * 5
    torch.testing.assert_close(dimensionality(toys.W)[sparse], torch.full((5,), 0.4), atol=0.03, rtol=0)


def test_without_a_relu_sparsity_brings_no_superposition() -> None:
    weights = (0.7 ** torch.arange(4)).repeat(2, 1)
    toys = train_toys(weights, torch.tensor([0.05, 0.05]), 2, relu=False, steps=1500)
    assert phases(toys.W)[0].tolist() == [Phase.DEDICATED] * 2 + [Phase.DROPPED] * 2


def test_same_seed_same_models() -> None:
    weights, density = torch.ones(2, 3), torch.tensor([0.1, 0.5])
    once, again = (train_toys(weights, density, 2, steps=5, seed=1) for _ in range(2))
    assert torch.equal(once.W, again.W)
    assert not torch.equal(once.W, train_toys(weights, density, 2, steps=5, seed=2).W)


def test_errors() -> None:
    with pytest.raises(MechlabError, match="m is out of range"):
        train_toys(torch.ones(1, 3), torch.ones(1), 0)
    with pytest.raises(MechlabError, match="density"):
        train_toys(torch.ones(1, 3), torch.zeros(1), 2)
    with pytest.raises(MechlabError, match="n is out of range"):
        phase_diagram(2, 2, torch.ones(1), torch.ones(1))
