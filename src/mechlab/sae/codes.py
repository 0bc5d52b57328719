"""Sparse codes: which latents are active on each row, and how strongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Codes:
    """Sparse codes of some rows, padded to the row with the most active latents.

    Attributes:
        values: activations ``[row, k]``; 0 means that the slot is not used.
        indices: latent of each slot ``[row, k]``, int64; of an unused slot any valid one.
    """

    values: Float[Tensor, "row k"]
    indices: Int[Tensor, "row k"]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Codes:
        return Codes(self.values[rows], self.indices[rows])

    def l0(self) -> Int[Tensor, "row"]:
        """Number of active latents of each row."""
        return (self.values != 0).sum(-1)

    def fired(self, d_sae: int) -> Bool[Tensor, "d_sae"]:
        """Which latents are active on any row."""
        fired = torch.zeros(d_sae, dtype=torch.bool, device=self.values.device)
        # Without a boolean index: its length would have to be known to the host. The extra
        # column takes what unused slots say.
        flags = torch.cat([fired, fired.new_zeros(1)])
        flags[torch.where(self.values != 0, self.indices, d_sae)] = True
        return flags[:d_sae]


def scatter(codes: Codes, d_sae: int) -> Float[Tensor, "row d_sae"]:
    """Codes as a dense array ``[row, d_sae]``; gradients reach the values."""
    dense = codes.values.new_zeros(len(codes.values), d_sae)
    # Adding, since an unused slot may name a latent that another slot of its row uses.
    return dense.scatter_add(1, codes.indices, codes.values)


def sparse(dense: Float[Tensor, "row d_sae"]) -> Codes:
    """The codes of a dense array; latents of a row in ascending order."""
    counts = (dense != 0).sum(-1)
    k = max(1, int(counts.max())) if len(dense) else 1
    # A stable sort on "is zero" puts the active latents first, in order.
    indices = (dense == 0).to(torch.uint8).argsort(dim=-1, stable=True)[:, :k]
    return Codes(dense.gather(1, indices), indices)


def concatenate(parts: Sequence[Codes]) -> Codes:
    """Codes of all rows one after the other."""
    k = max(part.values.shape[1] for part in parts)
    wide = [(p.values, p.indices, (0, k - p.values.shape[1])) for p in parts]
    return Codes(torch.cat([pad(v, by) for v, _, by in wide]), torch.cat([pad(i, by) for _, i, by in wide]))


def side_by_side(parts: Sequence[Codes]) -> Codes:
    """Codes of the same rows, taken together."""
    return Codes(torch.cat([p.values for p in parts], dim=1), torch.cat([p.indices for p in parts], dim=1))
