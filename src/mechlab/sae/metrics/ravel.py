"""RAVEL-style disentanglement: do some latents hold one attribute of an entity and nothing else?

Fable's entities have three attributes (home, food, colour) that its model knows. In the manner of
Huang et al. 2024 (arXiv 2402.17700): a base prompt and a source prompt differ in the entity only;
at one token the codes of the latents chosen for attribute A are replaced by the source's, the rest
of the activation (other latents and the reconstruction's error) staying as it is.

* cause: share of prompts that ask for A where the prediction becomes the source's value;
* isolation: share of prompts that ask for another attribute where it stays the base's value.

Only pairs whose values differ count, and only where the model, untouched, answers both prompts
right. Latents are chosen on two thirds of the entities and scored on pairs of the others, which are other
entities with mostly the same values: per latent, the variance component of A's value in a one-way analysis of
variance of the entities' mean codes (a latent for single entities has none), times its decoder
row's squared norm. The paper and SAEBench learn the choice instead (a sparse linear classifier, a mask).

The null swaps as many random latents among those that fire at that token. Latents that do nothing
isolate perfectly, so cause is to be read against its null, and isolation only at a given cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.data import fable
from mechlab.errors import MechlabError, near
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.sae.codes import Codes, scatter
from mechlab.scores import Score, mean, score

NS = (1, 4, 16, 64)
PAIRS = 40
"""Pairs of held-out entities per template."""
_DRAWS = 400


@runtime_checkable
class Encoder(Protocol):
    """What is needed of a dictionary: sparse codes and decoder rows."""

    W_dec: Any

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Codes of each row."""


@dataclass(frozen=True)
class Disentanglement:
    """Cause and isolation by number of swapped latents.

    Attributes:
        latents: attribute → latents in the order chosen.
        cause, isolation: number of latents → mean over attributes, null: random latents.
        whole: cause when all latents are swapped: what the dictionary carries at this token at all.
        pairs: number of (attribute, prompt, pair of entities) behind cause; units are base entities.
    """

    latents: dict[str, Int[Tensor, "_latent"]]
    cause: dict[int, Score]
    isolation: dict[int, Score]
    whole: Score
    pairs: int


@dataclass(frozen=True)
class _Prompts:
    """Prompts of one template for pairs (base, source) of entities, and what the model should say.

    ``source`` holds the activations at ``position`` in the source prompts.
    """

    relation: str
    base: Int[Tensor, "pair pos"]
    source: Float[Tensor, "pair d_in"]
    answers: Int[Tensor, "2 pair"]
    entity: Int[Tensor, "pair"]
    position: int


@torch.no_grad()
def ravel(
    subject: Subject,
    site: str,
    sae: Encoder,
    *,
    position: Literal["entity", "last"] = "last",
    ns: Sequence[int] = NS,
    pairs: int = PAIRS,
    seed: int = 0,
) -> Disentanglement:
    """Cause and isolation of a dictionary at ``site`` on Fable's facts.

    Args:
        position: the token whose codes are swapped: the entity's, or the prompt's last. The bundled
            model reads entities off in its first block; beyond it their token matters no more.
        pairs: pairs of held-out entities per template (there are 24 templates).

    Raises MechlabError when the site does not exist, N is below 1, or the model does not know
    the facts.
    """
    if not ns or min(ns) < 1:
        raise MechlabError("number of swapped latents is out of range", list(ns), "at least 1")
    if position not in ("entity", "last"):
        raise MechlabError("unknown position", position, near(position, ("entity", "last")))
    entities = sorted({fact.subject for fact in fable.FACTS})
    Random(seed).shuffle(entities)
    cut = 2 * len(entities) // 3
    templates = _templates()
    chosen, live = {}, torch.zeros(len(sae.W_dec), dtype=torch.bool)
    for relation, examples in templates.items():
        means = torch.stack(
            [_entity_codes(subject, site, sae, example, entities[:cut], position) for example in examples]
        ).mean(0)
        values = [fable.fact_object(entity, relation) for entity in entities[:cut]]
        component = variance_component(means, values) * sae.W_dec.detach().float().cpu().norm(dim=1) ** 2
        order = component.argsort(descending=True)
        chosen[relation] = order[: int((component > 0).sum())]
        live |= (means != 0).any(0)
    rng = Random(seed)
    groups = [
        _pairs(subject, site, relation, example, entities[cut:], pairs, position, rng)
        for relation, examples in templates.items()
        for example in examples
    ]
    total = sum(len(group.entity) for group in groups)
    if total == 0:
        raise MechlabError("model does not know Fable's facts", subject.name, "use the bundled model fable")
    generator = torch.Generator().manual_seed(seed)
    pool = torch.nonzero(live)[:, 0]
    cause, isolation = {}, {}
    for n in ns:
        sets = {relation: latents[:n] for relation, latents in chosen.items()}
        random = {
            relation: pool[torch.randperm(len(pool), generator=generator)[: len(latents)]]
            for relation, latents in sets.items()
        }
        (nc, ni), (c, i) = (_rates(subject, site, sae, groups, each) for each in (random, sets))
        cause[n] = score(f"cause at {n}", c, mean, null=score("cause, random latents", nc, mean))
        isolation[n] = score(f"isolation at {n}", i, mean, null=score("isolation, random latents", ni, mean))
    every = torch.arange(len(sae.W_dec))
    totals: dict[int, np.ndarray] = {}
    for group in groups:
        _count(totals, subject, site, sae, group, every, wanted=1)
    whole = score("cause of all latents", np.stack(list(totals.values())), mean)
    return Disentanglement(chosen, cause, isolation, whole, total)


def variance_component(values: Float[Tensor, "entity d_sae"], group: Sequence[str]) -> Float[Tensor, "d_sae"]:
    """Estimated variance of the group means of each column, beyond what the spread within groups explains.

    (MS_between - MS_within) / n0 of a one-way analysis of variance, n0 = (N - Σ n_g² / N) / (G - 1)
    (Searle, Casella & McCulloch 1992, section 3.6); negative values become 0. MechlabError unless
    there are two groups and some group has two members.
    """
    names = sorted(set(group))
    member = torch.tensor([[name == each for name in group] for each in names], dtype=values.dtype)
    sizes, n = member.sum(1), len(group)
    if len(names) < 2 or n == len(names):
        raise MechlabError("groups cannot be compared", f"{len(names)} groups of {n}", "add entities")
    means = member @ values / sizes[:, None]
    between = (sizes[:, None] * (means - values.mean(0)) ** 2).sum(0) / (len(names) - 1)
    within = ((values - member.T @ means) ** 2).sum(0) / (n - len(names))
    n0 = (n - float((sizes**2).sum()) / n) / (len(names) - 1)
    return ((between - within) / n0).clamp_min(0)


def interchange(
    subject: Subject,
    site: str,
    sae: Encoder,
    base: Int[Tensor, "pair pos"],
    source: Float[Tensor, "pair d_in"],
    position: int,
    latents: Int[Tensor, "latent"],
) -> Float[Tensor, "pair d_vocab"]:
    """Last-token logits of prompts with the codes of some latents taken from elsewhere.

    Args:
        base: tokens of the prompts.
        source: activations at ``site`` whose codes are put in at ``position`` of the prompts.
        latents: which codes; the others, and the reconstruction's error, stay.
    """
    rows = sae.W_dec[latents.to(sae.W_dec.device)].float()

    def held(x: Tensor) -> Tensor:
        return scatter(sae.encode(x), len(sae.W_dec))[:, latents.to(x.device)]

    def swap(value: Tensor) -> Tensor:
        changed = value.clone()
        here = value[:, position].float()
        changed[:, position] = (here + (held(source.to(here)) - held(here)) @ rows).to(value.dtype)
        return changed

    with editing(subject, site, swap):
        return subject.logits(base)[:, -1].float()


def _rates(
    subject: Subject,
    site: str,
    sae: Encoder,
    groups: list[_Prompts],
    sets: dict[str, Int[Tensor, "_latent"]],
) -> tuple[Float[np.ndarray, "entity 2"], Float[np.ndarray, "other_entity 2"]]:
    """(successes, prompts) by base entity, of cause and of isolation."""
    cause: dict[int, np.ndarray] = {}
    isolation: dict[int, np.ndarray] = {}
    for attribute, latents in sets.items():
        for group in groups:
            asks = group.relation == attribute
            _count(cause if asks else isolation, subject, site, sae, group, latents, wanted=int(asks))
    return np.stack(list(cause.values())), np.stack(list(isolation.values()))


def _count(
    totals: dict[int, np.ndarray],
    subject: Subject,
    site: str,
    sae: Encoder,
    group: _Prompts,
    latents: Int[Tensor, "latent"],
    *,
    wanted: int,
) -> None:
    """Add to each base entity's (successes, prompts): does the prediction become answer ``wanted``?"""
    if len(group.entity) == 0:
        return
    logits = interchange(subject, site, sae, group.base, group.source, group.position, latents)
    hit = logits.argmax(1).cpu() == group.answers[wanted]
    for entity, right in zip(group.entity.tolist(), hit.tolist(), strict=True):
        total = totals.setdefault(entity, np.zeros(2))
        total += (float(right), 1.0)


def _templates() -> dict[str, list[fable.Example]]:
    """One example of every template of every relation, in a fixed order."""
    found: dict[str, dict[str, fable.Example]] = {relation: {} for relation in fable.RELATIONS}
    rng = Random(0)
    for _ in range(_DRAWS):
        example = fable.BEHAVIOURS["facts"](rng, "train")
        for relation, objects in fable.RELATIONS.items():
            if example.answer in objects:
                found[relation][example.template.source] = example
    return {relation: [examples[key] for key in sorted(examples)] for relation, examples in found.items()}


def _prompt(subject: Subject, example: fable.Example, entity: str) -> Int[Tensor, "pos"]:
    words = example.template.tokens({**example.slots, "Entity": entity})
    return subject.tokens(fable.render(words[: example.template.slots["answer"]]))


def _place(subject: Subject, example: fable.Example, position: str) -> int:
    """Column of the token to swap, in prompts of this template."""
    slot = example.template.slots["Entity" if position == "entity" else "answer"]
    return slot + (subject.bos is not None) - (position == "last")


def _entity_codes(
    subject: Subject,
    site: str,
    sae: Encoder,
    example: fable.Example,
    entities: list[str],
    position: str,
) -> Float[Tensor, "entity d_sae"]:
    tokens = _stack(subject, [_prompt(subject, example, entity) for entity in entities])
    x = read_sites(subject, tokens, [site])[site][:, _place(subject, example, position)]
    return scatter(sae.encode(x.float()), len(sae.W_dec)).detach().cpu()


def _pairs(
    subject: Subject,
    site: str,
    relation: str,
    example: fable.Example,
    entities: list[str],
    count: int,
    position: str,
    rng: Random,
) -> _Prompts:
    """Random pairs of entities whose values differ and whom the model, untouched, answers right."""
    drawn: list[tuple[str, str]] = []
    while len(drawn) < count:
        base, source = rng.sample(entities, 2)
        if fable.fact_object(base, relation) != fable.fact_object(source, relation):
            drawn.append((base, source))
    vocabulary = subject.tokenizer.get_vocab()
    sides = list(zip(*drawn, strict=True))
    asked, given = (_stack(subject, [_prompt(subject, example, each) for each in side]) for side in sides)
    answers = torch.tensor(
        [[vocabulary.get(fable.fact_object(each, relation), -1) for each in side] for side in sides]
    )
    said = torch.stack([subject.logits(tokens)[:, -1].argmax(1).cpu() for tokens in (asked, given)])
    right = (said == answers).all(0)
    place = _place(subject, example, position)
    values = read_sites(subject, given, [site])[site][:, place].float()
    entity = torch.tensor([entities.index(each) for each in sides[0]])
    here = right.to(values.device)
    return _Prompts(relation, asked[right], values[here], answers[:, right], entity[right], place)


def _stack(subject: Subject, rows: list[Tensor]) -> Int[Tensor, "row pos"]:
    if len({len(row) for row in rows}) > 1:
        raise MechlabError("tokenizer splits Fable's entities", subject.name, "use the bundled model fable")
    return torch.stack(rows)
