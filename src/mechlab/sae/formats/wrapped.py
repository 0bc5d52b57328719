"""Dictionaries that can be used but not trained: of normalised rows, or held by sae-lens itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechlab.errors import MechlabError, near
from mechlab.sae.base import Sae
from mechlab.sae.codes import Codes, scatter, sparse
from mechlab.sae.config import TrainConfig

NORMALISATIONS = ("constant_norm_rescale", "layer_norm")
_EPS = 1e-5


class Fixed(Sae):
    """A dictionary that cannot be trained further."""

    def change_units(self, x_scale: Float[Tensor, "d_in"], y_scale: Float[Tensor, "d_out"]) -> None:
        """Refused: MechlabError."""
        raise MechlabError("dictionary can be used, not trained", self.arch, "train one of mechlab's own")


class Normalised(Fixed):
    """A dictionary of rows that are normalised one by one first; its output is scaled back.

    * ``constant_norm_rescale``: rows get norm sqrt(d_in).
    * ``layer_norm``: rows lose their mean and are divided by (standard deviation + 1e-5), the
      deviation with d_in - 1; output is multiplied by the deviation and gets the mean back.

    Source: ``sae_lens.saes.sae``, which here does what openai/sparse_autoencoder does. The input is
    needed for decoding. ``inner`` holds the weights, which this shows as its own.
    """

    arch = "normalised"

    def __init__(self, inner: Sae, how: str) -> None:
        nn.Module.__init__(self)
        self.inner, self.how = inner, how
        self.config, self.centred = inner.config, inner.centred
        self.in_sizes, self.out_sizes = inner.in_sizes, inner.out_sizes
        self.d_in, self.d_out, self.d_sae = inner.d_in, inner.d_out, inner.d_sae
        self.W_enc, self.W_dec, self.b_dec, self.W_skip = inner.W_enc, inner.W_dec, inner.b_dec, None
        self.register_parameter("b_enc", getattr(inner, "b_enc", None))

    def normalise(
        self, x: Float[Tensor, "row d_in"]
    ) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row 1"], Float[Tensor, "row 1"]]:
        """(normalised rows, scale of the output, shift of the output)."""
        if self.how == "constant_norm_rescale":
            factor = self.d_in**0.5 / x.norm(dim=-1, keepdim=True)
            return x * factor, 1 / factor, torch.zeros_like(factor)
        mean = x.mean(dim=-1, keepdim=True)
        deviation = (x - mean).std(dim=-1, keepdim=True)
        return (x - mean) / (deviation + _EPS), deviation, mean

    def differentiable(self, x: Float[Tensor, "row d_in"], codes: Codes) -> Codes:
        """The codes of ``x`` once more, with gradient to ``x``."""
        return self.inner.differentiable(self.normalise(x)[0], codes)

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of the normalised rows."""
        return self.inner.encode(self.normalise(x)[0])

    def decode(self, codes: Codes, x: Float[Tensor, "row d_in"] | None = None) -> Float[Tensor, "row d_out"]:
        """Output from codes, in the units of ``x``; MechlabError without ``x``."""
        if x is None:
            raise MechlabError("normalised dictionary needs the input", None, "decode(codes, x)")
        normal, scale, shift = self.normalise(x)
        return self.inner.decode(codes, normal) * scale + shift


class Foreign(Fixed):
    """A dictionary of an architecture that is sae-lens' alone, as sae-lens' own module.

    For temporal dictionaries, rows are the tokens of one context, in order; codes are the novel
    ones, and the output has the part predicted from the context when the input is given, as in
    sae-lens' ``forward``.

    Args:
        saved: contents of ``cfg.json``.
        tensors: those of the weights file.
        path: where they come from, for errors.

    Raises MechlabError for an architecture that sae-lens does not know, or weights that do not fit.
    """

    arch = "foreign"

    def __init__(self, saved: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path | str) -> None:
        import sae_lens  # takes seconds, and registers the architectures
        from sae_lens.registry import SAE_CLASS_REGISTRY

        nn.Module.__init__(self)
        name = saved["architecture"]
        if name not in SAE_CLASS_REGISTRY:
            raise MechlabError(
                f"unknown dictionary architecture in {path}", name, near(str(name), SAE_CLASS_REGISTRY)
            )
        try:
            kind, config = SAE_CLASS_REGISTRY[name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module: Any = kind(config.from_dict({**saved, "device": "cpu", "dtype": "float32"}))
            module.load_state_dict({key: value.to(torch.float32) for key, value in tensors.items()})
        except Exception as error:  # sae-lens checks little of this, in ways of its own
            raise MechlabError(
                f"sae-lens cannot load {path}", str(error).split("\n")[0], "check it"
            ) from error
        self.saved, self.module, self._logger = dict(saved), module, sae_lens.logger
        self.config, self.centred = TrainConfig(d_sae=module.cfg.d_sae), module.cfg.apply_b_dec_to_input
        self.d_in, self.d_sae, self.d_out = module.cfg.d_in, module.cfg.d_sae, module.W_dec.shape[1]
        self.in_sizes, self.out_sizes = (self.d_in,), (self.d_out,)
        self.W_dec, self.b_dec, self.W_skip = module.W_dec, module.b_dec, None
        for own in ("W_enc", "b_enc"):
            there = getattr(module, own, None)
            self.register_parameter(own, there if isinstance(there, nn.Parameter) else None)

    @property
    def contextual(self) -> bool:
        """Whether a row's codes depend on the rows before it."""
        return hasattr(self.module, "encode_with_predictions")

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row; for a temporal dictionary the rows are one context."""
        return sparse(self.module.encode(x[None])[0] if self.contextual else self.module.encode(x))

    def differentiable(self, x: Float[Tensor, "row d_in"], codes: Codes) -> Codes:
        """The codes of ``x`` once more, with gradient to ``x``."""
        dense: Tensor = self.module.encode(x[None])[0] if self.contextual else self.module.encode(x)
        return Codes(torch.where(codes.values != 0, dense.gather(1, codes.indices), 0), codes.indices)

    def decode(self, codes: Codes, x: Float[Tensor, "row d_in"] | None = None) -> Float[Tensor, "row d_out"]:
        """Output from codes, with what is predicted from the context when ``x`` is given."""
        dense = scatter(codes, self.d_sae)
        if x is None:
            return self._decoded(dense)
        if self.contextual:
            dense = dense + self.module.encode_with_predictions(x[None])[1][0]
        else:
            self.module.encode(x)  # the module keeps what decoding undoes
        return self._decoded(dense)

    def _decoded(self, dense: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_out"]:
        quiet, self._logger.disabled = self._logger.disabled, True  # it warns at each temporal decoding
        try:
            made: Tensor = self.module.decode(dense)
        finally:
            self._logger.disabled = quiet
        return made


def refuse_contextual(sae: Sae) -> None:
    """MechlabError for a dictionary whose rows must be one context, where they would not be."""
    if isinstance(sae, Foreign) and sae.contextual:
        raise MechlabError(
            "dictionary reads whole contexts", sae.saved["architecture"], "encode one context at a time"
        )
