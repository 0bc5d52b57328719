"""How the learning rate and the weight of the sparsity penalty change during training."""

from __future__ import annotations

import math

from mechlab.sae.config import PenaltyConfig, TrainConfig

# How fast the controller moves: a factor of 2 off the target changes the penalty by 2 % a step.
_GAIN = 0.03
# Beyond these the target is out of reach, and a penalty that runs away would spoil the rest.
_LOWEST, _HIGHEST = 1e-4, 1e4


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up from zero, constant, linear decay to zero (steps counted from 0)."""
    warm, cool = config.warmup * config.steps, config.decay * config.steps
    factor = min(1.0, (step + 1) / max(warm, 1.0), (config.steps - step) / max(cool, 1.0))
    return config.peak_lr * factor


def sparsity_factor(config: TrainConfig, step: int) -> float:
    """Linear warm-up of the sparsity penalty."""
    return min(1.0, (step + 1) / max(config.sparsity_warmup * config.steps, 1.0))


class L0Controller:
    """Moves the sparsity penalty until the mean L0 is the wanted one.

    Integral control of the logarithms: each step multiplies the penalty by (L0 / target)^gain.
    Silent during the penalty's warm-up, when L0 means nothing yet, and without a target.

    Attributes:
        factor: what the penalty is multiplied by.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.target = config.controlled_l0 if isinstance(config, PenaltyConfig) else None
        self._from = config.sparsity_warmup * config.steps
        self.factor = 1.0

    def see(self, step: int, l0: float) -> None:
        """Take note of a step's L0."""
        if self.target is None or step < self._from:
            return
        error = math.log(max(l0, 1e-3) / self.target)
        self.factor = min(max(self.factor * math.exp(_GAIN * error), _LOWEST), _HIGHEST)
