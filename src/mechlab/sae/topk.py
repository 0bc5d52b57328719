"""The TopK sparse autoencoder.

Source: Gao et al. (2024), *Scaling and evaluating sparse autoencoders* (arXiv 2406.04093):

    codes = TopK((x - b_dec) W_enc + b_enc),   x_hat = codes W_dec + b_dec

with a ReLU on the selected values, as released dictionaries of this kind have it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechlab.errors import MechlabError


@dataclass(frozen=True)
class Codes:
    """Sparse codes: the active latents of each row and their values (0 = not active)."""

    values: Float[Tensor, "row k"]
    indices: Int[Tensor, "row k"]


class TopK(nn.Module):
    """A dictionary of ``d_sae`` directions of which ``k`` are used per token.

    Attributes:
        W_enc: encoder ``[d_in, d_sae]``; b_enc: ``[d_sae]``.
        W_dec: decoder ``[d_sae, d_in]``, rows of unit norm; b_dec: ``[d_in]``, subtracted
            from the input and added to the output.
    """

    def __init__(self, d_in: int, d_sae: int, k: int) -> None:
        super().__init__()
        if d_sae < 1:
            raise MechlabError("d_sae is out of range", d_sae, "at least 1")
        if not 1 <= k <= d_sae:
            raise MechlabError("k is out of range", k, f"between 1 and d_sae = {d_sae}")
        self.d_in, self.d_sae, self.k = d_in, d_sae, k
        self.W_enc = nn.Parameter(torch.zeros(d_in, d_sae))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @torch.no_grad()
    def initialise(self, mean: Float[Tensor, "d_in"], generator: torch.Generator) -> None:
        """Random unit decoder rows, the encoder as their transpose, and ``b_dec`` at the data mean."""
        rows = torch.randn(self.d_sae, self.d_in, generator=generator)
        rows = rows / rows.norm(dim=-1, keepdim=True)
        self.W_dec.copy_(rows)
        self.W_enc.copy_(rows.T)
        self.b_dec.copy_(mean)

    def pre_activations(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        """Encoder output before the selection."""
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row; at most ``k`` are non-zero."""
        values, indices = self.pre_activations(x).topk(self.k, dim=-1)
        return Codes(values.relu(), indices)

    def decode(self, codes: Codes) -> Float[Tensor, "row d_in"]:
        """Reconstruction from codes."""
        return scatter(codes, self.d_sae) @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
        """Reconstruction of ``x``."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def rescale_input(self, scale: float) -> None:
        """Make a dictionary trained on ``scale * x`` apply to ``x`` itself, exactly.

        Selection and ReLU commute with a positive factor, so only the biases change; codes
        and reconstructions come out divided by ``scale``.
        """
        if not (scale > 0 and math.isfinite(scale)):
            raise MechlabError("activation scale must be positive and finite", scale, "check the activations")
        self.b_enc.div_(scale)
        self.b_dec.div_(scale)


def scatter(codes: Codes, d_sae: int) -> Float[Tensor, "row d_sae"]:
    """Codes as a dense array ``[row, d_sae]``; gradients reach the values."""
    dense = codes.values.new_zeros(len(codes.values), d_sae)
    return dense.scatter(1, codes.indices, codes.values)
