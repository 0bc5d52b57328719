"""The gated sparse autoencoder.

Source: Rajamanoharan et al. (2024), *Improving dictionary learning with gated sparse
autoencoders* (arXiv 2404.16014), sections 3.1 to 3.3 and appendix with pseudo-code:

    z    = (x - b_dec) W_enc
    gate = z + b_gate,   f = 1[gate > 0] * relu(z * exp(r_mag) + b_mag),   x_hat = f W_dec + b_dec
    loss = |x - x_hat|^2 + sparsity * sum_i relu(gate_i) + |x - (relu(gate) W_dec + b_dec)|^2

The last term's decoder (W_dec, b_dec, skip connection) is a frozen copy. Free decoders weigh the
penalty by their rows' norms (Anthropic, April 2024).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.candidates import SPARSE_BELOW, candidates, penalty_weights
from mechlab.sae.codes import Codes
from mechlab.sae.config import PenaltyConfig
from mechlab_kernels.autograd import selected_pre_activations
from mechlab_kernels.encode import encode_above


class GatedConfig(PenaltyConfig):
    """Settings of a gated dictionary."""

    arch = "gated"


class Gated(Sae):
    """A gate says which latents are active, a magnitude how strongly.

    Attributes:
        b_gate, b_mag: biases of the two paths ``[d_sae]``.
        r_mag: logarithm of the magnitude's scale against the gate's ``[d_sae]``.
        b_enc: None; the two paths have biases of their own.
    """

    arch = "gated"
    Config = GatedConfig

    config: GatedConfig

    def __init__(
        self,
        config: GatedConfig,
        in_sizes: int | tuple[int, ...],
        out_sizes: int | tuple[int, ...] | None = None,
        *,
        centred: bool | None = None,
    ) -> None:
        super().__init__(config, in_sizes, out_sizes, centred=centred)
        self.register_parameter("b_enc", None)
        self.b_gate = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))

    def pre_activations(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        """Pre-activations of the gate; dense."""
        return torch.addmm(self.b_gate, self.centre(x), self.encoder.T)

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row."""
        gate, indices = encode_above(self.centre(x), self.encoder, self.b_gate, torch.zeros_like(self.b_gate))
        magnitude = (gate - self.b_gate[indices]) * self.r_mag.exp()[indices] + self.b_mag[indices]
        return Codes(torch.where(gate > 0, magnitude.relu(), 0), indices)

    def loss(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> StepLoss:
        """Squared error, penalty on the gate and the gate's own squared error, over total variance."""
        bar = torch.zeros_like(self.b_gate) if step.density < SPARSE_BELOW else None
        found = candidates(self, self.centre(x), self.b_gate, bar)
        gate = found.pre
        magnitude = (gate - found.of(self.b_gate)) * found.of(self.r_mag.exp()) + found.of(self.b_mag)
        f = torch.where(gate > 0, magnitude.relu(), 0)
        made = self.add_bias(found.decode(f, self.W_dec), x)
        squared = (y - made).pow(2).sum(-1).mean() / step.variance
        opened = gate.relu()
        weights = penalty_weights(self)
        penalty = (opened if weights is None else opened * found.of(weights)).sum(-1).mean()
        with torch.no_grad():
            rest = y - self.add_bias(torch.zeros_like(y), x)
        by_gate = (rest - found.decode(opened, self.W_dec.detach())).pow(2).sum(-1).mean()
        penalty = (self.config.sparsity * step.sparsity * penalty + by_gate) / step.variance
        l0, fired = found.active(f)
        return StepLoss(squared + penalty, squared.detach(), l0, fired, made=made, penalty=penalty)

    def differentiable(self, x: Float[Tensor, "row d_in"], codes: Codes) -> Codes:
        """The same codes, with gradient to ``x`` (and the weights) by the magnitude."""
        at = codes.indices
        gate = selected_pre_activations(self.centre(x), self.encoder, self.b_gate, at)
        magnitude = (gate - self.b_gate[at]) * self.r_mag.exp()[at] + self.b_mag[at]
        return Codes(torch.where(codes.values != 0, magnitude, 0), at)

    @torch.no_grad()
    def scale_codes(self, factor: float) -> None:
        """Multiply all codes by a positive factor and leave the output as it is, exactly."""
        assert self.W_enc is not None
        self.W_enc.mul_(factor)
        self.b_gate.mul_(factor)
        self.b_mag.mul_(factor)
        self.W_dec.div_(factor)

    @torch.no_grad()
    def reset(self, latents: Int[Tensor, "latent"]) -> None:
        """Set what a latent has besides its directions to where training starts."""
        for parameter in (self.b_gate, self.b_mag, self.r_mag):
            parameter[latents] = 0
