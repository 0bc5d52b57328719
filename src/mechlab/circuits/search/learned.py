"""Circuits learned by gradient: a gate on every edge or node, between removed (0) and present (1).

Gates are hard concrete variables (Louizos et al. 2018, *Learning sparse neural networks through L0
regularization*, equations 10–12): random, differentiable, and exactly 0 or 1 most of the time,

    u ~ U(0, 1),  s = σ((ln u − ln(1 − u) + ln α) / β),  z = clip(s (ζ − γ) + γ, 0, 1)
    P(z > 0) = σ(ln α − β ln(−γ/ζ)),   β = 2/3, γ = −0.1, ζ = 1.1

and the expected number of open gates, Σ P(z > 0), is what is kept small.

    subnetwork_probing  − metric + penalty · mean P(z > 0)   (Cao et al. 2021, *Low-complexity
                        probing via finding subnetworks*; gates on nodes, or on edges)
    edge_pruning        − metric + λ₁ (t − s) + λ₂ (t − s)², where s is the expected share of closed
                        gates, t grows to the target, and λ climb the gradient that the weights
                        descend (Bhaskar et al. 2024, *Finding transformer circuits with edge
                        pruning*; without their second set of gates on nodes)

A closed gate lets through what the ablation puts in the source's place, an open one its own value;
see ``Masked.soft``. One draw of all gates serves all prompts of a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import metric_named
from mechlab.circuits.runs import paired_runs
from mechlab.circuits.search.found import Found, clean_up
from mechlab.circuits.search.prune import top_edges
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.forward import DecomposedForward

LEVELS = ("edge", "node")
BATCH = 16
_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1
_HISTORY = 20
# Multipliers climb faster than gates descend, or the target is not reached in a few hundred steps.
_UPWARD = 5.0


def hard_concrete(
    log_alpha: Float[Tensor, "*gate"], uniform: Float[Tensor, "*gate"]
) -> Float[Tensor, "*gate"]:
    """Gates for draws of a uniform variable; differentiable in ``log_alpha`` where not clipped."""
    stretched = torch.sigmoid((uniform.logit(1e-6) + log_alpha) / _BETA) * (_ZETA - _GAMMA) + _GAMMA
    return stretched.clamp(0, 1)


def open_probability(log_alpha: Float[Tensor, "*gate"]) -> Float[Tensor, "*gate"]:
    """Probability that a gate is not closed, P(z > 0)."""
    return torch.sigmoid(log_alpha - _BETA * math.log(-_GAMMA / _ZETA))


def subnetwork_probing(
    forward: DecomposedForward,
    task: Task,
    *,
    penalty: float = 1.0,
    level: str = "edge",
    metric: str = "negative_kl",
    ablation: Ablation | None = None,
    steps: int = 300,
    rate: float = 0.2,
    seed: int = 0,
    batch_size: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """The circuit of the gates that stay open against a penalty on open ones.

    Args:
        penalty: what all gates open cost more than none, in the metric's units.
        level: "edge", or "node": one gate for all edges that leave a head or MLP ("embed" stays).
        metric: larger is better; see ``mechlab.circuits.metrics``.
        ablation: what closed gates let through; the corrupt run's values when None.
        steps, rate: of Adam on ln α. Gates start open with probability 0.98.
        batch_size: prompts per step.
        progress: called with (steps done, steps).

    Returns:
        ``scores`` are P(z > 0), the same for all edges of a gate. The circuit holds the edges whose
        median gate is at least a half open. ``record["history"]`` has [step, metric, open] of some
        steps: the mean metric of the step's prompts and the expected share of open gates.

    Raises MechlabError for an unknown level or metric, a metric without a gradient, fewer than one
    step, a rate not above 0, or a loss that is not finite.
    """

    def loss(gates: _Gates, value: Tensor, step: int) -> Tensor:
        return penalty * gates.expected().mean() - value

    job = _Training(forward, task, level, metric, ablation, batch_size, steps, rate, seed)
    gates = job.train(loss, [], progress)
    # The median draw, u = ½, gives z ≥ ½ where ln α ≥ 0.
    chosen = gates.graph.real & (gates.spread(gates.log_alpha.detach()) >= 0).cpu()
    return job.found("subnetwork_probing", gates, chosen, {"penalty": penalty})


def edge_pruning(
    forward: DecomposedForward,
    task: Task,
    *,
    target: float = 0.9,
    warm_up: float = 0.5,
    metric: str = "negative_kl",
    ablation: Ablation | None = None,
    steps: int = 300,
    rate: float = 0.2,
    seed: int = 0,
    batch_size: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """The circuit of a wanted sparsity whose gates keep the metric highest.

    Args:
        target: share of edges to remove, from 0 to below 1.
        warm_up: share of the steps over which the sparsity asked for grows to the target.

    The other arguments are those of ``subnetwork_probing``. The circuit holds exactly
    (1 − target) · edges, those of largest ln α, before the clean-up; how near the gates themselves
    came to the target is in the history.

    Raises MechlabError for a target out of range, and as ``subnetwork_probing`` does.
    """
    if not 0 <= target < 1:
        raise MechlabError("target sparsity must be at least 0 and below 1", target)
    multipliers = torch.zeros(2, device=forward.device, requires_grad=True)

    def loss(gates: _Gates, value: Tensor, step: int) -> Tensor:
        wanted = target * min(1.0, (step + 1) / max(1.0, warm_up * steps))
        short = wanted - (1 - gates.expected().mean())
        return multipliers[0] * short + multipliers[1] * short**2 - value

    job = _Training(forward, task, "edge", metric, ablation, batch_size, steps, rate, seed)
    gates = job.train(loss, [multipliers], progress)
    n = round((1 - target) * gates.graph.n_edges)
    log_alpha = gates.spread(gates.log_alpha.detach()).cpu()
    chosen = top_edges(gates.graph, log_alpha, n, signed=True)
    return job.found("edge_pruning", gates, chosen, {"target": target, "warm_up": warm_up})


class _Gates:
    """One ln α per edge, or per source but "embed"."""

    def __init__(self, graph: Graph, level: str, device: torch.device) -> None:
        self.graph, self.level = graph, level
        self._edges = graph.real.nonzero().to(device)
        n = len(self._edges) if level == "edge" else graph.shape.n_sources - 1
        self.log_alpha = torch.full((n,), 2.4, device=device, requires_grad=True)

    def expected(self) -> Tensor:
        return open_probability(self.log_alpha)

    def spread(self, values: Tensor) -> Tensor:
        """Values per gate as a matrix over edges; 1 for edges that have no gate."""
        if self.level == "node":
            return torch.cat([values.new_ones(1), values])[:, None].expand(self.graph.real.shape)
        full = values.new_zeros(self.graph.real.shape)
        return full.index_put((self._edges[:, 0], self._edges[:, 1]), values)

    def draw(self, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(self.log_alpha.shape, generator=generator).to(self.log_alpha)
        return self.spread(hard_concrete(self.log_alpha, uniform))


@dataclass
class _Training:
    """The loop that both methods share, and its bill."""

    forward: DecomposedForward
    task: Task
    level: str
    metric: str
    ablation: Ablation | None
    batch_size: int
    steps: int
    rate: float
    seed: int

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise MechlabError("unknown level of gates", self.level, near(self.level, LEVELS))
        if self.steps < 1:
            raise MechlabError("gates need at least one step", self.steps)
        if not 0 < self.rate < math.inf:
            raise MechlabError("learning rate must be above 0", self.rate)
        self.started = time.monotonic()
        self.history: list[list[float]] = []

    def train(
        self,
        loss: Callable[[_Gates, Tensor, int], Tensor],
        ascending: list[Tensor],
        progress: Callable[[int, int], None] | None,
    ) -> _Gates:
        """Gates after all steps; ``ascending`` parameters climb the loss."""
        batches = []
        for pair in paired_runs(self.forward, self.task, metric_named(self.metric), self.batch_size):
            other = pair.corrupt.sources if self.ablation is None else self.ablation.values(pair)
            batches.append((pair, Masked(self.forward, pair.clean, other, pair.task.positions["end"])))
        generator = torch.Generator().manual_seed(self.seed)
        gates = _Gates(Graph(self.forward.shape), self.level, self.forward.device)
        groups: list[dict[str, Any]] = [{"params": [gates.log_alpha]}]
        if ascending:
            groups.append({"params": ascending, "maximize": True, "lr": _UPWARD * self.rate})
        optimiser = torch.optim.Adam(groups, lr=self.rate)
        for step in range(self.steps):
            if step % len(batches) == 0:
                turn = torch.randperm(len(batches), generator=generator).tolist()
            pair, masked = batches[turn[step % len(batches)]]
            value = pair.metric(masked.soft(gates.draw(generator))).mean()
            if not value.requires_grad:
                raise MechlabError("metric has no gradient", self.metric, "choose another metric")
            total = loss(gates, value, step)
            if not bool(total.isfinite()):
                raise MechlabError(
                    f"loss of step {step} is not finite", float(total.detach()), "use a lower rate"
                )
            optimiser.zero_grad()
            # Only these: the module's own parameters may ask for gradients too.
            total.backward(inputs=[gates.log_alpha, *ascending])  # type: ignore[no-untyped-call]
            optimiser.step()
            if step % max(1, self.steps // _HISTORY) == 0 or step == self.steps - 1:
                self.history.append([step, float(value.detach()), float(gates.expected().detach().mean())])
            if progress is not None:
                progress(step + 1, self.steps)
        return gates

    def found(
        self, method: str, gates: _Gates, chosen: Bool[Tensor, "n_sources n_readers"], more: dict[str, Any]
    ) -> Found:
        kind = "resample" if self.ablation is None else self.ablation.kind
        record = {
            "metric": self.metric,
            "ablation": kind,
            "level": self.level,
            "steps": self.steps,
            "rate": self.rate,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "history": self.history,
        }
        scores = gates.spread(gates.expected().detach()).cpu().where(gates.graph.real, 0.0)
        return Found(
            method,
            clean_up(gates.graph, chosen, kind),
            scores,
            int(chosen.sum()),
            self.steps,
            # A step runs one circuit, forward and backward, on a batch of the prompts.
            math.ceil(self.steps * min(self.batch_size, len(self.task)) / len(self.task)),
            time.monotonic() - self.started,
            record | more,
        )
