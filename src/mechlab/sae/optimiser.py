"""Adam over a dictionary's weights: clipping, unit decoder rows, one pass over memory each step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mechlab.sae.base import Sae
from mechlab_kernels.adam import adam_, squared_norm

# The usual 1e-8 goes with gradients clipped to a norm of 1; ours are clipped to a thousandth.
_EPS = 1e-11


class Adam:
    """Kingma & Ba (2015) over all parameters of a dictionary.

    With unit decoder rows, the gradient's part along each row, which normalising would undo, is
    removed before clipping and before the moments see it; the rows are normalised afterwards.

    Attributes:
        first, second: moments by parameter name, latent-major like the weights.
    """

    def __init__(self, sae: Sae) -> None:
        self._sae = sae
        self.first = {name: torch.zeros_like(_by_latent(name, p)) for name, p in sae.named_parameters()}
        self.second = {name: torch.zeros_like(_by_latent(name, p)) for name, p in sae.named_parameters()}

    @torch.no_grad()
    def step(self, number: int, lr: float, clip: float) -> float:
        """Update all weights that have a gradient, and drop the gradients.

        Args:
            number: this step, counted from 1.
            clip: norm to which a larger gradient is scaled down.

        Returns the gradient's norm before clipping; when it is not finite nothing is changed.
        """
        found = [(name, p, p.grad) for name, p in self._sae.named_parameters() if p.grad is not None]
        squares = [
            squared_norm(
                _by_latent(name, gradient), _by_latent(name, p).detach() if self._unit(name) else None
            )
            for name, p, gradient in found
        ]
        norm = math.sqrt(sum(float(square) for square in squares))
        if not math.isfinite(norm):
            return norm
        for name, p, gradient in found:
            adam_(
                _by_latent(name, p).detach(),
                _by_latent(name, gradient),
                self.first[name],
                self.second[name],
                lr=lr,
                step=number,
                eps=_EPS,
                gradient_scale=min(1.0, clip / norm) if norm > 0 else 1.0,
                unit_rows=self._unit(name),
            )
            p.grad = None
        return norm

    @torch.no_grad()
    def forget(self, latents: Tensor) -> None:
        """Reset the moments of some latents, as if they were new."""
        for moments in (self.first, self.second):
            for name, moment in moments.items():
                if name not in ("b_dec", "W_skip"):
                    moment[latents] = 0

    def _unit(self, name: str) -> bool:
        return name == "W_dec" and self._sae.unit


def _by_latent(name: str, p: Tensor | nn.Parameter) -> Tensor:
    """A contiguous view: W_enc is stored latent by latent and shown as its transpose."""
    # By name: a W_enc of one column or row looks contiguous either way.
    return p.T if name == "W_enc" else p
