"""The ReLU sparse autoencoder with an L1 or Lp penalty.

Sources: Bricken et al. (2023), *Towards Monosemanticity*; Anthropic, *Update on how we train
SAEs* (April 2024) for free decoders, whose norms weigh the penalty; Karvonen et al. (2024,
arXiv 2408.00113), section on p-annealing:

    f = relu((x - b_dec) W_enc + b_enc),   x_hat = f W_dec + b_dec
    loss = |x - x_hat|^2 + sparsity * sum_i (|W_dec,i| f_i)^p

The slope of f^p at 0 is infinite for p < 1, so (f + e)^p - e^p stands for it, with e = 1e-3 where
inputs have norm sqrt(d). When p is annealed, the weight of the penalty is changed with it so that
the penalty stays what it was: times sum f^p / sum f^p' at every change of p to p'. (The paper
averages the two sums over its last batches; here p changes a little at each step, and one batch
does.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.candidates import SPARSE_BELOW, candidates, penalty_weights
from mechlab.sae.codes import Codes
from mechlab.sae.config import PenaltyConfig
from mechlab_kernels.encode import encode_above

_SMALL = 1e-3


class ReluConfig(PenaltyConfig):
    """Settings of a ReLU dictionary."""

    arch = "relu"

    p: float = 1.0
    """Power of the activations in the penalty."""
    p_end: float | None = None
    """Power at the end: p falls to it, from the end of the sparsity warm-up on; None keeps it."""

    @model_validator(mode="after")
    def _powers(self) -> ReluConfig:
        self._require("p", 0 < self.p <= 1, "above 0, at most 1")
        self._require("p_end", self.p_end is None or 0 < self.p_end <= self.p, "above 0, at most p")
        return self

    def p_at(self, number: int, steps: int) -> float:
        """Power at a step."""
        if self.p_end is None:
            return self.p
        warm = self.sparsity_warmup * steps
        share = (number - warm) / max(1.0, steps - 1 - warm)
        return self.p + (self.p_end - self.p) * min(1.0, max(0.0, share))


class Relu(Sae):
    """Every latent with a positive pre-activation is active."""

    arch = "relu"
    Config = ReluConfig

    config: ReluConfig
    annealed: Tensor
    """What the annealing of p multiplies the penalty by, so far; there in training only."""

    def __init__(
        self,
        config: ReluConfig,
        in_sizes: int | tuple[int, ...],
        out_sizes: int | tuple[int, ...] | None = None,
        *,
        centred: bool | None = None,
    ) -> None:
        super().__init__(config, in_sizes, out_sizes, centred=centred)
        if config.p_end is not None:
            self.register_buffer("annealed", torch.ones((), dtype=torch.float64))

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row."""
        return Codes(*encode_above(self.centre(x), self.encoder, self.b_enc, torch.zeros_like(self.b_enc)))

    def loss(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> StepLoss:
        """Squared error and penalty over total variance."""
        bar = torch.zeros_like(self.b_enc) if step.density < SPARSE_BELOW else None
        found = candidates(self, self.centre(x), self.b_enc, bar)
        f = found.pre.relu()
        made = self.add_bias(found.decode(f, self.W_dec), x)
        squared = (y - made).pow(2).sum(-1).mean() / step.variance
        weights = penalty_weights(self)
        penalty = self._penalty(f if weights is None else f * found.of(weights), step)
        penalty = self.config.sparsity * step.sparsity * penalty / step.variance
        l0, fired = found.active(f)
        return StepLoss(squared + penalty, squared.detach(), l0, fired, made=made, penalty=penalty)

    def finish(self) -> Sae:
        """This dictionary, without what only training needs."""
        self._buffers.pop("annealed", None)
        return self

    def _penalty(self, f: Float[Tensor, "row slot"], step: Step) -> Float[Tensor, ""]:
        p = self.config.p_at(step.number, step.steps)
        penalty = _power(f, p)
        if self.config.p_end is None:
            return penalty
        scaled = penalty * self.annealed.to(penalty.dtype)
        following = self.config.p_at(step.number + 1, step.steps)
        if following != p:
            with torch.no_grad():
                then = _power(f, following)
                self.annealed = torch.where(then > 0, self.annealed * penalty / then, self.annealed)
        return scaled


def _power(f: Float[Tensor, "row slot"], p: float) -> Float[Tensor, ""]:
    """Mean over rows of sum f^p, with a finite slope at 0."""
    raised = f if p == 1 else (f + _SMALL).pow(p) - _SMALL**p
    return raised.sum(-1).mean()
