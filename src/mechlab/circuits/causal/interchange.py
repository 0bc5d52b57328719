"""Interchange interventions: does a place in the model hold a variable of a causal model?

A causal variable is aligned with one or more places of the model. The model runs on a base prompt
while each place takes the value it has on a source prompt; the causal model does the same with the
variable. The share of pairs on which both give the same output is the interchange intervention
accuracy (Geiger et al. 2021, *Causal abstractions of neural networks*; Geiger et al. 2023, *Causal
abstraction*). In a subspace with orthonormal rows Q only the part of the value within it is taken:

    x ← x + (x_source − x) Qᵀ Q
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab import scores
from mechlab.activations.capture import read_sites
from mechlab.circuits.causal.problem import Interchanges
from mechlab.errors import MechlabError, near
from mechlab.interventions.edit import Function, editing
from mechlab.interventions.edits import Edit, swap
from mechlab.models.subject import Subject
from mechlab.scores import Score

BATCH_SIZE = 256


@dataclass(frozen=True, eq=False)
class Place:
    """Where in a model a variable is said to live.

    Attributes:
        site: a site of the model, or one head of it ("blocks.0.attn.hook_z:3").
        position: column of the prompt, negative ones from its end; None for all positions.
        subspace: orthonormal directions at the site; None for the whole value.
    """

    site: str
    position: int | None = None
    subspace: Float[Tensor, "k dim"] | None = None

    def __post_init__(self) -> None:
        rows = self.subspace
        if rows is not None and rows.ndim != 2:
            raise MechlabError(
                "subspace is not [k, dim]", list(rows.shape), "one direction is direction[None]"
            )
        if rows is not None and not torch.allclose(
            rows @ rows.T, torch.eye(len(rows)).to(rows), atol=1e-3, rtol=0.0
        ):
            raise MechlabError(
                "subspace is not orthonormal",
                list(rows.shape),
                "use torch.linalg.qr(rows.T)[0].T",
            )


Alignment = Mapping[str, Place | tuple[Place, ...]]


def interchange_logits(
    subject: Subject, data: Interchanges, alignment: Alignment, *, batch_size: int = BATCH_SIZE
) -> Float[Tensor, "n d_vocab"]:
    """Logits after the base prompts while aligned places hold what they hold on the source prompts.

    Sources run unedited. Raises MechlabError when a variable has no place, a place belongs to no
    variable of ``data`` or has a subspace of another size than its site, a batch size below 1, and as
    ``editing`` does.
    """
    if batch_size < 1:
        raise MechlabError("batch size must be at least 1", batch_size)
    if stray := [name for name in alignment if name not in data.sources]:
        raise MechlabError("no source prompts for variable", stray[0], near(stray[0], data.sources))
    if missing := [name for name in data.sources if not alignment.get(name, ())]:
        raise MechlabError("variable is aligned with no place", missing[0], "give it one or more")
    for listed in alignment.values():
        for place in (listed,) if isinstance(listed, Place) else listed:
            check_subspace(subject, place)
    found = []
    for first in range(0, len(data), batch_size):
        batch = data.rows(slice(first, first + batch_size))
        edits: list[tuple[Place, Edit | Function]] = []
        for name, tokens in batch.sources.items():
            listed = alignment[name]
            places = (listed,) if isinstance(listed, Place) else listed
            values = read_sites(subject, tokens, [place.site for place in places])
            edits += [(place, exchange(values[place.site], place.subspace)) for place in places]
        with contextlib.ExitStack() as stack:
            for place, edit in edits:
                stack.enter_context(editing(subject, place.site, edit, place.position))
            found.append(subject.logits(batch.base)[:, -1].cpu())
    return torch.cat(found)


def check_subspace(subject: Subject, place: Place) -> None:
    """MechlabError for a site that does not exist, or a subspace that has another size."""
    dim, rows = subject.site(place.site).dim, place.subspace
    if rows is not None and rows.shape[1] != dim:
        raise MechlabError(
            "subspace has another size than the site", rows.shape[1], f"{place.site} has dim {dim}"
        )


def exchange(
    source: Float[Tensor, "batch pos dim"], subspace: Float[Tensor, "k dim"] | None
) -> Edit | Function:
    """The edit that puts ``source`` in place of the value, or of its part in a subspace."""
    if subspace is None:
        return swap(source)

    def change(value: Tensor) -> Tensor:
        x = value.to(torch.promote_types(value.dtype, torch.float32))
        rows = subspace.to(x)
        moved: Tensor = x + ((source.to(x) - x) @ rows.T) @ rows
        return moved

    return change


def interchange_accuracy(
    subject: Subject, data: Interchanges, alignment: Alignment, *, batch_size: int = BATCH_SIZE, seed: int = 0
) -> Score:
    """Share of pairs whose highest output token is the causal model's counterfactual output.

    Only tokens that are outputs of the causal model compete. The null is the same with sources
    shuffled among the pairs; a place that does nothing scores the share of pairs whose output the
    interchange leaves unchanged (one half as ``draw_interchanges`` draws). Raises MechlabError as
    ``interchange_logits`` does.
    """

    def measured(pairs: Interchanges, null: Score | None = None) -> Score:
        logits = interchange_logits(subject, pairs, alignment, batch_size=batch_size)
        return accuracy("interchange accuracy", logits, pairs, null=null, seed=seed)

    return measured(data, measured(data.shuffled(seed)))


def accuracy(
    name: str,
    logits: Float[Tensor, "n d_vocab"],
    data: Interchanges,
    *,
    null: Score | None = None,
    chance: float | None = None,
    seed: int = 0,
) -> Score:
    """Share of rows whose highest output token is the answer, with a bootstrap interval over pairs."""
    right = (winners(logits, data.outputs) == data.answers).double().numpy()
    rows = np.stack([right, np.ones_like(right)], axis=1)
    return scores.score(name, rows, scores.mean, seed=seed, null=null, chance=chance)


def winners(logits: Float[Tensor, "n d_vocab"], outputs: Int[Tensor, "value"]) -> Int[Tensor, "n"]:
    """The output token with the highest logit."""
    return outputs[logits[:, outputs].argmax(-1)]
