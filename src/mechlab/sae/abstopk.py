"""The AbsTopK sparse autoencoder: TopK by magnitude, with the sign kept.

Source: *AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features* (arXiv 2510.00404).
One latent can stand for a direction and its opposite. AuxK, from Gao et al. (2024), selects dead
latents by magnitude too.
"""

from __future__ import annotations

import torch
from torch import nn

from mechlab.sae.topk import TopK, TopKConfig


class AbsTopKConfig(TopKConfig):
    """Settings of an AbsTopK dictionary."""

    arch = "abstopk"


class AbsTopK(TopK):
    """``k`` latents per token: those with the largest pre-activations by absolute value."""

    arch = "abstopk"
    Config = AbsTopKConfig
    signed = True

    config: AbsTopKConfig

    @torch.no_grad()
    def both_sides(self) -> TopK:
        """The same dictionary with a latent for each sign: latent d_sae + f is latent f where it is negative.

        Codes and outputs are equal: of two opposite pre-activations one is the magnitude, and the other
        one, never above 0, is not selected or counts as 0.
        """
        fields = self.config.model_dump() | {"d_sae": 2 * self.d_sae, "tied": False}
        found = TopK(TopKConfig(**fields), self.in_sizes, self.out_sizes, centred=self.centred)
        encoder = torch.cat([self.encoder, -self.encoder])
        found.W_enc = nn.Parameter(encoder.T)
        found.b_enc = nn.Parameter(torch.cat([self.b_enc, -self.b_enc]))
        found.W_dec = nn.Parameter(torch.cat([self.W_dec, -self.W_dec]))
        found.b_dec, found.W_skip = self.b_dec, self.W_skip
        return found
