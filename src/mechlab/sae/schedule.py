"""How the learning rate and the weight of the sparsity penalty change during training."""

from __future__ import annotations

import math

from mechlab.sae.config import PenaltyConfig, TrainConfig

# The controller's integral can change by a factor of e^_TURNS in a run, at these rates a step.
_TURNS, _SLOWEST, _FASTEST = 30.0, 0.003, 0.03
_PUSH = 0.5
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

    Proportional-integral control of logarithms: with e = log(L0 / target), held within ±1, the
    logarithm of the penalty's factor is _PUSH times e plus the sum of gain times e over the steps.
    L0 answers a change of the penalty only after many steps; the push keeps the sum from
    overshooting meanwhile. Silent during the penalty's warm-up, when L0 means nothing yet, and
    without a target.

    Attributes:
        held: the integral part's factor; push: the proportional part's.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.target = config.controlled_l0 if isinstance(config, PenaltyConfig) else None
        self._from = config.sparsity_warmup * config.steps
        self._gain = min(_FASTEST, max(_SLOWEST, _TURNS / config.steps))
        self.held, self.push = 1.0, 1.0

    @property
    def factor(self) -> float:
        """What the penalty is multiplied by."""
        return self.held * self.push

    def see(self, step: int, l0: float) -> None:
        """Take note of a step's L0."""
        if self.target is None or step < self._from:
            return
        error = min(max(math.log(max(l0, 1e-3) / self.target), -1.0), 1.0)
        self.held = min(max(self.held * math.exp(self._gain * error), _LOWEST), _HIGHEST)
        self.push = math.exp(_PUSH * error)
