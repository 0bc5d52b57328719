"""The Matryoshka sparse autoencoder, with BatchTopK selection.

Source: Bussmann et al. (2025), *Learning multi-level features with Matryoshka sparse
autoencoders* (arXiv 2503.17547): nested dictionaries of widths m, each made of the first m latents of
the whole. With codes selected once, over all latents, the loss is the mean over widths of

    |x - (codes[:m] W_dec[:m] + b_dec)|^2

plus AuxK on the error of the whole. (The paper sums over widths; the mean keeps the learning
rate and AuxK's weight comparable with other architectures.) A finished dictionary is a JumpReLU.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from mechlab.sae.base import Step, StepLoss
from mechlab.sae.batchtopk import BatchTopK, BatchTopKConfig
from mechlab.sae.codes import Codes
from mechlab.sae.dead import auxk_loss
from mechlab_kernels.autograd import sparse_decode


class MatryoshkaConfig(BatchTopKConfig):
    """Settings of a Matryoshka dictionary."""

    arch = "matryoshka"

    widths: tuple[int, ...] | None = None
    """Nested widths in ascending order, the last being d_sae; d_sae / 16, / 8, / 4, / 2, / 1 by default."""

    @model_validator(mode="after")
    def _nested(self) -> MatryoshkaConfig:
        ends = self.prefixes
        right = (
            bool(ends) and ends[0] >= 1 and ends[-1] == self.d_sae and all(a < b for a, b in pairwise(ends))
        )
        self._require("widths", right, f"ascending, the last being d_sae = {self.d_sae}")
        return self

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The nested widths."""
        if self.widths is not None:
            return self.widths
        return tuple(sorted({max(1, self.d_sae // part) for part in (16, 8, 4, 2, 1)}))


class Matryoshka(BatchTopK):
    """The first latents reconstruct by themselves; later ones add detail."""

    arch = "matryoshka"
    Config = MatryoshkaConfig

    config: MatryoshkaConfig

    def loss(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> StepLoss:
        """Mean squared error of the nested dictionaries over total variance, plus AuxK."""
        centred = self.centre(x)
        codes = self.select(centred, step)
        self.watch(codes, step)
        ends = self.config.prefixes
        sizes = [end - start for start, end in pairwise((0, *ends))]
        error = y - self.add_bias(torch.zeros_like(y), x)
        squares = []
        # One split: its gradient is put together once for all parts.
        for end, size, decoder in zip(ends, sizes, torch.split(self.W_dec, sizes), strict=True):
            part = _within(codes, end - size, size)
            error = error - sparse_decode(part.values, part.indices, decoder)
            squares.append(error.pow(2).sum(-1).mean() / step.variance)
        auxiliary = auxk_loss(self, centred, error, step, self.config.aux, self.config.aux_k)
        total, whole = torch.stack(squares).mean() + auxiliary, squares[-1]
        l0, fired = codes.l0().float().mean(), codes.fired(self.d_sae)
        return StepLoss(total, whole.detach(), l0, fired, made=y - error, penalty=total - whole)


def _within(codes: Codes, start: int, size: int) -> Codes:
    """Codes of the latents ``start`` to ``start + size``, counted from ``start``; differentiable."""
    inside = (codes.indices >= start) & (codes.indices < start + size) & (codes.values != 0)
    widest = max(1, int(inside.sum(-1).max()))
    slots = inside.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :widest]
    used = inside.gather(1, slots)
    values = torch.where(used, codes.values.gather(1, slots), 0)
    return Codes(values, torch.where(used, codes.indices.gather(1, slots) - start, 0))
