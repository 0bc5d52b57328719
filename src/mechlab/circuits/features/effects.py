"""Indirect effects of dictionary latents and errors on a metric.

Source: Marks et al. (2024), *Sparse Feature Circuits* (arXiv 2403.19647). For a node with value a in
the clean run and a' in the patch (the corrupt run, or zero), averaged over prompts,

    attribution  (a − a') · ∂m/∂a |_clean                                (attribution patching)
    ig           (a − a') · 1/m Σ_k ∂m/∂a |_{a' + α_k (a − a')}          (integrated gradients)

The integral runs over all nodes of one site at a time, the rest of the model being clean before it,
at midpoints α_k = (k − ½)/m. A positive effect means that the node supports the metric (the paper
writes the change, a' − a). As the nodes of a site add up to its value, one gradient at the site
gives those of all its nodes, and the integrated effects of a site add up to the effect of patching
the whole site, up to the error of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.circuits.features.sites import Coded, along, coded, read_at, run, saes_at
from mechlab.circuits.metrics import Metric, default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, batches
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.codes import Codes, side_by_side
from mechlab.sae.splice import Placed

METHODS = ("attribution", "ig")
PATCHES = ("resample", "zero")


def feature_effects(
    subject: Subject,
    dictionaries: Sequence[Placed],
    task: Task,
    *,
    method: str = "ig",
    steps: int = 10,
    ablation: str = "resample",
    by_position: bool = False,
    metric: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Float[Tensor, "place node"]]:
    """Effect of every node, mean over prompts, in the metric's units: site → ``[place, d_sae + 1]``.

    The last column is the site's error; ``place`` is the position with ``by_position``, else 1,
    effects being summed over positions. One backward pass in all for "attribution", ``steps`` for
    each site for "ig". Codes stay sparse; what is returned is dense.

    Args:
        dictionaries: of one site each, at any sites.
        ablation: what a node is patched with: its value in the corrupt run ("resample") or "zero".

    Raises MechlabError for dictionaries that do not fit, unknown names and a metric without gradient.
    """
    if method not in METHODS:
        raise MechlabError("unknown attribution method", method, near(method, METHODS))
    if steps < 1:
        raise MechlabError("integrated gradients need at least one step", steps)
    measure = metric_named(metric or default_metric(task))
    saes = saes_at(subject, dictionaries)
    places = task.clean.shape[1] if by_position else 1
    effects = {site: torch.zeros(places, sae.d_sae + 1) for site, sae in saes.items()}
    for batch in batches(task, batch_size, subject.device):
        patches = patch_values(subject, saes, batch, ablation)
        clean, clean_logits = site_values(subject, saes, batch, batch.clean)
        found: dict[str, Tensor] = {}
        if method == "attribution":
            found = gradients(subject, saes, batch, measure, clean_logits)
        for site, sae in saes.items():
            x, patch = clean[site], patches[site]
            for step in range(steps if method == "ig" else 0):
                value = torch.lerp(patch, x, (step + 0.5) / steps)
                at = gradients(subject, {site: sae}, batch, measure, clean_logits, {site: value})[site]
                found[site] = found.get(site, 0) + at / steps
            nodes = difference(sae, x, patch, ablation)
            effects[site] += _by_node(sae, nodes, found[site], places).cpu()
    return {site: effect / len(task) for site, effect in effects.items()}


def site_values(
    subject: Subject, saes: dict[str, Sae], batch: Task, tokens: Int[Tensor, "batch pos"]
) -> tuple[dict[str, Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch *read d_vocab"]]:
    """Values at all sites and the logits that the task reads, without gradient."""
    values: dict[str, Tensor] = {}

    def keep(site: str, value: Tensor) -> Tensor:
        values[site] = value
        return value

    with torch.no_grad():
        logits = read_at(run(subject, tokens, saes, keep), batch.positions["end"])
    return values, logits


def patch_values(
    subject: Subject, saes: dict[str, Sae], batch: Task, ablation: str
) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """Value of each site when all its nodes are patched; for "zero" that is b_dec.

    Raises MechlabError for an unknown ablation.
    """
    if ablation not in PATCHES:
        raise MechlabError("unknown ablation", ablation, near(ablation, PATCHES))
    if ablation == "resample":
        return site_values(subject, saes, batch, batch.corrupt)[0]
    shape = (*batch.clean.shape, -1)
    return {site: sae.b_dec.detach().expand(shape) for site, sae in saes.items()}


def difference(
    sae: Sae, x: Float[Tensor, "batch pos d_model"], patch: Float[Tensor, "batch pos d_model"], ablation: str
) -> Coded:
    """Nodes in the clean run less their patches; a latent may have two slots, one of either run."""
    clean = coded(sae, x)
    if ablation == "zero":
        return clean
    other = coded(sae, patch)
    minus = Codes(-other.codes.values, other.codes.indices)
    return Coded(side_by_side([clean.codes, minus]), clean.error - other.error)


def gradients(
    subject: Subject,
    saes: dict[str, Sae],
    batch: Task,
    measure: Metric,
    clean_logits: Float[Tensor, "batch *read d_vocab"],
    values: dict[str, Tensor] | None = None,
) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """Gradient of the summed metric at each site; of the clean run, or with ``values`` put at sites."""
    nodes: dict[str, Tensor] = {}

    def put(site: str, value: Tensor) -> Tensor:
        value = (values or {}).get(site, value)
        nodes[site] = value if value.requires_grad else value.detach().requires_grad_()
        return nodes[site]

    with torch.enable_grad():
        logits = read_at(run(subject, batch.clean, saes, put), batch.positions["end"])
        total = summed(measure(logits, batch, clean_logits))
        found = torch.autograd.grad(total, list(nodes.values()))
    return dict(zip(nodes, found, strict=True))


def summed(values: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
    """A metric's sum; MechlabError when it has no gradient (accuracy)."""
    if not values.requires_grad:
        raise MechlabError("metric has no gradient", float(values.mean()), "use logit_difference")
    return values.sum()


def _by_node(
    sae: Sae, nodes: Coded, gradient: Float[Tensor, "batch pos d_model"], places: int
) -> Float[Tensor, "place node"]:
    """Effects of a batch summed over prompts (and positions, if there is one place)."""
    batch, pos, _ = gradient.shape
    at = torch.arange(batch * pos, device=gradient.device) % pos % places
    effects = gradient.new_zeros(places, sae.d_sae + 1)
    effects.index_put_(
        (at[:, None].expand_as(nodes.codes.indices), nodes.codes.indices),
        nodes.codes.values * along(sae, nodes.codes, gradient),
        accumulate=True,
    )
    error = (nodes.error * gradient).sum(-1).flatten()
    effects[:, -1].index_add_(0, at, error)
    return effects
