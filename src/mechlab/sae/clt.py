"""The cross-layer transcoder: latents of a layer write to the outputs of all layers from theirs on.

Source: Ameisen et al. (2025), *Circuit Tracing*, transformer-circuits.pub. With inputs x_1 … x_L
(what each MLP reads) and outputs y_1 … y_L (what each writes), sites in the order of their layers:

    codes_l = TopK(x_l W_read_l^T + b_enc_l),   y_hat_m = sum over l <= m of codes_l W_write_l→m + b_dec_m

Latent f belongs to layer f // (d_sae / L). The paper's activation is JumpReLU with a tanh penalty;
here it is TopK of each layer by itself, as in the TopK transcoders that followed: no layer's codes
depend on another's, so that they can be made while the model runs. There are no weights for the
pairs (layer, earlier output), which would be (L - 1) / 2L of a full decoder.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.codes import Codes, side_by_side
from mechlab.sae.dead import spread
from mechlab.sae.topk import TopKConfig
from mechlab_kernels.autograd import selected_pre_activations, sparse_decode, topk_pre_activations
from mechlab_kernels.encode import encode_topk


class CltConfig(TopKConfig):
    """Settings of a cross-layer transcoder; ``k`` and ``aux_k`` count for each layer."""

    arch = "clt"

    decoder: Literal["unit", "free"] = "free"
    """Decoder rows are free: a latent has one for each layer it writes to."""

    @model_validator(mode="after")
    def _layered(self) -> CltConfig:
        layers = len(self.inputs)
        if not self.site and not self.target:
            return self  # not said yet; the weights are what refuses in the end
        if not self.target or len(self.outputs) != layers:
            raise MechlabError(
                "a cross-layer transcoder needs an output for each input",
                f"{layers} inputs, {len(self.outputs) if self.target else 0} outputs",
                "name the sites of every layer in site and target, first layer first",
            )
        self._require("d_sae", self.d_sae % layers == 0, f"a multiple of the {layers} layers")
        self._require("k", self.k <= self.d_sae // layers, f"at most {self.d_sae // layers} latents a layer")
        for name, wrong in (("tied", self.tied), ("skip", self.skip), ("decoder", self.decoder == "unit")):
            if wrong:
                raise MechlabError(
                    f"a cross-layer transcoder has no such {name}", getattr(self, name), "leave it"
                )
        return self


class Clt(Sae):
    """``k`` latents of each layer per token.

    Attributes:
        W_read: for each layer its latents' encoder ``[latent, d_in of the layer]``.
        W_write: for each layer its latents' decoder ``[latent, d_out of this and all later layers]``.
        W_enc, W_dec: the same as ``[d_in, d_sae]`` and ``[d_sae, d_out]``, zero for pairs that do not
            exist; put together whenever they are looked at.
    """

    arch = "clt"
    Config = CltConfig

    config: CltConfig

    def _make_weights(self) -> None:
        if self.centred or len(self.in_sizes) != len(self.out_sizes):
            raise MechlabError(
                "a cross-layer transcoder needs an output for each input",
                f"{len(self.in_sizes)} inputs, {len(self.out_sizes)} outputs",
                "give sizes of every layer",
            )
        self.layers = len(self.in_sizes)
        self.per_layer = self.d_sae // self.layers
        self._ends = list(accumulate(self.out_sizes))
        self.W_read = nn.ParameterList(torch.zeros(self.per_layer, d) for d in self.in_sizes)
        self.W_write = nn.ParameterList(
            torch.zeros(self.per_layer, self.d_out - self._start(layer)) for layer in range(self.layers)
        )
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.W_skip = None

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:  # type: ignore[override]
        """Encoder with its zeros."""
        whole = torch.zeros(self.d_sae, self.d_in, device=self.b_enc.device, dtype=self.b_enc.dtype)
        column = 0
        for layer, read in enumerate(self.W_read):
            rows = slice(layer * self.per_layer, (layer + 1) * self.per_layer)
            whole[rows, column : column + read.shape[1]] = read
            column += read.shape[1]
        return whole.T

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:  # type: ignore[override]
        """Decoder with its zeros."""
        parts = [nn.functional.pad(w, (self.d_out - w.shape[1], 0)) for w in self.W_write]
        return torch.cat(parts)

    def encode_layer(self, layer: int, x: Float[Tensor, "row d"]) -> Codes:
        """Codes of one layer's latents from its own input; latents are numbered over all layers."""
        values, indices = encode_topk(x, self.W_read[layer], self._bias(layer), self.config.k)
        return Codes(values.relu(), indices + layer * self.per_layer)

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row; at most ``k`` of each layer are non-zero."""
        parts = torch.split(x, list(self.in_sizes), dim=1)
        return side_by_side([self.encode_layer(layer, part) for layer, part in enumerate(parts)])

    def write(self, layer: int, codes: Codes) -> Float[Tensor, "row d_from_layer"]:
        """What one layer's latents add to the outputs of this and all later layers; others count as zero."""
        local, own = self._local(layer, codes)
        return sparse_decode(torch.where(own, codes.values, 0), local, self.W_write[layer])

    def decode(self, codes: Codes, x: Float[Tensor, "row d_in"] | None = None) -> Float[Tensor, "row d_out"]:
        """Outputs of all layers, side by side."""
        return self._summed([codes] * self.layers)

    def differentiable(self, x: Float[Tensor, "row d_in"], codes: Codes) -> Codes:
        """The codes of ``x`` once more, with gradient to ``x``."""
        parts = enumerate(torch.split(x, list(self.in_sizes), dim=1))
        values = [self.layer_differentiable(layer, part, codes).values for layer, part in parts]
        return Codes(torch.stack(values).sum(0), codes.indices)

    def layer_differentiable(self, layer: int, x: Float[Tensor, "row d"], codes: Codes) -> Codes:
        """``differentiable`` for one layer's latents; others come out as zero."""
        local, own = self._local(layer, codes)
        pre = selected_pre_activations(x, self.W_read[layer], self._bias(layer), local)
        return Codes(torch.where(own & (codes.values != 0), pre, 0), codes.indices)

    def loss(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], step: Step) -> StepLoss:
        """Squared error of all outputs over their total variance, plus AuxK."""
        k = min(self.config.k_at(step), self.per_layer)
        parts = []
        for layer, part in enumerate(torch.split(x, list(self.in_sizes), dim=1)):
            values, indices = topk_pre_activations(
                part, self.W_read[layer], self._bias(layer), k, False, self.config.search
            )
            parts.append(Codes(values.relu(), indices + layer * self.per_layer))
        made = self._summed(parts)
        squared = (y - made).pow(2).sum(-1).mean() / step.variance
        auxiliary = self._auxiliary(x, y - made, step)
        codes = side_by_side(parts)
        l0, fired = codes.l0().float().mean(), codes.fired(self.d_sae)
        return StepLoss(squared + auxiliary, squared.detach(), l0, fired, made=made, penalty=auxiliary)

    def latent_norms(self) -> Float[Tensor, "d_sae"]:
        """Sum of each latent's decoder norms at the outputs it writes to."""
        sums = []
        for layer, weights in enumerate(self.W_write):
            parts = torch.split(weights, list(self.out_sizes[layer:]), dim=1)
            sums.append(torch.stack([part.norm(dim=1) for part in parts]).sum(0))
        return torch.cat(sums)

    @torch.no_grad()
    def initialise(self, b_dec: Float[Tensor, "d_out"], generator: torch.Generator) -> None:
        """Random encoder rows of norm 1, random decoder rows of norm 0.1."""
        for read, write in zip(self.W_read, self.W_write, strict=True):
            for weights, norm in ((read, 1.0), (write, 0.1)):
                rows = torch.randn(weights.shape, generator=generator)
                weights.copy_(norm * rows / rows.norm(dim=-1, keepdim=True))
        self.b_dec.copy_(b_dec)

    def untie(self) -> None:
        """Nothing to do."""

    @torch.no_grad()
    def scale_codes(self, factor: float) -> None:
        """Multiply all codes by a positive factor and leave the output as it is, exactly."""
        self.b_enc.mul_(factor)
        for read, write in zip(self.W_read, self.W_write, strict=True):
            read.mul_(factor)
            write.div_(factor)

    @torch.no_grad()
    def _rescale(self, x_scale: Float[Tensor, "d_in"], y_scale: Float[Tensor, "d_out"]) -> None:
        for read, scale in zip(self.W_read, torch.split(x_scale, list(self.in_sizes)), strict=True):
            read.mul_(scale)
        for layer, write in enumerate(self.W_write):
            write.div_(y_scale[self._start(layer) :])
        self.b_dec.div_(y_scale)

    def _start(self, layer: int) -> int:
        """First column of a layer's own output."""
        return self._ends[layer] - self.out_sizes[layer]

    def _local(self, layer: int, codes: Codes) -> tuple[Int[Tensor, "row k"], Bool[Tensor, "row k"]]:
        """Numbers of the slots' latents within a layer (0 for others'), and which are its own."""
        local = codes.indices - layer * self.per_layer
        own = (local >= 0) & (local < self.per_layer)
        return torch.where(own, local, 0), own

    def _bias(self, layer: int) -> Float[Tensor, "latent"]:
        return self.b_enc[layer * self.per_layer : (layer + 1) * self.per_layer]

    def _summed(self, parts: list[Codes]) -> Float[Tensor, "row d_out"]:
        """b_dec plus what each layer's latents write, given the codes to take each layer's from."""
        made = self.b_dec.expand(len(parts[0]), -1)
        for layer, codes in enumerate(parts):
            made = made + nn.functional.pad(self.write(layer, codes), (self._start(layer), 0))
        return made

    def _auxiliary(
        self, x: Float[Tensor, "row d_in"], error: Float[Tensor, "row d_out"], step: Step
    ) -> Float[Tensor, ""]:
        """AuxK (``dead.auxk_loss``), the top ``aux_k`` dead latents being taken layer by layer."""
        if self.config.aux == 0 or len(step.dead) == 0:
            return error.new_zeros(())
        target = error.detach()
        made = torch.zeros_like(target)
        for layer, part in enumerate(torch.split(x.detach(), list(self.in_sizes), dim=1)):
            dead = self._own(step.dead, layer)
            if len(dead) == 0:
                continue
            pre = torch.addmm(self._bias(layer)[dead], part, self.W_read[layer][dead].T)
            aux_k = self.out_sizes[layer] // 2 if self.config.aux_k is None else self.config.aux_k
            if 0 < aux_k < len(dead):
                bar = pre.detach().topk(aux_k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
                pre = torch.where(pre >= bar, pre, 0)
            written = pre.relu() @ self.W_write[layer][dead]
            made = made + nn.functional.pad(written, (self._start(layer), 0))
        return self.config.aux * (target - made).pow(2).sum(-1).mean() / spread(target)

    def _own(self, latents: Int[Tensor, "_"], layer: int) -> Int[Tensor, "_"]:
        first = layer * self.per_layer
        return latents[(latents >= first) & (latents < first + self.per_layer)] - first
