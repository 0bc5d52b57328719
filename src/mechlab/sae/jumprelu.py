"""The JumpReLU sparse autoencoder.

Source: Rajamanoharan et al. (2024), *Jumping ahead* (arXiv 2407.14435), sections 3 and 4:

    f = pre * 1[pre > threshold],  pre = (x - b_dec) W_enc + b_enc,   x_hat = f W_dec + b_dec

with straight-through gradients for the threshold t, by a rectangle of width e around it:

    d f / d t = -(t / e) 1[|pre - t| < e/2],    d 1[pre > t] / d t = -(1 / e) 1[|pre - t| < e/2]

The sparsity penalty is one of

* ``step``: L0, as in the paper;
* ``quadratic``: (L0 - target)^2 / target with L0 the batch's mean (Gemma Scope 2; times target
  against (L0/target - 1)^2, so that its slope per latent is that of ``step`` at L0 = 1.5 target);
* ``tanh``: sum_i tanh(4 f_i |W_dec,i|), where the straight-through gradient reaches pre-activations
  too (Anthropic, *Circuits updates*, January 2025).

Dead latents get the same update's pre-activation loss, sum_i relu(t_i - pre_i) |W_dec,i|.

The threshold is trained itself, in float32, not its logarithm: Adam moves a logarithm by a
factor near 1 each step, which takes thousands of steps to get anywhere.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.candidates import SPARSE_BELOW, candidates, penalty_weights
from mechlab.sae.codes import Codes
from mechlab.sae.config import PenaltyConfig, TrainConfig
from mechlab_kernels.encode import encode_above

_TANH_SCALE = 4.0
# Rows from which the share of latents above the bar is judged.
_LOOKED_AT = 32


class JumpReLUConfig(PenaltyConfig):
    """Settings of a JumpReLU dictionary."""

    arch = "jumprelu"

    penalty: Literal["step", "quadratic", "tanh"] = "step"
    """Sparsity penalty: L0; squared distance to target_l0; or tanh of the activations."""
    sparsity: float = 1.0
    """Weight of the sparsity penalty beside the squared error, activations having norm sqrt(d)."""
    threshold: float = 1.0
    """Threshold at the start, in the same units. A threshold moves by no more than the learning rate a
    step, so a short training needs one that is nearly right: this one is, for a few dozen latents."""
    bandwidth: float = 1.0
    """Width of the straight-through rectangle around the threshold, in the same units. The paper's
    0.001 is for a hundred times as many steps: the fewer, the more latents must be inside."""
    pre_act: float = 1e-3
    """Weight of the loss that lifts dead latents' pre-activations to their threshold; 0 turns it off."""

    @model_validator(mode="after")
    def _jump_in_range(self) -> JumpReLUConfig:
        self._require("threshold", self.threshold >= 0, "zero or more")
        self._require("bandwidth", self.bandwidth > 0, "a positive width")
        self._require("pre_act", self.pre_act >= 0, "zero or more")
        if self.penalty == "quadratic" and self.target_l0 is None:
            raise MechlabError("the quadratic penalty needs a target", None, "set target_l0")
        return self

    @property
    def controlled_l0(self) -> float | None:
        """The quadratic penalty keeps to its target by itself."""
        return None if self.penalty == "quadratic" else self.target_l0


class JumpReLU(Sae):
    """A latent is active when its pre-activation is above its own threshold.

    Attributes:
        threshold: ``[d_sae]``, in units of the pre-activations; below zero it counts as zero.
        trained_as: architecture that it was trained as (BatchTopK and Matryoshka end as JumpReLU).
    """

    arch = "jumprelu"
    Config = JumpReLUConfig

    config: JumpReLUConfig

    def __init__(
        self,
        config: JumpReLUConfig,
        in_sizes: int | tuple[int, ...],
        out_sizes: int | tuple[int, ...] | None = None,
        *,
        centred: bool | None = None,
    ) -> None:
        super().__init__(config, in_sizes, out_sizes, centred=centred)
        self.threshold = nn.Parameter(torch.full((self.d_sae,), config.threshold))
        self.trained_as = self.arch

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row."""
        threshold = self.threshold.clamp_min(0)
        return Codes(*encode_above(self.centre(x), self.encoder, self.b_enc, threshold))

    def loss(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> StepLoss:
        """Squared error, sparsity penalty and the dead latents' loss over total variance."""
        with torch.no_grad():
            # A clamp in the graph would cut off the gradient of thresholds that reach zero.
            self.threshold.clamp_(min=0)
        centred = self.centre(x)
        found = candidates(self, centred, self.b_enc, self._bar(centred))
        f, active = self._jump(found.pre, found.of(self.threshold))
        made = self.add_bias(found.decode(f, self.W_dec), x)
        squared = (y - made).pow(2).sum(-1).mean() / step.variance
        weights = penalty_weights(self)
        l0 = active.sum(-1).mean()
        if self.config.penalty == "tanh":
            weighted = f if weights is None else f * found.of(weights)
            penalty = torch.tanh(_TANH_SCALE * weighted).sum(-1).mean()
        elif self.config.penalty == "quadratic":
            assert self.config.target_l0 is not None
            penalty = (l0 - self.config.target_l0) ** 2 / self.config.target_l0
        else:
            penalty = l0
        penalty = self.config.sparsity * step.sparsity * penalty
        penalty = (penalty + self._lift(centred.detach(), step.dead, weights)) / step.variance
        mean_l0, fired = found.active(f)
        return StepLoss(squared + penalty, squared.detach(), mean_l0, fired, made=made, penalty=penalty)

    @torch.no_grad()
    def scale_codes(self, factor: float) -> None:
        """Multiply all codes by a positive factor and leave the output as it is, exactly."""
        super().scale_codes(factor)
        self.threshold.mul_(factor)

    @torch.no_grad()
    def reset(self, latents: Int[Tensor, "latent"]) -> None:
        """Set what a latent has besides its directions to where a resampled latent starts."""
        super().reset(latents)
        # A fifth, like the encoder that resampling gives.
        self.threshold[latents] = 0.2 * self.config.threshold

    def finish(self) -> Sae:
        """This dictionary, with no threshold below zero."""
        self.threshold.data.clamp_(min=0)
        return self

    def _bar(self, centred: Float[Tensor, "row d_in"]) -> Float[Tensor, "d_sae"] | None:
        """What a pre-activation must exceed to matter at all; None when too many do."""
        with torch.no_grad():
            bar = self.threshold - self.config.bandwidth / 2
            pre = torch.addmm(self.b_enc, centred[:_LOOKED_AT], self.encoder.T)
            return bar if float((pre > bar).float().mean()) < SPARSE_BELOW else None

    def _jump(
        self, pre: Float[Tensor, "row slot"], threshold: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, "row slot"], Float[Tensor, "row slot"]]:
        """Activations and which are not zero (1 or 0), both with straight-through gradients."""
        gap = (pre if self.config.penalty == "tanh" else pre.detach()) - threshold
        distance = gap.detach()
        band = (distance.abs() < self.config.bandwidth / 2).to(pre.dtype) / self.config.bandwidth
        # Zero, with the rectangle as its gradient.
        through = band * (gap - distance)
        active = (distance > 0).to(pre.dtype)
        return pre * active + threshold.detach() * through, active + through

    def _lift(
        self,
        centred: Float[Tensor, "row d_in"],
        dead: Int[Tensor, "dead"],
        weights: Float[Tensor, "d_sae"] | None,
    ) -> Float[Tensor, ""]:
        """The pre-activation loss of the dead latents, times its weight."""
        if self.config.pre_act == 0 or len(dead) == 0:
            return centred.new_zeros(())
        pre = torch.addmm(self.b_enc[dead], centred, self.encoder[dead].T)
        below = (self.threshold[dead] - pre).relu()
        below = below if weights is None else below * weights[dead]
        return self.config.pre_act * below.sum(-1).mean()


def with_threshold(sae: Sae, threshold: float, trained_as: str) -> JumpReLU:
    """A JumpReLU dictionary with another's weights and one threshold for all latents."""
    sae.untie()
    shared = {name: getattr(sae.config, name) for name in TrainConfig.model_fields}
    made = JumpReLU(
        JumpReLUConfig(**shared | {"tied": False}), sae.in_sizes, sae.out_sizes, centred=sae.centred
    )
    level = torch.full((sae.d_sae,), threshold)
    made.load_state_dict({**{name: p.detach() for name, p in sae.named_parameters()}, "threshold": level})
    made.trained_as = trained_as
    return made
