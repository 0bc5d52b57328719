"""What an edge outside the circuit carries in place of its source's output.

    resample         the source's output on the prompt's corrupt pair (Conmy et al. 2023)
    zero             nothing
    mean             its mean over prompts and positions of a reference set
    mean-positional  its mean at the same position over a reference set
    mean-template    the same, over the reference prompts of the prompt's own template (Wang et al.
                     2022 for IOI: a mean over all templates destroys the syntax)
    optimal          the constant that keeps the metric highest, learned on a reference set (Li &
                     Janson 2024, *Optimal ablation for interpretability*)

Means come from a reference set that shares no prompt with the prompts a circuit is scored on.
They are means of all prompts, not of batches: a short last batch weighs no more than it holds.

Zero ablation leaves attention output biases in the stream (they belong to no source) and removes an
MLP's output bias (it belongs to the MLP). A circuit is only comparable with others under the same
ablation: Miller et al. (2024) report one circuit's faithfulness from below 0 to far above 1 over
such choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import metric_named
from mechlab.circuits.runs import BATCH_SIZE, PairedRun, batches, paired_runs
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.forward import DecomposedForward

ABLATIONS = ("resample", "zero", "mean", "mean-positional", "mean-template", "optimal")
WITHOUT_REFERENCE = ("resample", "zero")
_LEARNING_RATE = 0.02


@dataclass(frozen=True)
class Ablation:
    """An ablation ready for use.

    Attributes:
        kind: one of ``ABLATIONS``.
        constant: what each source is replaced by, one for each group of prompts (a single one but for
            "mean-template") and each position (a single one where it does not depend on it); None for
            "resample" and "zero".
    """

    kind: str
    constant: Float[Tensor, "group source pos d_model"] | None = None

    def values(self, pair: PairedRun) -> Float[Tensor, "source batch pos d_model"]:
        """What replaced edges carry for these prompts; may be an expanded view.

        Raises MechlabError when the constants belong to prompts of another length or template.
        """
        like = pair.clean.sources
        if self.kind == "resample":
            return pair.corrupt.sources
        if self.kind == "zero":
            return torch.zeros((), device=like.device, dtype=like.dtype).expand_as(like)
        assert self.constant is not None
        constant = self.constant.to(like)
        if constant.shape[2] not in (1, like.shape[2]):
            raise MechlabError(
                f"{self.kind} ablation has constants for {constant.shape[2]} positions",
                f"{like.shape[2]} positions in the prompts",
                "make it from prompts of the same length",
            )
        if self.kind != "mean-template":
            return constant[0][:, None].expand_as(like)
        groups = pair.task.groups
        if groups is None:
            raise MechlabError("prompts have no template numbers", pair.task.name, "use mean-positional")
        if int(groups.max()) >= len(constant):
            raise MechlabError("prompts have templates the reference lacks", pair.task.name, "add references")
        if bool(constant[groups].isnan().any()):
            raise MechlabError("no reference prompt has this template", pair.task.name, "add references")
        return constant[groups].transpose(0, 1).expand_as(like)


def make_ablation(
    forward: DecomposedForward,
    kind: str,
    reference: Task | None = None,
    *,
    metric: str | None = None,
    steps: int = 100,
    batch_size: int = BATCH_SIZE,
) -> Ablation:
    """An ablation from a reference set.

    Args:
        reference: clean prompts that means and constants are taken from; needed by all kinds but
            "resample" and "zero". Must share none with the prompts that circuits are scored on.
        metric: what "optimal" keeps highest; minus the KL divergence from the model when None.
        steps: gradient steps of "optimal".

    Raises MechlabError for an unknown kind, or a reference that is missing or lacks templates.
    """
    if kind not in ABLATIONS:
        raise MechlabError("unknown ablation", kind, near(kind, ABLATIONS))
    if kind in WITHOUT_REFERENCE:
        return Ablation(kind)
    if reference is None:
        raise MechlabError(f"{kind} ablation needs reference prompts", None, "give a reference task")
    if kind == "mean-template" and reference.groups is None:
        raise MechlabError("prompts have no template numbers", reference.name, "use mean-positional")
    if kind == "optimal":
        return _optimal(forward, reference, metric or "negative_kl", steps, batch_size)
    return Ablation(kind, _mean(forward, reference, kind, batch_size))


def require_apart(reference: Task, scored: Task) -> None:
    """MechlabError when prompts that are scored are also in the reference set of a mean."""
    shared = {*reference.prompts} & {*scored.prompts}
    if shared:
        raise MechlabError(
            "prompts are scored that the ablation's constants were made from",
            f"{len(shared)}, such as {min(shared)!r}",
            "use a reference of another split",
        )


@torch.no_grad()
def _mean(
    forward: DecomposedForward, reference: Task, kind: str, batch_size: int
) -> Float[Tensor, "group source pos d_model"]:
    groups = reference.groups if kind == "mean-template" else None
    n_groups = 1 if groups is None else int(groups.max()) + 1
    total, counts = None, torch.zeros(n_groups, dtype=torch.float64)
    for batch in batches(reference, batch_size, forward.device):
        sources = forward.run(batch.clean, stop=forward.shape.n_layers, keep=True).sources
        assert sources is not None
        here = torch.zeros(len(batch), dtype=torch.int64) if groups is None else batch.groups
        assert here is not None
        sums = torch.zeros(n_groups, *sources.transpose(0, 1).shape[1:], dtype=torch.float64)
        sums.index_add_(0, here.cpu(), sources.transpose(0, 1).cpu().double())
        total = sums if total is None else total + sums
        counts += torch.bincount(here.cpu(), minlength=n_groups)
    assert total is not None
    means = total / counts[:, None, None, None]  # NaN where a template has no prompt; refused on use
    if kind == "mean":
        means = means.mean(2, keepdim=True)
    return means.float()


def _optimal(
    forward: DecomposedForward, reference: Task, metric: str, steps: int, batch_size: int
) -> Ablation:
    """One constant per source, learned with every source replaced at once for random halves of edges.

    Li & Janson learn the constants of one component's ablation, or of a given circuit. Constants that
    serve any circuit are learned here against random ones: at every step each edge is replaced with
    probability one half. They start at the mean.
    """
    start = _mean(forward, reference, "mean", batch_size)[0]
    constant = start.to(forward.device).clone().requires_grad_()
    optimiser = torch.optim.Adam([constant], _LEARNING_RATE * float(start.std()))
    generator = torch.Generator().manual_seed(0)
    real = Graph(forward.shape).real
    pairs = list(paired_runs(forward, reference, metric_named(metric), batch_size))
    for step in range(steps):
        pair = pairs[step % len(pairs)]
        mask = (torch.rand(real.shape, generator=generator) < 0.5) & real
        other = constant.to(pair.clean.sources)[:, None].expand_as(pair.clean.sources)
        masked = Masked(forward, pair.clean, other, pair.task.positions["end"])
        loss = -pair.metric(masked.soft(mask.to(other))).mean()
        if not loss.requires_grad:
            raise MechlabError("metric has no gradient", metric, "choose another metric")
        optimiser.zero_grad()
        loss.backward(inputs=[constant])  # type: ignore[no-untyped-call]
        optimiser.step()
    return Ablation("optimal", constant.detach().cpu()[None])
