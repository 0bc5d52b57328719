"""Norms and moments of activations, gathered while they are harvested.

Each shard keeps its own ``Partial``; the store's figures are the partials merged in shard order
(Chan, Golub and LeVeque, 1983), so they do not depend on interruptions or on how many processes
did the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mechlab_kernels.moments import moments

# Sun et al. (2024, arXiv 2402.17762): a massive activation is larger than 100 in magnitude and
# about 1,000 times the median magnitude of its token's vector.
_MASSIVE, _MASSIVE_RATIO = 100.0, 1000.0


@dataclass(frozen=True)
class Partial:
    """Statistics of one site over one shard.

    Attributes:
        moments: mean and sum of squared deviations from it, per dimension ``[2, dim]``.
        rows: number of rows.
        norm: sum of the rows' norms.
        largest: largest magnitude of any entry.
        massive: rows with a massive activation.
        lost: squared error of the storage format, summed over rows.
    """

    moments: Float64[Tensor, "2 dim"]
    rows: int
    norm: float
    largest: float
    massive: int
    lost: float

    def scalars(self) -> dict[str, int | float]:
        """All but the moments, as plain numbers."""
        return {
            "rows": self.rows,
            "norm": self.norm,
            "largest": self.largest,
            "massive": self.massive,
            "lost": self.lost,
        }


class Accumulator:
    """Gathers a ``Partial`` batch by batch. Nothing waits for the device until ``partial``.

    Attributes:
        square: squared norm of each row so far ``[row]``; NaN or infinite where the row is not finite.

    Args:
        coarse: the stored rows are too coarse for a median, which is then taken of the rows themselves.
    """

    def __init__(self, dim: int, rows: int, device: torch.device, *, coarse: bool = False) -> None:
        self.square = torch.empty(rows, device=device)
        self._largest = torch.empty(rows, device=device)
        self._sums = torch.zeros(2, dim, dtype=torch.float64, device=device)
        self._lost = torch.zeros((), dtype=torch.float64, device=device)
        self._shift: Tensor | None = None
        self._massive = torch.empty(rows, dtype=torch.bool, device=device) if coarse else None

    def add(self, at: int, x: Float[Tensor, "row dim"], kept: Float[Tensor, "row dim"] | None) -> None:
        """Take in rows ``at`` to ``at + len(x)``; ``kept`` is what the storage format makes of them."""
        if self._shift is None:
            self._shift = x[0].clone()
        found = moments(x, self._shift)
        rows = slice(at, at + len(x))
        self.square[rows], self._largest[rows] = found.square, found.largest
        self._sums[0] += found.first
        self._sums[1] += found.second
        if self._massive is not None:
            # The median is below a bound when more than half of the entries are.
            small = (x.abs() < found.largest[:, None] / _MASSIVE_RATIO).sum(-1)
            self._massive[rows] = (found.largest > _MASSIVE) & (small > (x.shape[-1] - 1) // 2)
        if kept is not None:
            self._lost += (x.to(torch.float32) - kept.to(torch.float32)).square().sum()

    def partial(
        self, rows: int, stored: Callable[[Int[Tensor, "some"]], Float[Tensor, "some dim"]]
    ) -> Partial:
        """The statistics of the first ``rows`` rows, which must be all that were added.

        ``stored`` gives rows by number; it is asked for those with a large entry.
        """
        if self._shift is None:
            return Partial(self._sums.cpu(), 0, 0.0, 0.0, 0, 0.0)
        first, second = self._sums.cpu()
        shift = self._shift.cpu().double()
        mean = shift + first / rows
        deviation = (second - first * first / rows).clamp_min(0)
        # NumPy for whole columns: torch would start a second team of threads beside the model's
        # (measured on Fable: 0.78 of the bare forward with it, 0.88 without).
        largest = self._largest[:rows].cpu().numpy()
        if self._massive is not None:
            massive = self._massive[:rows].cpu().numpy().sum()
        else:
            candidates = np.flatnonzero(largest > _MASSIVE)
            rows_of = stored(torch.from_numpy(candidates)).float().abs()
            median = rows_of.median(-1).values.numpy() if len(candidates) else largest[:0]
            massive = (largest[candidates] > _MASSIVE_RATIO * median).sum()
        return Partial(
            moments=torch.stack([mean, deviation]),
            rows=rows,
            norm=float(np.sqrt(self.square[:rows].cpu().numpy(), dtype=np.float64).sum()),
            largest=float(largest.max()),
            massive=int(massive),
            lost=float(self._lost),
        )


def merge(partials: Sequence[Partial]) -> dict[str, Any]:
    """Statistics of all rows, of which there must be one at least, as JSON values.

    Keys: ``mean`` and ``variance`` (per dimension, population), ``mean_norm``, ``max`` (largest
    magnitude), ``massive_share`` (share of tokens with a massive activation), ``storage_error``
    (squared error of the storage format over the total variance).
    """
    filled = [part for part in partials if part.rows]
    rows, (mean, deviation) = filled[0].rows, filled[0].moments
    for part in filled[1:]:
        total = rows + part.rows
        apart = part.moments[0] - mean
        mean = mean + apart * (part.rows / total)
        deviation = deviation + part.moments[1] + apart.square() * (rows * part.rows / total)
        rows = total
    spread = float(deviation.sum())
    lost = math.fsum(part.lost for part in partials)
    return {
        "mean_norm": math.fsum(part.norm for part in partials) / rows,
        "max": max(part.largest for part in partials),
        "massive_share": sum(part.massive for part in partials) / rows,
        "storage_error": lost / spread if spread else 0.0,
        "mean": mean.tolist(),
        "variance": (deviation / rows).tolist(),
    }
