"""Which axes of the scores are kept: prompts and positions, or their sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Axes:
    """Scores inside attribution are ``[prompt, source, reader, pos]``; an axis not kept has length 1."""

    by_prompt: bool = False
    by_position: bool = False

    def zeros(self, like: Float[Tensor, "source batch pos d_model"], readers: int) -> Tensor:
        """Scores of a batch, all zero."""
        sources, batch, pos, _ = like.shape
        return like.new_zeros(
            batch if self.by_prompt else 1, sources, readers, pos if self.by_position else 1
        )

    def contract(
        self,
        difference: Float[Tensor, "source batch pos d_model"],
        gradient: Float[Tensor, "reader batch pos d_model"],
    ) -> Float[Tensor, "_prompt source reader _pos"]:
        """Differences times gradients, summed over d_model and the axes that are not kept."""
        if self.by_prompt and self.by_position:
            return torch.einsum("sbpd,rbpd->bsrp", difference, gradient)
        if self.by_prompt:
            return torch.einsum("sbpd,rbpd->bsr", difference, gradient)[..., None]
        if self.by_position:
            return torch.einsum("sbpd,rbpd->srp", difference, gradient)[None]
        # einsum would make this a batch of one, which CPU libraries run at half the speed; and with so
        # long an inner axis they are a third quicker when the product is wider than it is high.
        left, right = difference.flatten(1), gradient.flatten(1)
        found = (right @ left.T).T if len(left) > len(right) else left @ right.T
        return found[None, ..., None]

    def reduce(
        self, scores: Float[Tensor, "batch source reader pos"]
    ) -> Float[Tensor, "_prompt source reader _pos"]:
        """Sums over the axes that are not kept."""
        summed = [axis for axis, kept in ((0, self.by_prompt), (3, self.by_position)) if not kept]
        return scores.sum(summed, keepdim=True) if summed else scores

    def finish(self, scores: Float[Tensor, "_prompt source reader _pos"]) -> Float[Tensor, "..."]:
        """Without the axes that are not kept."""
        scores = scores if self.by_position else scores[..., 0]
        return scores if self.by_prompt else scores[0]
