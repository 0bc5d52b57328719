"""Edges of a sparse feature circuit: what one node does to the metric directly through another.

Source: Marks et al. (2024), *Sparse Feature Circuits* (arXiv 2403.19647), section 3.2. In the clean
run, for nodes u and d of an earlier and a later site,

    edge(u, d) = (u − u') · ∂d/∂u · ∂m/∂d

where ∂m/∂d is the whole gradient, and ∂d/∂u goes along paths that pass no node of a site in between:
every site's value is cut from its past and handed on as a leaf, so that one backward pass from d
stops at all sites before it. ``metric`` is the last reader: what u does to it through no other site.
Since a site's nodes add up to its value, all edges from u, those to the metric included, add up to
u's effect by attribution (the chain rule over the cuts), if all active nodes and errors are readers.

A pass back from d covers all prompts at once: latents of one site and position do not mix prompts.
Each cotangent exists before its backward pass is asked for; nothing reads a stored ``grad``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.features.effects import difference, patch_values, site_values, summed
from mechlab.circuits.features.graph import FeatureGraph, FeatureNode
from mechlab.circuits.features.sites import Coded, along, exists, read_at, run, saes_at
from mechlab.circuits.metrics import Metric, default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, batches
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.splice import Placed


@dataclass(frozen=True)
class _Cut:
    """A site in the clean run: its value as computed from the sites before, and the leaf handed on."""

    value: Float[Tensor, "batch pos d_model"]
    leaf: Float[Tensor, "batch pos d_model"]


def feature_graph(
    subject: Subject,
    dictionaries: Sequence[Placed],
    task: Task,
    nodes: Sequence[FeatureNode],
    *,
    ablation: str = "resample",
    metric: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> FeatureGraph:
    """The graph of some nodes and the metric, edges being means over prompts in the metric's units.

    Args:
        nodes: as ``top_nodes`` gives them, at sites of ``dictionaries``; with positions or without.
        ablation: "resample" or "zero", as in ``feature_effects``.

    One backward pass for each node and batch. Raises MechlabError for dictionaries that do not fit,
    no nodes, a node that no dictionary or prompt has, one given twice, unknown names, and a metric
    without gradient.
    """
    name = metric or default_metric(task)
    measure, saes = metric_named(name), saes_at(subject, dictionaries)
    if not nodes:
        raise MechlabError("no node was given", None, "effects that are all zero have none")
    seen: set[str] = set()
    for node in nodes:
        if node.site not in saes:
            raise MechlabError("no dictionary at the node's site", node.name, ", ".join(saes))
        d_sae, n_pos = saes[node.site].d_sae, task.clean.shape[1]
        if not exists(node, d_sae, n_pos):
            raise MechlabError("node does not exist", node.name, f"{d_sae} latents, {n_pos} tokens")
        if node.name in seen:
            raise MechlabError("node is given twice", node.name, "give it once")
        seen.add(node.name)
    order = list(saes)
    nodes = tuple(sorted(nodes, key=lambda node: order.index(node.site)))
    last = FeatureNode("logit", "logits", int(subject.module.config.num_hidden_layers))
    scores = torch.zeros(len(nodes), len(nodes) + 1)
    for batch in batches(task, batch_size, subject.device):
        patches = patch_values(subject, saes, batch, ablation)
        clean, clean_logits = site_values(subject, saes, batch, batch.clean)
        moved = {
            site: _Moved(
                sae,
                difference(sae, clean[site], patches[site], ablation),
                [node for node in nodes if node.site == site],
            )
            for site, sae in saes.items()
        }
        scores += _batch_scores(subject, saes, batch, nodes, moved, measure, clean_logits).cpu()
    numbers = torch.arange(len(nodes) + 1)
    return FeatureGraph((*nodes, last), numbers[:-1], numbers, scores / len(task))


class _Moved:
    """What the chosen nodes of one site write less what their patches write.

    Dense in the chosen latents alone: one number for each of them, prompt and position.
    """

    def __init__(self, sae: Sae, nodes: Coded, chosen: Sequence[FeatureNode]) -> None:
        self._chosen, self._error = chosen, nodes.error
        batch, pos, _ = nodes.error.shape
        latents = [(node.index, node.position) for node in chosen if node.index is not None]
        self._rows = sae.W_dec[[latent for latent, _ in latents]]
        self._values = nodes.error.new_zeros(len(latents), batch, pos)
        for values, (latent, position) in zip(self._values, latents, strict=True):
            found = torch.where(nodes.codes.indices == latent, nodes.codes.values, 0).sum(1)
            where = slice(None) if position is None else position
            values[:, where] = found.view(batch, pos)[:, where]

    def along(self, gradient: Float[Tensor, "batch pos d_model"]) -> list[Tensor]:
        """What each node's move does along a gradient at the site, summed over prompts."""
        of_latents = iter(((self._values.flatten(1) @ gradient.flatten(0, 1)) * self._rows).sum(1))
        of_error = (self._error * gradient).sum((0, 2))
        of_place: dict[int | None, Tensor] = {None: of_error.sum(), **dict(enumerate(of_error))}
        return [of_place[n.position] if n.index is None else next(of_latents) for n in self._chosen]


class _Reading:
    """How the nodes of one site depend on its value, weighted by the metric's gradient at them."""

    def __init__(
        self,
        sae: Sae,
        x: Float[Tensor, "batch pos d_model"],
        gradient: Float[Tensor, "batch pos d_model"],
    ) -> None:
        self._gradient, self._x = gradient, x.flatten(0, 1).requires_grad_()
        with torch.no_grad():
            codes = sae.encode(self._x)
            self._weights = along(sae, codes, gradient)
        with torch.enable_grad():
            self._codes = sae.differentiable(self._x, codes)

    def cotangent(self, node: FeatureNode) -> Float[Tensor, "batch pos d_model"]:
        """Gradient at the site's value of Σ (metric's gradient at the node) · node."""
        batch, pos, _ = self._gradient.shape
        at = torch.arange(batch * pos, device=self._x.device)[:, None] % pos
        here = torch.ones_like(at, dtype=torch.bool) if node.position is None else at == node.position
        if node.index is not None:
            return self._encoded(here & (self._codes.indices == node.index))
        # The error is the value less its reconstruction.
        whole = self._gradient * here.view(batch, pos, 1)
        return whole - self._encoded(here)

    def _encoded(self, slots: Bool[Tensor, "row _"]) -> Float[Tensor, "batch pos d_model"]:
        weights = torch.where(slots, self._weights, 0)
        (found,) = torch.autograd.grad(self._codes.values, self._x, weights, retain_graph=True)
        return found.view_as(self._gradient)


def _batch_scores(
    subject: Subject,
    saes: dict[str, Sae],
    batch: Task,
    nodes: Sequence[FeatureNode],
    moved: dict[str, _Moved],
    measure: Metric,
    clean_logits: Tensor,
) -> Float[Tensor, "n_sources n_readers"]:
    """Edges summed over the prompts of a batch."""
    cuts: dict[str, _Cut] = {}

    def cut(site: str, value: Tensor) -> Tensor:
        cuts[site] = _Cut(value, value.detach().requires_grad_())
        return cuts[site].leaf

    with torch.enable_grad():
        logits = read_at(run(subject, batch.clean, saes, cut), batch.positions["end"])
        total = summed(measure(logits, batch, clean_logits))
    sites = list(saes)

    def back(value: Tensor, cotangent: Tensor | None, count: int) -> list[Tensor]:
        """Gradients at the leaves of the first ``count`` sites."""
        leaves = [cuts[site].leaf for site in sites[:count]]
        if not leaves or not value.requires_grad:
            return [torch.zeros_like(leaf) for leaf in leaves]
        found = torch.autograd.grad(value, leaves, cotangent, retain_graph=True, allow_unused=True)
        pairs = zip(found, leaves, strict=True)
        return [torch.zeros_like(leaf) if each is None else each for each, leaf in pairs]

    def scored(found: list[Tensor]) -> Tensor:
        """What the nodes do along gradients at the first sites; 0 for nodes of later ones."""
        parts = [each for site, at in zip(sites, found, strict=False) for each in moved[site].along(at)]
        return torch.stack([*parts, *[total.new_zeros(())] * (len(nodes) - len(parts))])

    scores = total.new_zeros(len(nodes), len(nodes) + 1)
    direct = back(total, None, len(sites))
    scores[:, -1] = scored(direct)
    gradients = dict(zip(sites, direct, strict=True))
    # From the last site down: a site's whole gradient is there when all later ones gave their share.
    for count in reversed(range(len(sites))):
        site = sites[count]
        for earlier, share in zip(sites, back(cuts[site].value, gradients[site], count), strict=False):
            gradients[earlier] = gradients[earlier] + share
        reading = _Reading(saes[site], cuts[site].value.detach(), gradients[site])
        for number, node in enumerate(nodes):
            if node.site == site:
                found = back(cuts[site].value, reading.cotangent(node), count)
                scores[:, number] = scored(found)
    return scores
