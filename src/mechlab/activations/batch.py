"""A batch of mixed rows, and how well batches are mixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.errors import MechlabError


@dataclass(frozen=True)
class Batch:
    """Mixed rows: ``batch["blocks.2.hook_resid_post"]``.

    Attributes:
        values: site → ``[row, dim]``, in the source's dtype; the same token in all sites of a row.
        row: number of each row in the source's own order ``[row]``.
        document: document of each row ``[row]``.
    """

    values: dict[str, Float[Tensor, "row _"]]
    row: Int[Tensor, "row"]
    document: Int[Tensor, "row"]

    def __getitem__(self, site: str) -> Float[Tensor, "row dim"]:
        return self.values[site]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Mixing:
    """How well batches are mixed.

    Attributes:
        neighbour_distance: mean distance, in rows of the source, between neighbours in a batch:
            1 without mixing; a third of the range that a perfect mix is drawn from.
        document_share: mean share of a batch that comes from its most frequent document.
    """

    neighbour_distance: float
    document_share: float


def mixing(batches: Iterable[Batch]) -> Mixing:
    """Measure the mixing of some batches; each counts the same."""
    distances, shares = [], []
    for batch in batches:
        if len(batch) > 1:
            distances.append(batch.row.diff().abs().double().mean().item())
        _, counts = torch.unique(batch.document, return_counts=True)
        shares.append(counts.max().item() / len(batch))
    if not distances:
        raise MechlabError("no batch to measure", None, "pass batches of two rows or more")
    return Mixing(sum(distances) / len(distances), sum(shares) / len(shares))


def seed_of(*parts: int) -> int:
    """A seed for one of many random draws; near numbers give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


def require_state(state: dict[str, Any], settings: list[Any]) -> None:
    """MechlabError unless ``state`` was saved under the same settings."""
    if state.get("settings") != settings:
        raise MechlabError(
            "state of shuffled batches belongs to other data or settings",
            None,
            "use the same source, batch size, buffer, seed and epochs",
        )
