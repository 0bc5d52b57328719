"""The AbsTopK sparse autoencoder: TopK by magnitude, with the sign kept.

Source: *AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features* (arXiv 2510.00404).
One latent can stand for a direction and its opposite. AuxK, from Gao et al. (2024), selects dead
latents by magnitude too.
"""

from __future__ import annotations

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
