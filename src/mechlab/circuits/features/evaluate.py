"""Does a feature circuit do what the model does? Nodes outside it ablated, at all sites at once.

Source: Marks et al. (2024), *Sparse Feature Circuits* (arXiv 2403.19647). At each site, as the model
comes to it, the value x is taken apart by the dictionary, and every node outside the circuit gets
the value that it has in the ablation:

    x' = x − Σ_{i outside} (f_i(x) − f_i') d_i − [error outside] (e(x) − e')

so that the whole model as a circuit is the model, to the bit. With m(∅) all latents ablated,

    faithfulness (m(C) − m(∅)) / (m(M) − m(∅)),   completeness (m(M∖C) − m(∅)) / (m(M) − m(∅))

Completeness is small when nothing that matters was left out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab import scores
from mechlab.circuits.features.effects import patch_values, site_values
from mechlab.circuits.features.graph import FeatureNode
from mechlab.circuits.features.sites import Coded, coded, mask_of, read_at, run, saes_at, written
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, batches
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.codes import scatter
from mechlab.sae.splice import Placed
from mechlab.scores import Score

ABLATIONS = ("resample", "zero", "mean", "mean-positional")
ERRORS = ("keep", "ablate", "circuit")
FeatureMask = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Mean:
    """Mean nodes of a site over reference prompts, dense: ``[1 or pos, d_sae]`` and the error."""

    codes: Float[Tensor, "place d_sae"]
    error: Float[Tensor, "place d_model"]

    def written(self, sae: Sae, wanted: Bool[Tensor, "_ node"]) -> Float[Tensor, "1 pos d_model"]:
        made = (self.codes * wanted[:, :-1]) @ sae.W_dec
        return (made + self.error * wanted[:, -1:])[None]


def run_feature_circuits(
    subject: Subject,
    dictionaries: Sequence[Placed],
    task: Task,
    circuits: Sequence[FeatureMask],
    *,
    ablation: str = "resample",
    reference: Task | None = None,
    metric: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[Float[Tensor, "circuit n"], Float[Tensor, "n"]]:
    """The metric per prompt of every circuit, and of the whole model.

    Args:
        circuits: site → True at the nodes kept, ``[1 or pos, d_sae + 1]``, the error last; a site
            that a circuit does not name is kept whole.
        ablation: what nodes outside carry: their value in the corrupt run ("resample"), "zero", or
            their mean over the reference prompts, over positions ("mean") or by position.
        reference: prompts for means, others than the task's; of the same length by position.

    One forward for each circuit and batch. Raises MechlabError for dictionaries and masks that do not
    fit, unknown names, and means without a reference, or over prompts of another length.
    """
    if ablation not in ABLATIONS:
        raise MechlabError("unknown ablation", ablation, near(ablation, ABLATIONS))
    measure, saes = metric_named(metric or default_metric(task)), saes_at(subject, dictionaries)
    for circuit in circuits:
        for site, mask in circuit.items():
            if site not in saes:
                raise MechlabError("no dictionary at the circuit's site", site, near(site, saes))
            n_pos, width = task.clean.shape[1], saes[site].d_sae + 1
            if mask.dtype != torch.bool or tuple(mask.shape) not in ((1, width), (n_pos, width)):
                shown = f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}"
                raise MechlabError(
                    f"mask does not fit {site}", shown, f"it must be bool, [1 or {n_pos}, {width}]"
                )
    means: dict[str, _Mean] = {}
    if ablation.startswith("mean"):
        if reference is None:
            raise MechlabError(
                "mean ablation needs reference prompts", None, "give reference=, another split"
            )
        means = _means(subject, saes, reference, ablation == "mean-positional", batch_size)
        if ablation == "mean-positional" and reference.clean.shape[1] != task.clean.shape[1]:
            lengths = f"{reference.clean.shape[1]} and {task.clean.shape[1]} tokens"
            raise MechlabError("reference prompts have another length", lengths, 'use ablation="mean"')
    columns, whole = [], []
    for batch in batches(task, batch_size, subject.device):
        _, clean = site_values(subject, saes, batch, batch.clean)
        whole.append(measure(clean, batch, clean))
        others: dict[str, Coded] = {}
        if ablation == "resample":
            patches = patch_values(subject, saes, batch, ablation)
            others = {site: coded(sae, patches[site]) for site, sae in saes.items()}
        rows = []
        for circuit in circuits:
            ablated = functools.partial(_ablated, saes, circuit, means, others)
            with torch.no_grad():
                here = {site: sae for site, sae in saes.items() if site in circuit}
                logits = run(subject, batch.clean, here, ablated)
            rows.append(measure(read_at(logits, batch.positions["end"]), batch, clean))
        columns.append(torch.stack(rows) if rows else clean.new_empty(0, len(batch)))
    return torch.cat(columns, 1).cpu(), torch.cat(whole).cpu()


def _ablated(
    saes: dict[str, Sae],
    circuit: FeatureMask,
    means: dict[str, _Mean],
    others: dict[str, Coded],
    site: str,
    x: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch pos d_model"]:
    """A site's value with the nodes outside the circuit exchanged."""
    outside, sae = ~circuit[site].to(x.device), saes[site]
    if not bool(outside.any()):
        return x
    changed = x - written(sae, coded(sae, x), outside)
    if site in means:
        return changed + means[site].written(sae, outside)
    return changed + written(sae, others[site], outside) if site in others else changed


def exact_effects(
    subject: Subject,
    dictionaries: Sequence[Placed],
    task: Task,
    nodes: Sequence[FeatureNode],
    like: FeatureMask,
    *,
    ablation: str = "resample",
    metric: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "node n"]:
    """What the metric loses when one node alone is ablated, per prompt: what effects approximate.

    ``like`` holds arrays of the nodes' shapes (the effects that they were taken from).
    """
    circuits = [
        {site: ~mask for site, mask in mask_of([node], like).items() if site == node.site} for node in nodes
    ]
    values, whole = run_feature_circuits(
        subject, dictionaries, task, circuits, ablation=ablation, metric=metric, batch_size=batch_size
    )
    return whole - values


def feature_faithfulness(
    subject: Subject,
    dictionaries: Sequence[Placed],
    task: Task,
    circuit: FeatureMask,
    candidates: FeatureMask,
    *,
    complement: bool = False,
    errors: str = "keep",
    ablation: str = "resample",
    reference: Task | None = None,
    metric: str | None = None,
    controls: int = 20,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Score:
    """Share of the model's metric that a feature circuit keeps; with ``complement`` completeness.

    A ratio of means over prompts, with a bootstrap interval over prompts. The null is the same for
    ``controls`` random sets of as many of the candidates, with an interval over sets.

    Args:
        circuit: True at its nodes, at every site of the dictionaries.
        candidates: nodes that a random set may hold, such as those whose effect is not 0.
        errors: what becomes of errors, in the circuit, without it and in the controls: "keep" them,
            "ablate" them, or treat them as nodes of the "circuit".
        ablation, reference: as in ``run_feature_circuits``.

    Raises MechlabError for a dictionary's site that the circuit or the candidates leave out, fewer
    candidates than the circuit has nodes, and as ``run_feature_circuits`` does.
    """
    if errors not in ERRORS:
        raise MechlabError("unknown treatment of errors", errors, near(errors, ERRORS))
    for site in (site for placed in dictionaries for site in placed.inputs):
        if site not in circuit or site not in candidates:
            raise MechlabError("circuit or candidates leave out a site", site, "give masks for all")
    generator = torch.Generator().manual_seed(seed)
    latents = errors != "circuit"
    drawn = [_random(circuit, candidates, latents, generator) for _ in range(controls)]
    inverse = [{site: ~mask for site, mask in each.items()} for each in (circuit, *drawn)]
    wanted = inverse if complement else [circuit, *drawn]
    nothing = {site: torch.zeros_like(mask) for site, mask in circuit.items()}
    circuits = [{site: mask.clone() for site, mask in each.items()} for each in (*wanted, nothing)]
    if latents:
        for each in circuits:
            for mask in each.values():
                mask[:, -1] = errors == "keep"
    values, whole = run_feature_circuits(
        subject, dictionaries, task, circuits,
        ablation=ablation, reference=reference, metric=metric, batch_size=batch_size,
    )  # fmt: skip
    empty = values[-1]
    kept, gap = (values[:-1] - empty).double().numpy(), (whole - empty).double().numpy()
    name, null = "completeness" if complement else "faithfulness", None
    if controls > 0:
        totals = np.stack([kept[1:].sum(1), np.full(controls, gap.sum())], 1)
        null = scores.score(f"{name} of random features", totals, scores.mean, seed=seed)
    return scores.score(name, np.stack([kept[0], gap], 1), scores.mean, seed=seed, null=null)


def _random(
    circuit: FeatureMask, candidates: FeatureMask, latents: bool, generator: torch.Generator
) -> dict[str, Bool[Tensor, "place node"]]:
    """As many of the candidates as the circuit has nodes (of its latents alone, if so wanted)."""
    allowed = {site: mask.clone() for site, mask in candidates.items()}
    for mask in allowed.values():
        mask[:, -1] &= not latents
    size = sum(int((mask[:, :-1] if latents else mask).sum()) for mask in circuit.values())
    flat = torch.cat([mask.flatten() for mask in allowed.values()])
    at = flat.nonzero()[:, 0]
    if len(at) < size:
        raise MechlabError("fewer candidates than nodes in the circuit", f"{len(at)}, {size}", "allow more")
    chosen = torch.zeros_like(flat)
    chosen[at[torch.randperm(len(at), generator=generator)[:size]]] = True
    found, first = {}, 0
    for site, mask in allowed.items():
        found[site] = chosen[first : first + mask.numel()].view_as(mask)
        first += mask.numel()
    return found


def _means(
    subject: Subject, saes: dict[str, Sae], reference: Task, by_position: bool, batch_size: int
) -> dict[str, _Mean]:
    """Mean nodes over the clean prompts of the reference."""
    pos = reference.clean.shape[1]
    places = pos if by_position else 1
    codes = {site: sae.b_dec.new_zeros(places, sae.d_sae) for site, sae in saes.items()}
    errors = {site: sae.b_dec.new_zeros(places, sae.d_out) for site, sae in saes.items()}
    for batch in batches(reference, batch_size, subject.device):
        values, _ = site_values(subject, saes, batch, batch.clean)
        for site, sae in saes.items():
            found = coded(sae, values[site])
            at = torch.arange(len(found.codes), device=subject.device) % pos % places
            # One prompt's worth of rows is dense at a time.
            for first in range(0, len(found.codes), pos):
                rows = slice(first, first + pos)
                codes[site].index_add_(0, at[rows], scatter(found.codes[rows], sae.d_sae))
            errors[site].index_add_(0, at, found.error.flatten(0, 1))
    count = len(reference) * pos / places
    return {site: _Mean(codes[site] / count, errors[site] / count) for site in saes}
