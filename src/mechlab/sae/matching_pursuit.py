"""The matching-pursuit sparse autoencoder.

Source: Costa et al. (2025), *From flat to hierarchical: extracting sparse representations with
matching pursuit* (arXiv 2506.03093). There is a decoder with unit rows and no encoder. From the
residual r = x - b_dec, again and again, the latent with the largest inner product is taken:

    i = argmax_j r . W_dec,j,   value = relu(r . W_dec,i),   r <- r - value W_dec,i

``max_iterations`` times, or until the residual's norm falls below a threshold or no latent is new (SAELens
stops a row after the step that adds none). Training goes back through the residuals with the
choices held fixed.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import embedding

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.codes import Codes
from mechlab.sae.config import TrainConfig
from mechlab_kernels.encode import encode_topk


class MatchingPursuitConfig(TrainConfig):
    """Settings of a matching-pursuit dictionary."""

    arch = "matching_pursuit"

    max_iterations: int | None = 16
    """Most latents taken per token; None stands for the width of the input."""
    residual_threshold: float = 1e-2
    """Stop where the residual's norm is below, activations having norm sqrt(d); 0 never does."""
    stop_on_duplicate_support: bool = True
    """Stop a row when a step takes a latent that it has already."""

    @model_validator(mode="after")
    def _pursuit_in_range(self) -> MatchingPursuitConfig:
        most = self.max_iterations
        self._require("max_iterations", most is None or most >= 1, "at least 1")
        self._require("residual_threshold", self.residual_threshold >= 0, "zero or more")
        return self


class MatchingPursuit(Sae):
    """Latents are taken one after the other, each for what the others have left.

    W_enc and b_enc are None. Raises MechlabError for transcoders, crosscoders and free decoders.
    """

    arch = "matching_pursuit"
    Config = MatchingPursuitConfig

    config: MatchingPursuitConfig

    def __init__(
        self,
        config: MatchingPursuitConfig,
        in_sizes: int | tuple[int, ...],
        out_sizes: int | tuple[int, ...] | None = None,
        *,
        centred: bool | None = None,
    ) -> None:
        sites = 1 if isinstance(in_sizes, int) else len(in_sizes)
        if out_sizes is not None or config.target or sites > 1:
            value = f"{config.site} → {config.target}" if config.target else config.site
            raise MechlabError("matching pursuit reconstructs one site", value, "use another architecture")
        if config.decoder != "unit":
            raise MechlabError("matching pursuit needs unit decoder rows", config.decoder, "decoder=unit")
        super().__init__(config, in_sizes, centred=centred)
        self.W_enc = None
        self.register_parameter("b_enc", None)

    def pre_activations(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        """Inner products of the first step; dense."""
        return self.centre(x) @ self.W_dec.T

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row."""
        return _merged(*self._pursue(self.centre(x)))

    def differentiable(self, x: Float[Tensor, "row d_in"], codes: Codes) -> Codes:
        """The same codes, with gradient to ``x`` (and the weights), the choices held fixed."""
        centred = self.centre(x)
        values, taken = self._pursue(centred)
        return _merged(self._replay(centred, values, taken)[0], taken)

    def loss(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> StepLoss:
        """Squared norm of the last residual over total variance."""
        centred = self.centre(x)
        values, taken = self._pursue(centred)
        residual = self._replay(centred, values, taken)[1]
        squared = residual.pow(2).sum(-1).mean() / step.variance
        codes = _merged(values, taken)
        l0, fired = codes.l0().float().mean(), codes.fired(self.d_sae)
        penalty = torch.zeros_like(squared)
        return StepLoss(squared, squared.detach(), l0, fired, made=x - residual, penalty=penalty)

    @torch.no_grad()
    def change_units(self, x_scale: Float[Tensor, "d_in"], y_scale: Float[Tensor, "d_out"]) -> None:
        """As for all; decoder rows stay as they are, since pursuit is linear in the input's scale."""
        scale = float(x_scale[0])
        if not (scale > 0 and bool((x_scale == scale).all()) and bool((y_scale == scale).all())):
            raise MechlabError("matching pursuit knows one scale", scale, "scale all dimensions alike")
        self.b_dec.div_(scale)
        threshold = self.config.residual_threshold / scale
        self.config = self.config.model_copy(update={"residual_threshold": threshold})

    def scale_codes(self, factor: float) -> None:
        """MechlabError: other decoder norms would change which latents are taken."""
        raise MechlabError("matching pursuit's codes have one scale", factor, "scale the activations")

    def untie(self) -> None:
        """There is no encoder to untie."""

    @torch.no_grad()
    def _pursue(
        self, residual: Float[Tensor, "row d_in"]
    ) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
        """Values and latents in the order taken; value 0 where nothing was, or a row had stopped."""
        most = self.d_in if self.config.max_iterations is None else self.config.max_iterations
        values = residual.new_zeros(len(residual), most)
        taken = torch.zeros_like(values, dtype=torch.long)
        done = torch.zeros(len(residual), dtype=torch.bool, device=residual.device)
        none = self.W_dec.new_zeros(self.d_sae)
        for slot in range(most):
            value, latent = encode_topk(residual, self.W_dec, none, 1)
            value = value.relu().masked_fill(done[:, None], 0)
            known = ((taken[:, :slot] == latent) & (values[:, :slot] != 0)).any(1)
            values[:, slot : slot + 1], taken[:, slot : slot + 1] = value, latent
            residual = residual - value * self.W_dec[latent[:, 0]]
            if self.config.stop_on_duplicate_support:
                done |= known | (value[:, 0] == 0)
            if self.config.residual_threshold > 0:
                done |= residual.norm(dim=-1) < self.config.residual_threshold
            if bool(done.all()):
                break
        return values[:, : slot + 1], taken[:, : slot + 1]

    def _replay(
        self,
        residual: Float[Tensor, "row d_in"],
        values: Float[Tensor, "row k"],
        taken: Int[Tensor, "row k"],
    ) -> tuple[Float[Tensor, "row k"], Float[Tensor, "row d_in"]]:
        """The values again, with gradient, and what is left of ``residual``."""
        # All rows of the decoder at once: their gradients are then summed once.
        rows = embedding(taken, self.W_dec)
        again = []
        for slot in range(taken.shape[1]):
            value = (residual * rows[:, slot]).sum(-1).relu() * (values[:, slot] != 0)
            residual = residual - value[:, None] * rows[:, slot]
            again.append(value)
        return torch.stack(again, 1), residual


def _merged(values: Float[Tensor, "row k"], taken: Int[Tensor, "row k"]) -> Codes:
    """Codes with one slot for a latent that was taken several times."""
    same = taken[:, :, None] == taken[:, None, :]
    first = same.to(torch.uint8).argmax(-1) == torch.arange(taken.shape[1], device=taken.device)
    total = (same * values[:, None, :]).sum(-1)
    return Codes(torch.where(first, total, 0), taken)
