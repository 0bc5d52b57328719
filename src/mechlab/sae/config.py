"""What every training run has to say; each architecture adds its own fields."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import model_validator

from mechlab.errors import MechlabError
from mechlab.settings import Settings

_SHARES = ("warmup", "decay", "sparsity_warmup")


class TrainConfig(Settings):
    """Settings of one dictionary's training that all architectures share."""

    arch: ClassVar[str] = ""

    site: str = ""
    """Site that is read (TransformerLens hook name); several for a crosscoder, joined by commas."""
    target: str = ""
    """Site(s) that are predicted, for a transcoder; the sites that are read by default."""
    d_sae: int = 1024
    """Number of latents."""
    tokens: int = 2_000_000
    """Rows to train on, counting repeats."""
    batch_size: int = 2048
    """Rows per step."""
    lr: float | None = None
    """Peak learning rate; 2e-3 times sqrt(1024 / d_sae) by default."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from zero."""
    decay: float = 0.3
    """Share of the steps over which the rate falls to zero, at the end."""
    sparsity_warmup: float = 0.1
    """Share of the steps over which the sparsity penalty rises from zero (or k falls from k_start)."""
    clip: float = 1e-3
    """Largest norm of the gradient of all weights together; more is scaled down. The default is nearly
    always reached, which makes steps count alike: otherwise Adam's memory of the first, large
    gradients holds back the next thousand steps."""
    dead_after: int = 100_000
    """A latent is dead when it has not fired for this many rows."""
    decoder: Literal["unit", "free"] = "unit"
    """Decoder rows: unit norm, or free, where a penalty weighs each latent by its decoder's norm."""
    tied: bool = False
    """Encoder = transpose of the decoder."""
    skip: bool = False
    """Add a linear map from input to output (skip transcoder); needs a target."""
    b_dec: Literal["mean", "geometric_median", "zero"] = "mean"
    """Where the decoder's bias starts; it goes on being trained."""

    @model_validator(mode="after")
    def _ranges(self) -> TrainConfig:
        for name, value in self:
            # A clip of infinity turns clipping off.
            if isinstance(value, float) and name != "clip":
                self._require(name, math.isfinite(value), "a finite number")
        for name in ("d_sae", "tokens", "batch_size", "dead_after"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in _SHARES:
            self._require(name, 0 <= getattr(self, name) <= 1, "a share between 0 and 1")
        self._require("lr", self.lr is None or self.lr > 0, "a positive rate")
        self._require("clip", self.clip > 0, "a positive norm")
        if self.tied and self.target:
            raise MechlabError(
                "a transcoder's weights cannot be tied", self.target, "leave out tied or target"
            )
        if self.skip and not self.target:
            raise MechlabError("skip needs a target to predict", self.site, "name the target site")
        if len(set(self.inputs)) < len(self.inputs) or len(set(self.outputs)) < len(self.outputs):
            raise MechlabError("a site is named twice", self.target or self.site, "name each site once")
        return self

    def _require(self, name: str, right: bool, remedy: str) -> None:
        if not right:
            raise MechlabError(f"{name} is out of range", getattr(self, name), remedy)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Sites that are read."""
        return tuple(name.strip() for name in self.site.split(","))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Sites that are predicted."""
        return tuple(name.strip() for name in self.target.split(",")) if self.target else self.inputs

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return max(1, math.ceil(self.tokens / self.batch_size))

    @property
    def peak_lr(self) -> float:
        """Learning rate between warm-up and decay."""
        return 2e-3 * math.sqrt(1024 / self.d_sae) if self.lr is None else self.lr


class PenaltyConfig(TrainConfig):
    """Settings of dictionaries whose sparsity comes from a penalty."""

    sparsity: float = 5.0
    """Weight of the sparsity penalty beside the squared error, activations having norm sqrt(d)."""
    target_l0: float | None = None
    """Active latents per token to aim for: the weight of the penalty is moved until they are met."""
    resample: int = 0
    """How often dead latents are pointed at badly reconstructed inputs, over the first half of training."""

    @model_validator(mode="after")
    def _penalty_in_range(self) -> PenaltyConfig:
        self._require("sparsity", self.sparsity >= 0, "zero or more")
        if self.target_l0 is not None:
            self._require("target_l0", 0 < self.target_l0 <= self.d_sae, f"above 0, at most {self.d_sae}")
        # At most once a step of the first half; more would never come about.
        self._require(
            "resample", 0 <= 2 * self.resample <= self.steps, f"0 to {self.steps // 2}, half of the steps"
        )
        return self

    @property
    def controlled_l0(self) -> float | None:
        """L0 that the weight of the penalty is moved for."""
        return self.target_l0

    def resamples_at(self, step: int) -> bool:
        """Whether dead latents are resampled after this step."""
        every = self.steps // (2 * self.resample) if self.resample else 0
        return every > 0 and step > 0 and step % every == 0 and step // every <= self.resample
