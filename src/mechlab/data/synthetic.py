"""Planted dictionaries: activations whose true features are known.

A row is x = features D + bias + noise, where D holds one unit direction per feature and
``features`` says how strongly each fires. Which fire is decided in three steps:

1. A Gaussian copula: feature i fires when a standard normal z_i exceeds the quantile of its
   probability. The z are correlated through a few common factors, z = F e + sqrt(1 - |F|^2) u.
2. A forest: a feature fires only where its parent does; of the children of one parent at most
   one, drawn evenly among those that would.
3. The magnitude is max(0, N(mean_i, std_i)), multiplied down the tree by (parent's
   activation / parent's mean).

Source: SynthSAEBench, Chanin & Garriga-Alonso (2026, arXiv 2602.14687), with details from the
``sae_lens.synthetic`` package: built on the CPU, a model equals what that package builds there
from the same settings and seed (tested). Sampling follows the same law with draws of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.errors import MechlabError

# At least this much of every feature's normal is its own, whatever the common factors.
_OWN = 0.01


@dataclass(frozen=True)
class Planted:
    """A model of activations with known features.

    Attributes:
        directions: unit direction of each feature ``[feature, d]``; bias: added to every row ``[d]``.
        probability: of firing before the forest has its say ``[feature]``.
        mean, std: of the normal that magnitudes are drawn from ``[feature]``.
        factor: loadings on the common factors ``[feature, rank]``, rows shorter than 1.
        parent: parent of each feature, -1 without one; parents come before children ``[feature]``.
        exclusive: siblings never fire together; scaled: children follow the parent's magnitude.
        noise: standard deviation of the Gaussian noise on every dimension.
    """

    directions: Float[Tensor, "feature d"]
    bias: Float[Tensor, "d"]
    probability: Float[Tensor, "feature"]
    mean: Float[Tensor, "feature"]
    std: Float[Tensor, "feature"]
    factor: Float[Tensor, "feature rank"]
    parent: Int[Tensor, "feature"]
    exclusive: bool = True
    scaled: bool = True
    noise: float = 0.0

    def to(self, device: torch.device | str) -> Planted:
        """The same model on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def batch(
        self, rows: int, seed: int, index: int
    ) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row feature"]]:
        """Batch number ``index`` of the stream ``seed``: ``sample`` from these two numbers alone."""
        mixed = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
        return self.sample(rows, torch.Generator(self.bias.device).manual_seed(mixed))

    @torch.no_grad()
    def sample(
        self, rows: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "row d"], Float[Tensor, "row feature"]]:
        """Draw rows: (activations, how strongly each feature fires in them, 0 = not at all).

        The generator must be on the model's device.
        """
        device, features = self.bias.device, len(self.probability)
        normal = torch.randn(rows, features, generator=generator, device=device)
        common = torch.randn(rows, self.factor.shape[1], generator=generator, device=device)
        normal.mul_(self._own).addmm_(common, self.factor.T)
        on = normal > self._threshold
        # Most children that could fire lack their parent: out with them before anything is drawn.
        for level in self._levels:
            on[:, level] &= on[:, self.parent[level]]
        row, feature = on.nonzero(as_tuple=True)
        draw = torch.randn(len(row), generator=generator, device=device)
        fires = normal.zero_()
        fires[row, feature] = (self.mean[feature] + self.std[feature] * draw).relu()
        for level in self._levels:
            here = torch.isin(feature, level)
            self._gate(fires, row[here], feature[here], generator)
        if device.type == "cpu":
            # A few features in thousands fire: the dense product would take most of the time.
            x = torch.sparse.mm(fires.to_sparse(), self.directions) + self.bias
        else:
            x = fires @ self.directions + self.bias
        if self.noise:
            x += self.noise * torch.randn(x.shape, generator=generator, device=device)
        return x, fires

    def _gate(
        self,
        fires: Float[Tensor, "row feature"],
        row: Int[Tensor, "entry"],
        feature: Int[Tensor, "entry"],
        generator: torch.Generator,
    ) -> None:
        """Apply the forest to the entries of one level, those above it being settled; in place."""
        parent = self.parent[feature]
        above = fires[row, parent]
        alive = (above > 0) & (fires[row, feature] > 0)
        if self.exclusive:
            alive[alive.clone()] = one_per_group((row * fires.shape[1] + parent)[alive], generator)
        fires[row, feature] *= alive * (above / self.mean[parent] if self.scaled else 1.0)

    @cached_property
    def _own(self) -> Float[Tensor, "feature"]:
        return (1 - self.factor.square().sum(1)).sqrt()

    @cached_property
    def _threshold(self) -> Float[Tensor, "feature"]:
        # The normal's quantile at 1 - p; for p = 1 it is -infinity, which is right.
        return math.sqrt(2) * torch.erfinv(1 - 2 * self.probability)

    @cached_property
    def _levels(self) -> list[Int[Tensor, "child"]]:
        """Features below a parent, level by level."""
        found, level = [], (self.parent < 0).nonzero()[:, 0]
        while len(level := torch.isin(self.parent, level).nonzero()[:, 0]):
            found.append(level)
        return found


@dataclass(frozen=True)
class Recipe:
    """How to plant a dictionary; the defaults of the later fields give independent features.

    Attributes:
        features, d: how many, in how many dimensions.
        p_max, p_min, zipf: firing probability of feature i = 1, 2, … falls from p_max to p_min like
            i**-zipf, stretched to end exactly there.
        roots, children, depth: the first features form a forest, level by level.
        exclusive, scaled: see ``Planted``.
        compensate: raise the probabilities of children (up to 1) to make up for what the forest
            takes away, approximately.
        rank, correlation: common factors and the standard deviation of the loadings on them.
        steps, lr: Adam steps that push the directions apart, and their learning rate.
        mean_first, mean_last: mean magnitude, linear from the first feature to the last.
        std_mean, std_std: a feature's standard deviation is |N(std_mean, std_std)|.
        bias: norm of the bias; noise: see ``Planted``.

    Raises MechlabError naming the field that is out of range.
    """

    features: int
    d: int
    p_max: float = 0.1
    p_min: float = 0.001
    zipf: float = 1.0
    roots: int = 0
    children: int = 0
    depth: int = 0
    exclusive: bool = True
    scaled: bool = True
    compensate: bool = True
    rank: int = 0
    correlation: float = 0.0
    steps: int = 0
    lr: float = 3e-4
    mean_first: float = 1.0
    mean_last: float = 1.0
    std_mean: float = 0.0
    std_std: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("features", "d"):
            if getattr(self, name) < 1:
                raise MechlabError(f"{name} is out of range", getattr(self, name), "at least 1")
        if not 0 < self.p_min <= self.p_max <= 1:
            raise MechlabError(
                "p_min, p_max are out of range", (self.p_min, self.p_max), "0 < min <= max <= 1"
            )
        for name in ("zipf", "mean_first", "mean_last"):
            if not getattr(self, name) > 0:
                raise MechlabError(f"{name} is out of range", getattr(self, name), "above 0")
        for name in (
            "roots",
            "children",
            "depth",
            "rank",
            "correlation",
            "steps",
            "std_std",
            "bias",
            "noise",
        ):
            if not getattr(self, name) >= 0:
                raise MechlabError(f"{name} is out of range", getattr(self, name), "at least 0")


def synthsaebench(scale: float = 1.0, seed: int = 42) -> Recipe:
    """The recipe of SynthSAEBench-16k (Chanin & Garriga-Alonso 2026, arXiv 2602.14687), or a smaller clone.

    As published, at scale 1: every number below, the construction, the law of the samples, a mean
    L0 of about 34. Different from the released model of that name: its directions were optimised on
    another device, so they agree in law, not in digits.

    Clones (scale below 1) are ours: ``16384 * scale`` features, ``128 * scale`` roots (at least 1) and
    d = ``768 * scale**0.7`` rounded to a multiple of 8, so that features are a little less crowded
    than the drop in their number alone would have it; all else is kept. Scale 1/32 has 512 features
    in 64 dimensions. Their figures do not compare with the published table.

    Raises MechlabError when scale is not in (0, 1].
    """
    if not 0 < scale <= 1:
        raise MechlabError("scale is out of range", scale, "above 0, at most 1")
    return Recipe(
        features=max(8, round(16384 * scale)),
        d=max(8, 8 * round(96 * scale**0.7)),
        p_max=0.4,
        p_min=5e-4,
        zipf=0.5,
        roots=max(1, round(128 * scale)),
        children=4,
        depth=3,
        rank=25,
        correlation=0.1,
        steps=100,
        mean_first=5.0,
        mean_last=4.0,
        std_mean=0.5,
        std_std=0.5,
        bias=0.5,
        seed=seed,
    )


def plant(recipe: Recipe, device: torch.device | str = "cpu") -> Planted:
    """Build the model of a recipe.

    All draws are made on the CPU; only the steps that push directions apart run on ``device``.
    At full scale they are 4 TFLOP: about a minute and a half on one core.
    """

    def seeded(offset: int) -> torch.Generator:
        return torch.Generator().manual_seed(recipe.seed + offset)

    generator = seeded(0)
    directions = torch.randn(recipe.features, recipe.d, generator=generator)
    bias = torch.randn(recipe.d, generator=generator)
    directions = push_apart(directions.to(device), recipe.steps, recipe.lr)
    probability = zipf(recipe.features, recipe.zipf, recipe.p_max, recipe.p_min)
    parent = forest(recipe.features, recipe.roots, recipe.children, recipe.depth)
    if recipe.compensate:
        probability = compensated(probability, parent, recipe.exclusive)
    factor = torch.randn(recipe.features, recipe.rank, generator=seeded(4)) * recipe.correlation
    # Loadings too long for a variance of 1 are shortened.
    length = factor.square().sum(1, keepdim=True)
    factor = torch.where(length > 1 - _OWN, factor * ((1 - _OWN) / length).sqrt(), factor)
    return Planted(
        directions=directions.cpu(),
        bias=recipe.bias * bias / bias.norm(),
        probability=probability,
        mean=torch.linspace(recipe.mean_first, recipe.mean_last, recipe.features),
        std=(recipe.std_mean + recipe.std_std * torch.randn(recipe.features, generator=seeded(1))).abs(),
        factor=factor,
        parent=parent,
        exclusive=recipe.exclusive,
        scaled=recipe.scaled,
        noise=recipe.noise,
    ).to(device)


def zipf(features: int, exponent: float, p_max: float, p_min: float) -> Float[Tensor, "feature"]:
    """Probabilities proportional to rank**-exponent, stretched to run from ``p_max`` to ``p_min``."""
    if features == 1:
        return torch.tensor([p_max])
    share = torch.arange(1, features + 1, dtype=torch.float32) ** -exponent
    return p_min + (p_max - p_min) * (share - share[-1]) / (share[0] - share[-1])


def forest(features: int, roots: int, children: int, depth: int) -> Int[Tensor, "feature"]:
    """Parent of each feature: trees of ``depth`` levels below their roots, numbered level by level.

    -1 for roots, and for the features left over. A forest too big stops at the last feature.
    """
    parent = torch.full((features,), -1)
    start, width = 0, min(roots, features)
    for _ in range(depth):
        below = start + width
        grown = torch.arange(min(width * children, features - below))
        parent[below : below + len(grown)] = start + torch.div(grown, children or 1, rounding_mode="floor")
        start, width = below, len(grown)
    return parent


def compensated(
    probability: Float[Tensor, "feature"], parent: Int[Tensor, "feature"], exclusive: bool
) -> Float[Tensor, "feature"]:
    """Probabilities that leave about the given ones after the forest has its say, at most 1.

    p_i / p_parent, and with exclusive siblings times 1 + (sum of their p) / p_parent.
    """
    child = parent >= 0
    above = torch.where(child, probability[parent.clamp(min=0)], 1.0)
    raised = probability / above
    if exclusive:
        family = torch.zeros_like(probability).index_add(0, parent[child], probability[child])
        others = torch.where(child, family[parent.clamp(min=0)] - probability, 0.0).clamp(min=0)
        raised = raised * (1 + others / above)
    return raised.clamp(max=1)


def one_per_group(group: Int[Tensor, "entry"], generator: torch.Generator) -> Bool[Tensor, "entry"]:
    """Marks one entry of each group, drawn evenly."""
    order = torch.randperm(len(group), generator=generator, device=group.device)
    names, number = group.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    best = order.new_zeros(len(names)).scatter_reduce(0, number, order, "amax", include_self=False)
    return order == best[number]


@torch.no_grad()
def push_apart(directions: Float[Tensor, "feature d"], steps: int, lr: float) -> Float[Tensor, "feature d"]:
    """Directions of unit norm with less overlap: ``steps`` of Adam on

    sum_{i≠j} (v_i v_j)^2 + n sum_i (v_i v_i - 1)^2,

    whose gradient, 4 V (V^T V) + 4 (n (g - 1) - g) V with g_i = |v_i|^2, never needs the n x n
    products themselves.
    """
    vectors = directions / directions.norm(dim=1, keepdim=True)
    vectors.grad = torch.empty_like(vectors)
    adam = torch.optim.Adam([vectors], lr=lr)
    for _ in range(steps):
        square = vectors.square().sum(1, keepdim=True)
        pull = (len(vectors) * (square - 1) - square) * vectors
        vectors.grad.copy_(4 * (vectors @ (vectors.T @ vectors) + pull))
        adam.step()
    apart: Tensor = vectors / vectors.norm(dim=1, keepdim=True)
    return apart
