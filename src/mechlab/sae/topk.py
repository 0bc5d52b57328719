"""The TopK sparse autoencoder.

Source: Gao et al. (2024), *Scaling and evaluating sparse autoencoders* (arXiv 2406.04093):

    codes = TopK((x - b_dec) W_enc + b_enc),   x_hat = codes W_dec + b_dec

with a ReLU on the selected values, as released dictionaries of this kind have it, and the AuxK
loss for dead latents.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.codes import Codes
from mechlab.sae.config import TrainConfig
from mechlab.sae.dead import auxk_loss
from mechlab_kernels.autograd import topk_pre_activations
from mechlab_kernels.encode import encode_topk


class TopKConfig(TrainConfig):
    """Settings of a TopK dictionary."""

    arch = "topk"

    k: int = 16
    """Active latents per token."""
    k_start: int | None = None
    """Active latents at the start; falls to k over the sparsity warm-up."""
    aux: float = 1 / 32
    """Weight of the AuxK loss, which trains dead latents on what the others leave; 0 turns it off."""
    aux_k: int | None = None
    """Dead latents per token in the AuxK loss; half the width of the target by default."""
    search: Literal["auto", "float32", "bfloat16"] = "auto"
    """How the top k are found while training: by float32 products, or among candidates that bfloat16
    products leave, each scored again in float32 (the same codes); auto: what the processor has units for."""

    @model_validator(mode="after")
    def _k_in_range(self) -> TopKConfig:
        self._require("k", 1 <= self.k <= self.d_sae, f"between 1 and d_sae = {self.d_sae}")
        if self.k_start is not None:
            self._require("k_start", self.k <= self.k_start <= self.d_sae, "between k and d_sae")
        self._require("aux", self.aux >= 0, "zero or more")
        self._require("aux_k", self.aux_k is None or self.aux_k >= 1, "at least 1")
        return self

    def k_at(self, step: Step) -> int:
        """Active latents at a step."""
        warm = self.sparsity_warmup * step.steps
        if self.k_start is None or step.number >= warm:
            return self.k
        return round(self.k_start + (self.k - self.k_start) * step.number / warm)


class TopK(Sae):
    """``k`` latents per token: those with the largest pre-activations; negative ones count as zero."""

    arch = "topk"
    Config = TopKConfig
    # AbsTopK selects by absolute value and keeps the sign.
    signed = False

    config: TopKConfig

    @property
    def k(self) -> int:
        """Active latents per token."""
        return self.config.k

    def rectify(self, selected: Float[Tensor, "row k"]) -> Float[Tensor, "row k"]:
        """Values of selected pre-activations."""
        return selected if self.signed else selected.relu()

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row; at most ``k`` are non-zero."""
        values, indices = encode_topk(self.centre(x), self.encoder, self.b_enc, self.k, absolute=self.signed)
        return Codes(self.rectify(values), indices)

    def loss(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> StepLoss:
        """Squared error over total variance, plus AuxK."""
        centred = self.centre(x)
        k = self.config.k_at(step)
        values, indices = topk_pre_activations(
            centred, self.encoder, self.b_enc, k, self.signed, self.config.search
        )
        codes = Codes(self.rectify(values), indices)
        made = self.decode(codes, x)
        error = y - made
        squared = error.pow(2).sum(-1).mean() / step.variance
        auxiliary = auxk_loss(self, centred, error, step, self.config.aux, self.config.aux_k, self.signed)
        l0 = codes.l0().float().mean()
        fired = codes.fired(self.d_sae)
        return StepLoss(squared + auxiliary, squared.detach(), l0, fired, made=made, penalty=auxiliary)
