"""Looking at activations before training: their scale, spread and centre."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.errors import MechlabError


@dataclass(frozen=True)
class SiteScale:
    """What a site's activations look like, from a sample of rows.

    Attributes:
        mean: ``[dim]``, in the activations' units.
        scale: factor that gives rows a mean norm of sqrt(dim).
        variance: sum over dimensions of the variance, in the activations' units squared.
    """

    mean: Float[Tensor, "dim"]
    scale: float
    variance: float


def look(site: str, rows: Float[Tensor, "row dim"]) -> SiteScale:
    """Scale of a site; MechlabError when a value is not finite or the rows do not vary."""
    rows = rows.to(torch.float32)
    if not bool(rows.isfinite().all()):
        bad = int((~rows.isfinite()).any(1).sum())
        raise MechlabError(
            f"activations at {site} are NaN or infinite",
            f"{bad} of {len(rows)} rows looked at",
            "check the store (mechlab activations verify) or the model's dtype",
        )
    norm = float(rows.norm(dim=-1).mean())
    variance = float(rows.var(0, correction=0).sum())
    # What is left of equal rows after rounding.
    if variance <= 1e-12 * norm**2 or norm == 0:
        raise MechlabError(
            f"activations at {site} do not vary",
            f"{len(rows)} equal rows",
            "use another site or a richer corpus",
        )
    return SiteScale(rows.mean(0), math.sqrt(rows.shape[1]) / norm, variance)


def geometric_median(
    rows: Float[Tensor, "row dim"], tolerance: float = 1e-5, most: int = 100
) -> Float[Tensor, "dim"]:
    """The point with the smallest mean distance to the rows (Weiszfeld's iteration, 1937)."""
    at = rows.mean(0)
    for _ in range(most):
        # A row that coincides with the point would get an infinite weight.
        weights = 1 / (rows - at).norm(dim=-1).clamp_min(1e-8)
        following = (weights[:, None] * rows).sum(0) / weights.sum()
        moved = float((following - at).norm())
        at = following
        if moved <= tolerance * float(at.norm()):
            break
    return at


def per_column(scales: Sequence[SiteScale]) -> Float[Tensor, "column"]:
    """The factor of every column of some sites side by side."""
    return torch.cat([torch.full_like(each.mean, each.scale) for each in scales])
