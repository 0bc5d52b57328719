"""Is a subspace what the model uses, or a path that patching itself opens? Row space and null space.

A direction v at the input of a linear map W (the MLP's hidden activations before W_out, the heads'
mixed values before W_O) is the sum of a part in the row space of W, which the map reads, and one in
its null space, which nothing downstream ever sees. Patching along v writes (Δ · v) v, where Δ is the
difference of the two runs. When v correlates with the behaviour only through its null-space part and
moves the output only through its row-space part, which itself differs little between the runs, the
patch has a large effect although the model uses neither: the interpretability illusion of Makelov,
Lange & Nanda (2023), *Is this the subspace you are looking for?*. The test is to patch along each
part alone. What a faithful direction does, its row-space part does by itself; along the null-space
part alone nothing can happen.

Row space and null space are those of the whole map from the site to the residual stream, from its
singular vectors, not of a truncation of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechlab import scores
from mechlab.activations.capture import read_sites
from mechlab.circuits.causal.interchange import Place, check_subspace, exchange
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, batches
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.scores import Score


@dataclass(frozen=True, eq=False)
class IllusionTest:
    """Effects of patching, as shares of the gap between the clean and the corrupt run.

    0: nothing happened; 1: the clean run does what the corrupt run does (ratio of means over prompts,
    Makelov et al.'s fractional logit-difference decrease).

    Attributes:
        whole: the whole value at the site patched.
        full: along the subspace given; its null is ``random``.
        row_space: along the part of it that the map reads; None when there is none.
        null_space: along the part that the map does not read; None when there is none.
        random: along random subspaces of the same dimension, mean over several.
        row_share: share of the subspace's squared length that lies in the row space.
    """

    whole: Score
    full: Score
    row_space: Score | None
    null_space: Score | None
    random: Score
    row_share: float

    @property
    def illusory(self) -> bool:
        """Whether less than half of the effect is left along the row-space part alone.

        Only asked of a subspace that does anything: False when its effect is not above random's.
        """
        if self.full.low <= self.random.high:
            return False
        return self.row_space is None or self.row_space.value < self.full.value / 2

    def table(self) -> str:
        """The effects side by side, one line each."""
        rows = {
            "whole site": self.whole,
            "subspace": self.full,
            "row space only": self.row_space,
            "null space only": self.null_space,
            "random": self.random,
        }
        return "\n".join(f"{name:<16}{'–' if score is None else score}" for name, score in rows.items())


def illusion_test(
    subject: Subject,
    task: Task,
    place: Place,
    *,
    metric: str | None = None,
    n_random: int = 10,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> IllusionTest:
    """Patch a subspace from the corrupt into the clean run, whole and in its two parts.

    Args:
        place: site, position and subspace (from ``das``, a probe, a difference of means …).
        n_random: number of random subspaces in the baseline.

    Raises MechlabError when the place has no subspace of the site's size, no linear map reads the
    site, there is no random subspace, or the metric is unknown.
    """
    rows = place.subspace
    if rows is None:
        raise MechlabError("place has no subspace", place.site, "give Place one")
    if n_random < 1:
        raise MechlabError("the baseline needs at least one random subspace", n_random)
    reads, ignores = split_spaces(output_map(subject, place.site))
    check_subspace(subject, place)
    rows = rows.detach().double().cpu()
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.linalg.qr(torch.randn(rows.shape[1], len(rows), generator=generator).double())[0].T
        for _ in range(n_random)
    ]
    parts = {"row": _within(rows, reads), "null": _within(rows, ignores)}
    present = [part for part in parts.values() if part is not None]
    patches: list[Tensor | None] = [None, rows, *present, *drawn]
    changed, gap = _effects(subject, task, place, patches, metric, batch_size)

    def scored(name: str, effect: Tensor, null: Score | None = None) -> Score:
        sums = torch.stack([effect, gap], 1).double().numpy()
        return scores.score(name, np.asarray(sums), scores.mean, seed=seed, null=null)

    rest = iter(changed[2 : len(patches) - n_random])
    random = scored("random subspaces", changed[len(patches) - n_random :].mean(0))
    return IllusionTest(
        whole=scored("whole site", changed[0]),
        full=scored("subspace", changed[1], random),
        row_space=None if parts["row"] is None else scored("row space", next(rest)),
        null_space=None if parts["null"] is None else scored("null space", next(rest)),
        random=random,
        row_share=float((rows @ reads.T).pow(2).sum() / rows.pow(2).sum()),
    )


def output_map(subject: Subject, site: str) -> Float[Tensor, "dim d_out"]:
    """The weights of the linear module that reads a site: ``output = value @ map + bias``, float64.

    Raises MechlabError when the site is not the input of a linear module.
    """
    place = subject.site(site)
    reader: Any = subject.module.get_submodule(place.module) if place.side == "input" else None
    weight = getattr(reader, "weight", None)
    if weight is None or weight.ndim != 2:
        raise MechlabError("no linear map reads this site", site, "use mlp.hook_post or attn.hook_z")
    matrix: Tensor = weight.detach().double().cpu()
    # Linear keeps its weight as [out, in], GPT-2's Conv1D as [in, out].
    matrix = matrix.T if isinstance(reader, torch.nn.Linear) else matrix
    if place.head is not None:
        matrix = matrix[place.head * place.dim : (place.head + 1) * place.dim]
    return matrix


def split_spaces(
    matrix: Float[Tensor, "dim d_out"],
) -> tuple[Float[Tensor, "read dim"], Float[Tensor, "ignored dim"]]:
    """Orthonormal bases of what ``value @ matrix`` depends on, and of what it does not."""
    left, singular, _ = torch.linalg.svd(matrix, full_matrices=True)
    # As numpy's matrix_rank, but for weights that are float32.
    rank = int((singular > singular.max() * max(matrix.shape) * torch.finfo(torch.float32).eps).sum())
    return left[:, :rank].T, left[:, rank:].T


def _within(rows: Float[Tensor, "k dim"], basis: Float[Tensor, "n dim"]) -> Float[Tensor, "m dim"] | None:
    """Orthonormal rows that span the projection of ``rows``; None when nothing is left of it."""
    projected = rows @ basis.T @ basis
    _, singular, right = torch.linalg.svd(projected, full_matrices=False)
    kept = right[singular > 1e-4]
    return kept if len(kept) else None


@torch.no_grad()
def _effects(
    subject: Subject,
    task: Task,
    place: Place,
    patches: list[Tensor | None],
    metric: str | None,
    batch_size: int,
) -> tuple[Float[Tensor, "patch n"], Float[Tensor, "n"]]:
    """m(clean) − m(patched) for every patch, and m(clean) − m(corrupt), per prompt."""
    measure = metric_named(metric or default_metric(task))
    changed, gaps = [], []
    for batch in batches(task, batch_size, subject.device):
        index = batch.positions["end"]
        rows = torch.arange(len(batch), device=subject.device)

        def at_end(tokens: Tensor, index: Tensor = index, rows: Tensor = rows) -> Tensor:
            logits = subject.logits(tokens)
            return logits[rows if index.ndim == 1 else rows[:, None], index]

        clean = at_end(batch.clean)
        before = measure(clean, batch, clean)
        gaps.append(before - measure(at_end(batch.corrupt), batch, clean))
        source = read_sites(subject, batch.corrupt, [place.site])[place.site]
        found = []
        for patch in patches:
            with editing(subject, place.site, exchange(source, patch), place.position):
                found.append(before - measure(at_end(batch.clean), batch, clean))
        changed.append(torch.stack(found))
    return torch.cat(changed, 1).cpu(), torch.cat(gaps).cpu()
