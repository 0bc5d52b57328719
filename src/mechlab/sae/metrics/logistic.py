"""Logistic regression by Newton's method.

Minimises ½ ‖w‖² + Σ log(1 + exp(-s (w·x + b))), s = ±1: scikit-learn's default penalty (C = 1,
intercept not penalised), which SAEBench's probes use. Costs rows · d² per step, about ten steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from mechlab.errors import MechlabError

_STEPS, _TOLERANCE = 100, 1e-6


class Probe(NamedTuple):
    """A linear probe: ``x @ weight + bias > 0`` means "has the concept"."""

    weight: Float[Tensor, "d"]
    bias: Float[Tensor, ""]

    def score(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row"]:
        """The logit of each row."""
        return x @ self.weight.to(x) + self.bias.to(x)


def fit_logistic(x: Float[Tensor, "row d"], label: Bool[Tensor, "row"]) -> Probe:
    """The penalised maximum-likelihood probe, fitted in double precision.

    MechlabError when a class is absent or an input is not finite.
    """
    if bool(label.all()) or not bool(label.any()):
        raise MechlabError(
            "probe needs rows of both classes", f"{int(label.sum())} of {len(label)}", "add rows"
        )
    if not bool(torch.isfinite(x).all()):
        raise MechlabError("inputs of a probe are not finite", None, "check the activations")
    inputs = torch.cat([x.double(), x.new_ones(len(x), 1).double()], dim=1)
    target = label.double()
    penalty = torch.ones(inputs.shape[1], dtype=torch.double, device=x.device)
    penalty[-1] = 0

    def loss(theta: Tensor) -> Tensor:
        z = inputs @ theta
        return (softplus(z) - target * z).sum() + (penalty * theta**2).sum() / 2

    theta = torch.zeros_like(penalty)
    now = loss(theta)
    for _ in range(_STEPS):
        p = torch.sigmoid(inputs @ theta)
        gradient = inputs.T @ (p - target) + penalty * theta
        if float(gradient.abs().max()) < _TOLERANCE * len(x):
            break
        # A hair on the diagonal: the intercept has no penalty of its own.
        hessian = (inputs * (p * (1 - p))[:, None]).T @ inputs + torch.diag(penalty + 1e-9)
        step = torch.linalg.solve(hessian, gradient)
        size = 1.0
        while (then := loss(theta - size * step)) > now and size > 1e-6:
            size /= 2
        if then >= now:
            break
        theta, now = theta - size * step, then
    return Probe(theta[:-1].to(x.dtype), theta[-1].to(x.dtype))
