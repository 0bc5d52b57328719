"""What a reader hands back, and how it puts a dictionary together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae
from mechlab.sae.registry import architecture


@dataclass(frozen=True)
class Named:
    """What the caller says of a dictionary; it goes before what its files say.

    Attributes:
        model: name of the model.
        site, target: site that is read, and for transcoders the one that is predicted.
    """

    model: str = ""
    site: str = ""
    target: str = ""

    def sites(
        self, path: Path | str, site: str | None, target: str | None, *, transcoder: bool = False
    ) -> tuple[str, str]:
        """(site, target) with those of the files as a fallback; the target is "" unless a transcoder.

        Raises MechlabError when one is not known, or a target is named for what is no transcoder.
        """
        site, target = self.site or site or "", self.target or target or ""
        if not site:
            raise MechlabError("files do not say which site they belong to", path, "name it with --site")
        if transcoder and not target:
            raise MechlabError("files do not say which site is predicted", path, "name it with --target")
        if self.target and not transcoder:
            raise MechlabError("no transcoder, so it has no target", self.target, "leave out --target")
        return site, target if transcoder else ""


@dataclass(frozen=True)
class Found:
    """A dictionary that was read.

    Attributes:
        sae: the weights.
        site, target: where it reads and, for transcoders, predicts ("" otherwise).
        metadata: what is known of it, under SAELens' names (model_name, model_from_pretrained_kwargs,
            ...); None where it is not.
        files: the files that were read.
        mean: mean of the outputs over the training rows; None where it is not known.
        fingerprint: of the model it was trained on; None where it is not known.
    """

    sae: Sae
    site: str
    target: str
    metadata: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    mean: Tensor | None = None
    fingerprint: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Sites that are read."""
        return tuple(name.strip() for name in self.site.split(","))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Sites that are predicted."""
        return tuple(name.strip() for name in self.target.split(",")) if self.target else self.inputs


def build(
    arch: str, parts: Mapping[str, Tensor], site: str, target: str, *, centred: bool, **settings: Any
) -> Sae:
    """A dictionary of an architecture from its parameters.

    Args:
        arch: name in the registry.
        parts: our parameter name → tensor, in our shapes.
        site, target: as in ``Found``.
        centred: whether b_dec is subtracted from the input.
        settings: further fields of the architecture's config.

    Raises MechlabError when a setting is out of range.
    """
    kind = architecture(arch)
    d_sae, d_out = parts["W_dec"].shape
    d_in = len(parts["W_enc"]) if "W_enc" in parts else d_out
    config = kind.Config(site=site, target=target, d_sae=d_sae, skip="W_skip" in parts, **settings)
    sae = kind(config, d_in, d_out if target else None, centred=centred)
    sae.load_state_dict(parts)
    return sae


def fold_decoder_norms(parts: dict[str, Tensor]) -> None:
    """Unit decoder rows, their norms in the encoder instead; codes become codes times norms, exactly."""
    norms = parts["W_dec"].norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    parts["W_enc"] = parts["W_enc"] * norms
    parts["b_enc"] = parts["b_enc"] * norms
    parts["W_dec"] = parts["W_dec"] / norms[:, None]


def jump(threshold: Tensor, d_sae: int) -> Tensor:
    """A JumpReLU threshold ``[d_sae]`` with the meaning of a threshold behind a ReLU.

    ``relu(pre)`` where ``pre > threshold``: a negative threshold lets through what 0 lets through.
    """
    return threshold.clamp(min=0).expand(d_sae).contiguous()
