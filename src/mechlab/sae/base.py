"""What all dictionaries share: weights, decoding, initialisation, exact change of units.

An architecture is a subclass with a config class of its own, ``encode`` for use and ``loss`` for
training. In formulas: rows x of the input sites (side by side when there are several), targets y,

    x_hat = codes W_dec + b_dec (+ x W_skip^T)

where codes come from x - b_dec for dictionaries that reconstruct their input, and from x for
transcoders (whose output lives elsewhere).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechlab.errors import MechlabError
from mechlab.sae.codes import Codes
from mechlab.sae.config import TrainConfig
from mechlab_kernels.autograd import selected_pre_activations, sparse_decode


@dataclass(frozen=True)
class Step:
    """What a loss may know of the training around it.

    Attributes:
        number, steps: this step, and how many there will be.
        variance: total variance of the targets, which losses are divided by.
        sparsity: current factor on the sparsity penalty: warm-up times controller.
        dead: latents that have not fired for long ``[dead]``.
        density: share of latents active per row, as last looked at (1 at first).
    """

    number: int
    steps: int
    variance: float
    sparsity: float
    dead: Int[Tensor, "dead"]
    density: float = 1.0

    @property
    def progress(self) -> float:
        """0 at the first step, 1 at the last."""
        return self.number / max(1, self.steps - 1)


@dataclass(frozen=True)
class StepLoss:
    """A training step's loss and what the step saw.

    Attributes:
        total: what is minimised.
        error: squared error over total variance (1 - FVE); for reports, without gradient.
        l0: mean number of active latents per row, without gradient.
        fired: which latents were active ``[d_sae]``.
        figures: further figures for the log.
        made, penalty: what end-to-end training builds its own loss from: the reconstruction
            ``[row, d_out]`` and what ``total`` adds to its squared error, both with gradient; None
            in an architecture that cannot be trained end to end.
    """

    total: Float[Tensor, ""]
    error: Float[Tensor, ""]
    l0: Float[Tensor, ""]
    fired: Bool[Tensor, "d_sae"]
    figures: dict[str, Tensor] = field(default_factory=dict)
    made: Float[Tensor, "row d_out"] | None = None
    penalty: Float[Tensor, ""] | None = None


class Sae(nn.Module):
    """A dictionary of ``d_sae`` latents.

    Args:
        config: the architecture's settings; those of training matter to ``loss`` alone.
        in_sizes: width of the input, or of each site that makes it up, side by side.
        out_sizes: the same of the output, for transcoders; None reconstructs the input.
        centred: whether b_dec is subtracted from the input; by default, unless for transcoders.

    Attributes:
        W_enc: encoder ``[d_in, d_sae]``, stored latent by latent; None while tied to the decoder.
        b_enc: ``[d_sae]``; W_dec: decoder ``[d_sae, d_out]``; b_dec: ``[d_out]``.
        W_skip: ``[d_out, d_in]``, or None.
        d_in, d_out: widths; in_sizes, out_sizes: their parts.
    """

    arch: ClassVar[str] = ""
    Config: ClassVar[type[TrainConfig]] = TrainConfig

    def __init__(
        self,
        config: TrainConfig,
        in_sizes: int | tuple[int, ...],
        out_sizes: int | tuple[int, ...] | None = None,
        *,
        centred: bool | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.in_sizes = (in_sizes,) if isinstance(in_sizes, int) else in_sizes
        self.centred = out_sizes is None if centred is None else centred
        out_sizes = self.in_sizes if out_sizes is None else out_sizes
        self.out_sizes = (out_sizes,) if isinstance(out_sizes, int) else out_sizes
        self.d_in, self.d_out, self.d_sae = sum(self.in_sizes), sum(self.out_sizes), config.d_sae
        self._make_weights()

    def _make_weights(self) -> None:
        config = self.config
        # Stored latent by latent: what touches few latents then touches few places.
        self.W_enc = None if config.tied else nn.Parameter(torch.zeros(self.d_sae, self.d_in).T)
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(self.d_sae, self.d_out))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d_in)) if config.skip else None

    @property
    def unit(self) -> bool:
        """Whether training keeps decoder rows at unit norm."""
        return self.config.decoder == "unit"

    @property
    def encoder(self) -> Float[Tensor, "d_sae d_in"]:
        """The encoder, latent by latent."""
        return self.W_dec if self.W_enc is None else self.W_enc.T

    def centre(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
        """The encoder's input."""
        return x - self.b_dec if self.centred else x

    def pre_activations(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        """Encoder output before anything is selected; dense."""
        return torch.addmm(self.b_enc, self.centre(x), self.encoder.T)

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Sparse codes of each row."""
        raise NotImplementedError

    def decode(self, codes: Codes, x: Float[Tensor, "row d_in"] | None = None) -> Float[Tensor, "row d_out"]:
        """Output from codes; ``x`` (the input) is needed where there is a skip connection."""
        return self.add_bias(sparse_decode(codes.values, codes.indices, self.W_dec), x)

    def add_bias(
        self, made: Float[Tensor, "row d_out"], x: Float[Tensor, "row d_in"] | None
    ) -> Float[Tensor, "row d_out"]:
        """Add b_dec, and the skip connection where there is one."""
        if self.W_skip is None:
            return made + self.b_dec
        if x is None:
            raise MechlabError("skip connection needs the input", None, "decode(codes, x)")
        return made + self.b_dec + x @ self.W_skip.T

    def differentiable(self, x: Float[Tensor, "row d_in"], codes: Codes) -> Codes:
        """The codes of ``x`` once more, with gradient to ``x``: that of the active pre-activations.

        Right wherever an active code is its pre-activation; other architectures have their own.
        """
        centred = self.centre(x)
        pre = selected_pre_activations(centred, self.encoder, self.b_enc, codes.indices)
        return Codes(torch.where(codes.values != 0, pre, 0), codes.indices)

    def forward(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_out"]:
        """Output for ``x``."""
        return self.decode(self.encode(x), x)

    def loss(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> StepLoss:
        """Training loss of a batch, differentiable."""
        raise NotImplementedError

    def latent_norms(self) -> Float[Tensor, "d_sae"]:
        """Decoder norm of each latent; with several sites the sum of its norms at them (crosscoders)."""
        parts = torch.split(self.W_dec, list(self.out_sizes), dim=1)
        return torch.stack([part.norm(dim=1) for part in parts]).sum(0)

    @torch.no_grad()
    def initialise(self, b_dec: Float[Tensor, "d_out"], generator: torch.Generator) -> None:
        """Random decoder rows of norm 1, the encoder as their transpose.

        Free rows too: started at 0.1, as some have it, a penalty makes them vanish early on.
        """
        rows = torch.randn(self.d_sae, self.d_out, generator=generator)
        rows = rows / rows.norm(dim=-1, keepdim=True)
        self.W_dec.copy_(rows)
        if self.W_enc is not None and self.d_in == self.d_out:
            self.W_enc.copy_(rows.T)
        elif self.W_enc is not None:
            rows = torch.randn(self.d_sae, self.d_in, generator=generator)
            self.W_enc.copy_((rows / rows.norm(dim=-1, keepdim=True)).T)
        self.b_dec.copy_(b_dec)

    @torch.no_grad()
    def reset(self, latents: Int[Tensor, "latent"]) -> None:
        """Set what latents have besides their directions to where training starts (resampling)."""
        self.b_enc[latents] = 0

    @torch.no_grad()
    def change_units(self, x_scale: Float[Tensor, "d_in"], y_scale: Float[Tensor, "d_out"]) -> None:
        """Make a dictionary trained on ``x * x_scale`` → ``y * y_scale`` apply to x → y, exactly.

        Codes come out divided by the mean of ``y_scale``, so that with one site a decoder row
        keeps its norm. Raises MechlabError when a scale is not positive and finite.
        """
        for scale in (x_scale, y_scale):
            if not bool((scale > 0).all() and scale.isfinite().all()):
                raise MechlabError(
                    "activation scale must be positive and finite",
                    float(scale.min()),
                    "check the activations",
                )
        self.untie()
        self._rescale(x_scale, y_scale)
        self.scale_codes(1 / float(y_scale.double().mean()))

    def _rescale(self, x_scale: Float[Tensor, "d_in"], y_scale: Float[Tensor, "d_out"]) -> None:
        assert self.W_enc is not None
        self.W_enc.mul_(x_scale[:, None])
        self.W_dec.div_(y_scale)
        self.b_dec.div_(y_scale)
        if self.W_skip is not None:
            self.W_skip.mul_(x_scale).div_(y_scale[:, None])

    @torch.no_grad()
    def scale_codes(self, factor: float) -> None:
        """Multiply all codes by a positive factor and leave the output as it is, exactly."""
        assert self.W_enc is not None
        self.W_enc.mul_(factor)
        self.b_enc.mul_(factor)
        self.W_dec.div_(factor)

    @torch.no_grad()
    def untie(self) -> None:
        """Give a tied encoder weights of its own, equal to the decoder's."""
        if self.W_enc is None:
            self.W_enc = nn.Parameter(self.W_dec.detach().clone().T)

    def finish(self) -> Sae:
        """The dictionary to be used after training; this one, unless training needed another form."""
        return self
