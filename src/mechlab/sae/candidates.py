"""The pre-activations that a penalised loss looks at: all of them, or only those above a bar.

A loss written over ``Candidates`` is the same formula for both. Dense while a fair share of the
latents is active; sparse later, when the latents below the bar add nothing to value or gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.sae.base import Sae
from mechlab.sae.codes import Codes
from mechlab_kernels.autograd import selected_pre_activations, sparse_decode
from mechlab_kernels.encode import encode_above

# Up to this share of active latents the sparse form is the faster one.
SPARSE_BELOW = 0.05
# Stands for "not there" in an unused slot: below every bar, and still a number, so that
# gradients multiplied by zero stay zero.
_NOT_THERE = -1e9


@dataclass(frozen=True)
class Candidates:
    """Pre-activations by row and slot.

    Attributes:
        pre: pre-activations ``[row, slot]``, differentiable; far below zero in unused slots.
        indices: latent of each slot; None when the slots are the latents themselves.
        d_sae: number of latents.
    """

    pre: Float[Tensor, "row slot"]
    indices: Int[Tensor, "row slot"] | None
    d_sae: int

    def of(self, vector: Float[Tensor, "d_sae"]) -> Float[Tensor, "..."]:
        """A figure of each latent, laid out to go with ``pre``."""
        return vector if self.indices is None else vector[self.indices]

    def decode(
        self, values: Float[Tensor, "row slot"], decoder: Float[Tensor, "d_sae d_out"]
    ) -> Float[Tensor, "row d_out"]:
        """Sum of decoder rows weighted by values in the same layout."""
        if self.indices is None:
            return values @ decoder
        return sparse_decode(values, self.indices, decoder)

    def active(self, values: Float[Tensor, "row slot"]) -> tuple[Float[Tensor, ""], Bool[Tensor, "d_sae"]]:
        """Mean number of values per row that are not zero, and which latents have one."""
        active = values.detach() != 0
        if self.indices is None:
            fired = active.any(0)
        else:
            fired = Codes(active.to(values.dtype), self.indices).fired(self.d_sae)
        return active.sum(-1).float().mean(), fired


def candidates(
    sae: Sae,
    centred: Float[Tensor, "row d_in"],
    bias: Float[Tensor, "d_sae"],
    bar: Float[Tensor, "d_sae"] | None,
) -> Candidates:
    """All pre-activations ``centred @ encoder.T + bias``, or those above each latent's bar."""
    if bar is None:
        return Candidates(torch.addmm(bias, centred, sae.encoder.T), None, sae.d_sae)
    with torch.no_grad():
        found, indices = encode_above(centred, sae.encoder, bias, bar)
    pre = selected_pre_activations(centred, sae.encoder, bias, indices)
    return Candidates(torch.where(found != 0, pre, _NOT_THERE), indices, sae.d_sae)


def penalty_weights(sae: Sae) -> Float[Tensor, "d_sae"] | None:
    """What a penalty multiplies activations by: decoder norms, summed over sites.

    None stands for ones: decoder rows held at norm 1, at one site (Anthropic, April 2024:
    without that constraint a penalty on f alone could be evaded by growing the decoder).
    """
    return None if sae.unit and len(sae.out_sizes) == 1 else sae.latent_norms()
