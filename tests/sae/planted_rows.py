"""Rows with known directions, for trainers to find."""

from __future__ import annotations

import torch
from torch import Tensor

SITE = "blocks.0.hook_resid_post"


def planted(
    n: int = 40_000, d_in: int = 16, features: int = 32, active: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Sparse non-negative mixtures of unit directions, far from the origin and at another scale."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    chosen = torch.rand(n, features, generator=generator).topk(active, dim=1).indices
    strength = torch.rand(n, active, generator=generator) + 0.5
    codes = torch.zeros(n, features).scatter(1, chosen, strength)
    return 20 * (codes @ directions) + 3.0, directions


def recovered(decoder: Tensor, directions: Tensor) -> float:
    """Mean over the true directions of the largest cosine with a decoder row."""
    units = decoder / decoder.norm(dim=1, keepdim=True)
    return float((units @ directions.T).abs().max(0).values.mean())
