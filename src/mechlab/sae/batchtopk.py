"""The BatchTopK sparse autoencoder.

Source: Bussmann et al. (2024), *BatchTopK sparse autoencoders* (arXiv 2412.06410): in training
the ``rows * k`` largest positive pre-activations of the whole batch are kept, so that a row may
have more active latents than another, with the AuxK loss of Gao et al. (2024) for dead latents.
In use a row stands alone: what is above a threshold is active, namely the mean over training
steps of the smallest value kept. A finished dictionary is a JumpReLU with that threshold.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.candidates import SPARSE_BELOW
from mechlab.sae.codes import Codes, sparse
from mechlab.sae.dead import auxk_loss
from mechlab.sae.jumprelu import with_threshold
from mechlab.sae.topk import TopKConfig
from mechlab_kernels.autograd import selected_pre_activations
from mechlab_kernels.encode import encode_above

# Rate of the threshold's running mean, as in SAELens; a training of few steps forgets faster, or the mean
# would still be that of its first steps at its end, and more or fewer than k latents active in use.
_RATE = 0.01
_MEMORIES = 10
# Candidates are what exceeds this share of the last step's smallest value kept.
_MARGIN = 0.9


class BatchTopKConfig(TopKConfig):
    """Settings of a BatchTopK dictionary; k is a mean over the batch."""

    arch = "batchtopk"


class BatchTopK(Sae):
    """``k`` latents per token on average over a batch.

    Attributes:
        threshold: running mean of the smallest value kept in a batch (float64, 0 at first).
        lowest: the smallest value kept in the last batch.
    """

    arch = "batchtopk"
    Config = BatchTopKConfig

    config: BatchTopKConfig
    threshold: Tensor
    lowest: Tensor

    def __init__(
        self,
        config: BatchTopKConfig,
        in_sizes: int | tuple[int, ...],
        out_sizes: int | tuple[int, ...] | None = None,
        *,
        centred: bool | None = None,
    ) -> None:
        super().__init__(config, in_sizes, out_sizes, centred=centred)
        for name in ("threshold", "lowest"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row, by the threshold."""
        return Codes(*encode_above(self.centre(x), self.encoder, self.b_enc, self._level(1.0)))

    def select(self, centred: Float[Tensor, "row d_in"], step: Step) -> Codes:
        """The batch's largest positive pre-activations, ``k`` times its rows; differentiable."""
        count = self.config.k_at(step) * len(centred)
        with torch.no_grad():
            found = self._candidates(centred, count, step)
            flat = found.values.flatten()
            kept = flat.topk(count, sorted=False).indices if count < len(flat) else slice(None)
            mask = torch.zeros_like(flat)
            mask[kept] = flat[kept]
            slots = sparse(mask.view_as(found.values))
            indices = found.indices.gather(1, slots.indices)
            used = slots.values != 0
        values = selected_pre_activations(centred, self.encoder, self.b_enc, indices)
        return Codes(torch.where(used, values, 0), indices)

    def loss(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> StepLoss:
        """Squared error over total variance, plus AuxK."""
        centred = self.centre(x)
        codes = self.select(centred, step)
        self.watch(codes, step)
        made = self.decode(codes, x)
        error = y - made
        squared = error.pow(2).sum(-1).mean() / step.variance
        auxiliary = auxk_loss(self, centred, error, step, self.config.aux, self.config.aux_k)
        l0, fired = codes.l0().float().mean(), codes.fired(self.d_sae)
        return StepLoss(squared + auxiliary, squared.detach(), l0, fired, made=made, penalty=auxiliary)

    @torch.no_grad()
    def watch(self, codes: Codes, step: Step) -> None:
        """Take note of the smallest value kept; nothing changes when none is."""
        rate = min(1.0, max(_RATE, _MEMORIES / step.steps))
        values = codes.values.detach().double()
        smallest = values.masked_fill(values <= 0, torch.inf).amin()
        seen = smallest.isfinite()
        mean = torch.where(self.threshold > 0, self.threshold + rate * (smallest - self.threshold), smallest)
        self.threshold.copy_(torch.where(seen, mean, self.threshold))
        self.lowest.copy_(torch.where(seen, smallest, self.lowest))

    @torch.no_grad()
    def scale_codes(self, factor: float) -> None:
        """Multiply all codes by a positive factor and leave the output as it is, exactly."""
        super().scale_codes(factor)
        self.threshold.mul_(factor)
        self.lowest.mul_(factor)

    def finish(self) -> Sae:
        """The JumpReLU dictionary that gives this one's codes by the threshold."""
        return with_threshold(self, float(self.threshold), self.arch)

    def _level(self, share: float, lowest: bool = False) -> Float[Tensor, "d_sae"]:
        level = self.lowest if lowest else self.threshold
        return torch.zeros_like(self.b_enc) + (share * level).to(self.b_enc.dtype)

    def _candidates(self, centred: Float[Tensor, "row d_in"], count: int, step: Step) -> Codes:
        """Positive pre-activations, among them the ``count`` largest (or all, if they are fewer).

        What is above a guess will do when it is enough; otherwise all are looked at.
        """
        if float(self.lowest) > 0 and step.density < SPARSE_BELOW:
            above = self._level(_MARGIN, lowest=True)
            found = Codes(*encode_above(centred, self.encoder, self.b_enc, above))
            if int((found.values != 0).sum()) >= count:
                return found
        pre = torch.addmm(self.b_enc, centred, self.encoder.T).relu()
        return Codes(pre, torch.arange(self.d_sae, device=pre.device).expand_as(pre))
