"""Nodes at sites of the running model: latents of a dictionary, and one error for each site.

At a site with value x the nodes write x = Σ_i f_i d_i + e + b_dec. Arrays over a site's nodes hold
latents ``0 … d_sae-1`` and last the error, ``[pos, d_sae + 1]``, or ``[1, d_sae + 1]`` where
positions are not told apart. Codes of prompts stay sparse; only such arrays over nodes are dense.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.circuits.features.graph import FeatureNode
from mechlab.errors import MechlabError, near
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.codes import Codes
from mechlab.sae.dictionary import Dictionary
from mechlab.sae.formats.wrapped import refuse_contextual
from mechlab.sae.splice import Placed
from mechlab_kernels.autograd import selected_pre_activations, sparse_decode

Nodes = Mapping[str, Tensor]
Change = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Coded:
    """What the nodes of a site hold in one run.

    Attributes:
        codes: of the ``batch · pos`` rows, row-major.
        error: what the dictionary misses.
    """

    codes: Codes
    error: Float[Tensor, "batch pos d_model"]


def saes_at(subject: Subject, dictionaries: Sequence[Placed]) -> dict[str, Sae]:
    """Site → weights on the model's device, in the order in which the model computes the sites.

    Raises MechlabError when there is none, one does not reconstruct one site of the table (or one of
    its heads), two share a site, one was trained on another model, or its decoder is not linear in
    the codes alone.
    """
    if not dictionaries:
        raise MechlabError("no dictionary was given", None, "train one with mechlab sae train")
    found: dict[str, Sae] = {}
    for placed in dictionaries:
        refuse_contextual(placed.sae)
        if placed.inputs != placed.outputs or len(placed.inputs) > 1:
            shown = f"{', '.join(placed.inputs)} → {', '.join(placed.outputs)}"
            raise MechlabError(
                "dictionary does not reconstruct one site", shown, "transcoders: use attribution_graph"
            )
        if isinstance(placed, Dictionary):
            placed.check(subject)
        sae, site = placed.sae, placed.inputs[0]
        if _whole(site) not in subject.sites:
            raise MechlabError(f"model {subject.name} has no site", site, near(site, subject.sites))
        if type(sae).decode is not Sae.decode:
            raise MechlabError("decoder is not linear in the codes", sae.arch, "use a plain dictionary")
        if site in found:
            raise MechlabError("two dictionaries are at one site", site, "give one for each site")
        if subject.site(site).dim != sae.d_in:
            size = f"the site has {subject.site(site).dim}"
            raise MechlabError(f"dictionary has another size than {site}", sae.d_in, size)
        found[site] = sae if sae.b_dec.device == subject.device else copy.deepcopy(sae).to(subject.device)
    order = list(subject.sites)
    return {site: found[site] for site in sorted(found, key=lambda site: order.index(_whole(site)))}


def _whole(site: str) -> str:
    """The site that a head ("blocks.0.attn.hook_z:3") is part of."""
    return site.partition(":")[0]


def run(
    subject: Subject, tokens: Int[Tensor, "batch pos"], saes: Mapping[str, Sae], change: Change
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the model while every site's value passes through ``change(site, value)``.

    Values come in the dictionaries' floating type, and go on in the model's.
    """

    def changed(site: str, value: Tensor) -> Tensor:
        # GPT-2 computes its position embeddings once for all prompts.
        return change(site, value.to(saes[site].b_dec.dtype).expand(len(tokens), -1, -1))

    with contextlib.ExitStack() as stack:
        for site in saes:
            stack.enter_context(editing(subject, site, functools.partial(changed, site)))
        logits: Tensor = subject.module(tokens, use_cache=False).logits
    return logits


def read_at(
    logits: Float[Tensor, "batch pos d_vocab"], positions: Int[Tensor, "batch *read"]
) -> Float[Tensor, "batch *read d_vocab"]:
    """Logits where a task reads them."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows if positions.ndim == 1 else rows[:, None], positions]


def coded(sae: Sae, x: Float[Tensor, "batch pos d_model"]) -> Coded:
    """A site's value taken apart."""
    rows = x.flatten(0, 1)
    codes = sae.encode(rows)
    return Coded(codes, x - sae.decode(codes).view_as(x))


def written(sae: Sae, nodes: Coded, wanted: Bool[Tensor, "place node"]) -> Float[Tensor, "batch pos d_model"]:
    """What the wanted nodes write; without b_dec."""
    batch, pos, _ = nodes.error.shape
    here = wanted.expand(pos, -1)
    rows = torch.arange(batch * pos, device=wanted.device) % pos
    values = torch.where(here[rows[:, None], nodes.codes.indices], nodes.codes.values, 0)
    made = sparse_decode(values, nodes.codes.indices, sae.W_dec).view_as(nodes.error)
    return made + nodes.error * here[:, -1, None]


def along(sae: Sae, codes: Codes, gradient: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "row k"]:
    """Gradient at each code from that at the site: its component along the decoder row."""
    zero = gradient.new_zeros(sae.d_sae)
    return selected_pre_activations(gradient.flatten(0, 1), sae.W_dec, zero, codes.indices)


def top_nodes(subject: Subject, effects: Nodes, n: int, *, errors: bool = True) -> tuple[FeatureNode, ...]:
    """The nodes of largest absolute effect, in the order of the model; those of effect 0 never.

    Args:
        effects: as ``feature_effects`` gives them; positions are told apart where they were there.
        errors: whether errors count among them.
    """
    if n < 1:
        raise MechlabError("number of nodes must be at least 1", n)
    sizes = [effect.abs().clone() for effect in effects.values()]
    for size in sizes:
        size[:, -1] *= errors
    flat = torch.cat([size.flatten() for size in sizes])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(min(n, len(flat))).indices] = True
    parts = (chosen & (flat > 0)).split([size.numel() for size in sizes])  # type: ignore[no-untyped-call]
    found = []
    for (site, effect), part in zip(effects.items(), parts, strict=True):
        for place, index in part.view_as(effect).nonzero().tolist():
            position = place if len(effect) > 1 else None
            last = index == effect.shape[1] - 1
            found.append(
                FeatureNode(
                    "error" if last else "feature", site, subject.site(site).layer, position,
                    None if last else index, score=float(effect[place, index]),
                )
            )  # fmt: skip
    return tuple(found)


def exists(node: FeatureNode, d_sae: int, n_pos: int) -> bool:
    """Whether a dictionary of ``d_sae`` latents and prompts of ``n_pos`` tokens have such a node."""
    named = node.kind == ("error" if node.index is None else "feature")
    return named and 0 <= (node.index or 0) < d_sae and 0 <= (node.position or 0) < n_pos


def mask_of(nodes: Sequence[FeatureNode], like: Nodes) -> dict[str, Bool[Tensor, "place node"]]:
    """True at the given nodes, in arrays of the same shapes as ``like``.

    Raises MechlabError for a node that the arrays have no place for.
    """
    masks = {site: torch.zeros(array.shape, dtype=torch.bool) for site, array in like.items()}
    for node in nodes:
        mask = masks.get(node.site)
        there = mask is not None and exists(node, mask.shape[1] - 1, len(mask))
        if mask is None or not there or (node.position is None) != (len(mask) == 1):
            raise MechlabError("arrays have no such node", node.name, "use nodes of the same effects")
        mask[node.position or 0, -1 if node.index is None else node.index] = True
    return masks
