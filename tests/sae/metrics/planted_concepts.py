"""Rows whose concepts are known directions, and the dictionary that found them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechlab.sae.codes import Codes, sparse


@dataclass(frozen=True)
class Planted:
    """Latent c fires exactly on concept c; the others fire at random and mean nothing."""

    x: Tensor
    codes: Codes
    W_dec: Tensor
    labels: Tensor
    documents: Tensor

    @property
    def d_sae(self) -> int:
        return len(self.W_dec)


def planted(
    concepts: int = 3,
    *,
    d_sae: int = 24,
    documents: int = 40,
    width: int = 25,
    noise: float = 0.05,
    seed: int = 0,
) -> Planted:
    generator = torch.Generator().manual_seed(seed)
    rows = documents * 25
    directions = torch.linalg.qr(torch.randn(d_sae, d_sae, generator=generator)).Q
    active = torch.rand(rows, d_sae, generator=generator) < 0.25
    strength = 1 + torch.rand(rows, d_sae, generator=generator)
    dense = active * strength
    x = dense @ directions + noise * torch.randn(rows, d_sae, generator=generator)
    document = torch.arange(documents).repeat_interleave(25)
    return Planted(x, sparse(dense), directions, active[:, :concepts], document)
