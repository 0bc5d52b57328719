"""Decoders compared with one another and with themselves, and how often latents fire.

* Stability: the decoder rows of two dictionaries (two seeds, say) are paired one to one so that the
  sum of cosines is largest (Hungarian assignment), and the share of pairs with cosine ≥ 0.7 is
  reported (Paulo & Belrose 2025, arXiv 2501.16615); beside it the mean over rows of the largest
  cosine with any row of the other (Sharkey et al. 2022), which may use a row twice.
* Largest cosine of each decoder row with the other rows of its dictionary: near 1 for duplicates.
* Dead and dense latents, from firing counts.

Nulls are dictionaries of random directions of the same shape. Units of the intervals are latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.metrics.rows import random_directions
from mechlab.scores import Score, mean, score, wilson

MATCH, DENSE = 0.7, 0.1
_BLOCK = 1024


@dataclass(frozen=True)
class Stability:
    """How far two dictionaries agree.

    Attributes:
        matched: cosine of each row of the first with its partner, NaN for rows without one
            (when the first has more rows).
        partner: row of the second that it is paired with, or -1.
        cosine: mean matched cosine; share: share of pairs with cosine ≥ 0.7.
        max_cosine: mean over rows of the first of the largest cosine with any row of the second.
    """

    matched: Float[Tensor, "left"]
    partner: Int[Tensor, "left"]
    cosine: Score
    share: Score
    max_cosine: Score


@torch.no_grad()
def stability(left: Float[Tensor, "left d"], right: Float[Tensor, "right d"], *, seed: int = 0) -> Stability:
    """Match the decoder rows of two dictionaries; see the module's docstring.

    Rows of zeros match nothing (cosine 0). The pairing needs all cosines in memory, in double
    precision, and time between the square and the cube of their number: at 16,384 rows about 6 GB
    and a minute of one core, most of it for the random directions.
    """
    matched, partner, largest = _match(left, right)
    nulls = _match(left, random_directions(len(right), right.shape[1], seed).to(right))
    found = [matched[partner >= 0], (matched[partner >= 0] >= MATCH).to(matched), largest]
    control = [nulls[0][nulls[1] >= 0], (nulls[0][nulls[1] >= 0] >= MATCH).to(matched), nulls[2]]
    names = ("matched cosine", f"share matched at {MATCH}", "mean max cosine")
    scores = [
        _mean(name, values, _mean(f"{name}, random directions", null))
        for name, values, null in zip(names, found, control, strict=True)
    ]
    return Stability(matched, partner, *scores)


@torch.no_grad()
def largest_cosines(W_dec: Float[Tensor, "d_sae d"]) -> Float[Tensor, "d_sae"]:
    """Largest cosine of each row with the other rows, in blocks; 0 at least for rows of zeros.

    MechlabError when there is one row only.
    """
    if len(W_dec) < 2:
        raise MechlabError("rows cannot be compared", f"{len(W_dec)} row", "give two or more")
    return _largest(_unit(W_dec), _unit(W_dec), apart=True)


def cosine_histogram(
    W_dec: Float[Tensor, "d_sae d"], bins: int = 50
) -> tuple[Int[Tensor, "bins"], Float[Tensor, "edges"]]:
    """Counts of ``largest_cosines`` in equal bins from -1 to 1, and the bins' edges."""
    edges = torch.linspace(-1, 1, bins + 1)
    place = torch.bucketize(largest_cosines(W_dec).cpu().clamp(-1, 1), edges[1:-1], right=True)
    return torch.bincount(place, minlength=bins), edges


def firing_shares(counts: Int[Tensor, "d_sae"], rows: int) -> dict[str, Score]:
    """Shares of latents that are dead (never fired) and dense (fired on over a tenth of the rows).

    Args:
        counts: on how many rows each latent fired; rows: out of how many.

    Intervals are Wilson's. Raises MechlabError when a count exceeds the rows.
    """
    if int(counts.max()) > rows:
        raise MechlabError("latent fired more often than there are rows", int(counts.max()), f"{rows} rows")
    n, shares = len(counts), {}
    for name, which in (("dead", counts == 0), ("dense", counts > DENSE * rows)):
        total = int(which.sum())
        shares[name] = Score(name, total / n, *wilson(total, n), n)
    return shares


def _match(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # scipy is heavy to import and wanted only here.
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    a, b = _unit(left), _unit(right)
    cosines = (a @ b.T).clamp(-1, 1).cpu()
    rows, others = linear_sum_assignment(cosines.numpy(), maximize=True)
    matched, partner = torch.full((len(a),), torch.nan), torch.full((len(a),), -1)
    matched[rows] = cosines[rows, others]
    partner[rows] = torch.from_numpy(np.asarray(others, dtype=np.int64))
    return matched, partner, cosines.amax(1)


def _largest(a: Tensor, b: Tensor, *, apart: bool) -> Tensor:
    parts = []
    for start in range(0, len(a), _BLOCK):
        cosines = a[start : start + _BLOCK] @ b.T
        if apart:
            rows = torch.arange(len(cosines), device=a.device)
            cosines[rows, rows + start] = -torch.inf
        parts.append(cosines.amax(1))
    return torch.cat(parts)


def _unit(rows: Tensor) -> Tensor:
    rows = rows.detach().float()
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit


def _mean(name: str, values: Float[Tensor, "latent"], null: Score | None = None) -> Score:
    column = values.double().numpy()
    return score(name, np.stack([column, np.ones_like(column)], axis=1), mean, null=null)
