"""Toy models of superposition: more features than dimensions, and what the model does with them.

Source: Elhage et al. (2022), *Toy Models of Superposition* (arXiv 2209.10652). Features are
0 with probability 1 - density and uniform on [0, 1] otherwise; the ReLU-output model is

    h = W x,   x' = ReLU(W^T h + b),   loss = mean of sum_i importance_i (x_i - x'_i)^2

Many models are trained at once, side by side. Different from the paper's own code: the learning
rate falls to 0 on a cosine from 0.01 (there: 0.001 throughout), so that fewer steps are enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.errors import MechlabError

# |W_i| of a feature that is represented at all, and overlap that counts as sharing. In trained
# models both sit near 0 or well above (interference: 0.5 for a triangle, 1 for opposite pairs).
_NORM, _OVERLAP = 0.5, 0.1
_EVALUATION_ROWS = 2**14


class Phase(IntEnum):
    """What became of a feature."""

    DROPPED = 0
    SUPERPOSED = 1
    DEDICATED = 2


@dataclass(frozen=True)
class Toys:
    """Trained models, side by side.

    Attributes:
        W: ``[model, m, feature]``; b: ``[model, feature]``.
        loss: on rows not trained on, the same for all models but for the density ``[model]``.
    """

    W: Float[Tensor, "model m feature"]
    b: Float[Tensor, "model feature"]
    loss: Float[Tensor, "model"]


@dataclass(frozen=True)
class PhaseDiagram:
    """The fate of the last of n features in m dimensions, the others having importance 1.

    Attributes:
        importance: of the last feature ``[importance]``; density: of all features ``[density]``.
        phase: a ``Phase`` for each pair ``[importance, density]``.
        norm: |W_i| of the feature; interference: sum_{j≠i} (Ŵ_i · W_j)^2; loss: of the model.
    """

    importance: Float[Tensor, "importance"]
    density: Float[Tensor, "density"]
    phase: Int[Tensor, "importance density"]
    norm: Float[Tensor, "importance density"]
    interference: Float[Tensor, "importance density"]
    loss: Float[Tensor, "importance density"]


def train_toys(
    importance: Float[Tensor, "model feature"],
    density: Float[Tensor, "model"],
    m: int,
    *,
    relu: bool = True,
    steps: int = 2000,
    batch: int = 256,
    lr: float = 0.01,
    seed: int = 0,
) -> Toys:
    """Train one model per row of ``importance``, all at once.

    Args:
        density: probability that a feature is not 0, per model.
        m: hidden dimensions.
        relu: without it, the paper's linear model.

    With density 1 and equal importances every m-dimensional subspace is as good as any other, so
    no feature need come out whole; the paper's figures let importance fall (0.9^i, say).

    Raises MechlabError when m or a density is out of range.
    """
    models, n = importance.shape
    if m < 1:
        raise MechlabError("m is out of range", m, "at least 1")
    if not bool(((density > 0) & (density <= 1)).all()):
        raise MechlabError("density is out of range", density.tolist(), "above 0, at most 1")
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(models, m, n, generator=generator) * math.sqrt(2 / (m + n))
    b = torch.zeros(models, n)
    parameters = [W.requires_grad_(), b.requires_grad_()]
    adam = torch.optim.Adam(parameters, lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        x = _rows(batch, models, n, density, generator)
        adam.zero_grad()
        _losses(W, b, x, importance, relu).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        falling.step()
    with torch.no_grad():
        x = _rows(_EVALUATION_ROWS, 1, n, density, generator)
        loss = _losses(W, b, x, importance, relu)
    return Toys(W.detach(), b.detach(), loss)


def phase_diagram(
    n: int,
    m: int,
    importance: Float[Tensor, "importance"],
    density: Float[Tensor, "density"],
    *,
    repeats: int = 8,
    steps: int = 2000,
    seed: int = 0,
) -> PhaseDiagram:
    """Train models for each pair of importance and density; the best of ``repeats`` counts.

    The paper shows n = 2, m = 1 and n = 3, m = 2. Raises MechlabError unless n > m.
    """
    if n <= m:
        raise MechlabError("n is out of range", n, f"more features than the m = {m} dimensions")
    cells = torch.cartesian_prod(importance, density)
    weights = torch.ones(len(cells), n)
    weights[:, -1] = cells[:, 0]
    toys = train_toys(weights.repeat(repeats, 1), cells[:, 1].repeat(repeats), m, steps=steps, seed=seed)
    best = toys.loss.view(repeats, -1).argmin(0) * len(cells) + torch.arange(len(cells))
    shape = (len(importance), len(density))
    W = toys.W[best]
    return PhaseDiagram(
        importance=importance,
        density=density,
        phase=phases(W)[:, -1].view(shape),
        norm=W.norm(dim=1)[:, -1].view(shape),
        interference=interference(W)[:, -1].view(shape),
        loss=toys.loss[best].view(shape),
    )


def dimensionality(W: Float[Tensor, "model m feature"]) -> Float[Tensor, "model feature"]:
    """D_i = |W_i|^2 / sum_j (Ŵ_i · W_j)^2: the share of a dimension that a feature has for itself.

    0 for a feature that is not represented; the sum over features is at most m.
    """
    square = W.square().sum(1)
    shared = (W.transpose(1, 2) @ W).square().sum(-1)
    return torch.where(square > 1e-12, square.square() / shared.clamp(min=1e-30), 0.0)


def interference(W: Float[Tensor, "model m feature"]) -> Float[Tensor, "model feature"]:
    """sum_{j≠i} (Ŵ_i · W_j)^2: what other features put onto a feature's direction."""
    square = W.square().sum(1)
    shared = (W.transpose(1, 2) @ W).square().sum(-1)
    return torch.where(square > 1e-12, shared / square.clamp(min=1e-12) - square, 0.0).clamp(min=0)


def phases(W: Float[Tensor, "model m feature"]) -> Int[Tensor, "model feature"]:
    """The ``Phase`` of each feature: |W_i| below 0.5 is dropped, interference above 0.1 shared."""
    kept = torch.where(interference(W) > _OVERLAP, int(Phase.SUPERPOSED), int(Phase.DEDICATED))
    return torch.where(W.norm(dim=1) < _NORM, int(Phase.DROPPED), kept)


def _rows(
    rows: int, models: int, n: int, density: Float[Tensor, "model"], generator: torch.Generator
) -> Float[Tensor, "model row feature"]:
    """Features of fresh rows; with ``models`` 1, the same draws for every density."""
    present = torch.rand(models, rows, n, generator=generator) < density[:, None, None]
    return torch.rand(models, rows, n, generator=generator) * present


def _losses(
    W: Float[Tensor, "model m feature"],
    b: Float[Tensor, "model feature"],
    x: Float[Tensor, "model row feature"],
    importance: Float[Tensor, "model feature"],
    relu: bool,
) -> Float[Tensor, "model"]:
    made = torch.baddbmm(b[:, None], x @ W.transpose(1, 2), W)
    error = (x - (made.relu() if relu else made)).square()
    return (error * importance[:, None]).sum(-1).mean(1)
