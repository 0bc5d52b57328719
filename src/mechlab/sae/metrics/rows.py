"""Rows of labelled tokens: made from Fable, split by document, balanced, and their codes as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.data import fable
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject
from mechlab.sae.codes import Codes

TRAIN_SHARE = 0.5
"""Share of the documents that probes, thresholds and latents are chosen on."""
FEWEST = 10
"""Rows with a concept, and rows without, that either side of the split must hold."""


@dataclass(frozen=True)
class ConceptRows:
    """One row per token, in document order; BOS is not among them.

    Attributes:
        activations: site → ``[row dim]``, float32.
        tokens: token id of each row.
        labels: which concepts the token carries ``[row concept]``.
        documents: number of the document of each row.
        concepts: names of the columns of ``labels``.
    """

    activations: dict[str, Float[Tensor, "row _dim"]]
    tokens: Int[Tensor, "row"]
    labels: Bool[Tensor, "row concept"]
    documents: Int[Tensor, "row"]
    concepts: tuple[str, ...]


def concept_rows(
    subject: Subject,
    sites: str | Sequence[str],
    *,
    split: str = "validation",
    documents: int = 200,
    start: int = 0,
    seed: int = 0,
) -> ConceptRows:
    """Activations at ``sites`` on Fable's documents, with Fable's labels token by token.

    Args:
        split, start, documents, seed: which documents of which corpus, as in ``fable.documents``.

    Raises MechlabError when a site or document does not exist, or the model's tokenizer does not
    take Fable's words as single tokens.
    """
    names = [sites] if isinstance(sites, str) else list(sites)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    tokens, labels, numbers = [], [], []
    for document in fable.documents(split, seed=seed, count=documents, start=start):
        ids = subject.tokens(document.text)
        skip = 0 if subject.bos is None else 1
        said = subject.tokenizer.convert_ids_to_tokens(ids[skip:].tolist())
        if tuple(said) != document.tokens:
            raise MechlabError(
                "tokenizer does not take Fable's words as they are, so labels do not align",
                subject.name,
                "use the bundled model fable",
            )
        for name, value in read_sites(subject, ids[None], names).items():
            parts[name].append(value[0, skip:].float().cpu())
        tokens.append(ids[skip:])
        labels.append(torch.from_numpy(document.concepts))
        numbers.append(torch.full((len(ids) - skip,), document.id))
    return ConceptRows(
        {name: torch.cat(values) for name, values in parts.items()},
        torch.cat(tokens),
        torch.cat(labels),
        torch.cat(numbers),
        tuple(concept.name for concept in fable.CONCEPTS),
    )


def train_rows(documents: Int[Tensor, "row"], seed: int = 0) -> Bool[Tensor, "row"]:
    """True on the rows of a random half of the documents; the others are held out.

    MechlabError when there are fewer than two documents.
    """
    numbers = np.unique(documents.cpu().numpy())
    if len(numbers) < 2:
        raise MechlabError("rows cannot be split by document", f"{len(numbers)} documents", "add text")
    count = min(max(round(TRAIN_SHARE * len(numbers)), 1), len(numbers) - 1)
    chosen = np.random.default_rng(seed).permutation(numbers)[:count]
    return torch.isin(documents, torch.from_numpy(chosen).to(documents))


def scorable(
    labels: Bool[Tensor, "row concept"], train: Bool[Tensor, "row"]
) -> tuple[list[int], dict[int, str]]:
    """Concepts with enough rows of either class on both sides, and why the others are left out.

    MechlabError when no concept is left.
    """
    kept, unscored = [], {}
    for concept in range(labels.shape[1]):
        column = labels[:, concept]
        sides = {"train": column[train], "held-out": column[~train]}
        fewest = {side: int(min(y.sum(), (~y).sum())) for side, y in sides.items()}
        short = [f"{n} {side} rows" for side, n in fewest.items() if n < FEWEST]
        if short:
            unscored[concept] = f"rarer class has only {' and '.join(short)}"
        else:
            kept.append(concept)
    if not kept:
        raise MechlabError("no concept can be scored", unscored.get(0), "add documents")
    return kept, unscored


def balanced(
    label: Bool[Tensor, "row"], pool: Bool[Tensor, "row"], most: int, generator: torch.Generator
) -> Int[Tensor, "drawn"]:
    """Row numbers drawn from ``pool``, as many with the label as without, at most ``most`` in all.

    The larger class is subsampled, as SAEBench does (arXiv 2503.09532).
    """
    classes = [torch.nonzero(pool & label)[:, 0], torch.nonzero(pool & ~label)[:, 0]]
    each = min(len(classes[0]), len(classes[1]), most // 2)
    drawn = [rows[torch.randperm(len(rows), generator=generator).to(rows.device)[:each]] for rows in classes]
    return torch.cat(drawn)


def select(codes: Codes, rows: Tensor) -> Codes:
    """Codes of the rows that a mask or row numbers name."""
    return Codes(codes.values[rows], codes.indices[rows])


def columns(codes: Codes, latents: Int[Tensor, "latent"]) -> Float[Tensor, "row latent"]:
    """Activations of a few latents on every row."""
    found = [torch.where(codes.indices == latent, codes.values, 0).sum(1) for latent in latents]
    return torch.stack(found, dim=1)


def mean_difference(codes: Codes, label: Bool[Tensor, "row"], d_sae: int) -> Float[Tensor, "d_sae"]:
    """Mean activation of every latent on rows with the label, less that on rows without."""
    sign = torch.where(label, 1 / label.sum(), -1 / (~label).sum())
    weighted = codes.values * sign[:, None]
    total = codes.values.new_zeros(d_sae)
    return total.index_add(0, codes.indices.flatten(), weighted.flatten())


def random_codes(x: Float[Tensor, "row d_in"], like: Codes, d_sae: int, seed: int = 0) -> Codes:
    """Codes of a dictionary of random unit directions: the control that any dictionary must beat.

    Each row keeps as many active latents as it has in ``like`` (fewer where fewer projections of
    the centred activation are positive).
    """
    directions = random_directions(d_sae, x.shape[1], seed).to(x).T
    k = min(like.values.shape[1], d_sae)
    mean = x.mean(0)
    parts = [((rows - mean) @ directions).topk(k, dim=1) for rows in torch.split(x, 8192)]
    values = torch.cat([part.values for part in parts]).relu()
    wanted = like.l0()[:, None]
    values = values.masked_fill(torch.arange(k, device=x.device) >= wanted, 0)
    return Codes(values, torch.cat([part.indices for part in parts]))


def random_directions(n: int, d: int, seed: int = 0) -> Float[Tensor, "n d"]:
    """Random unit rows."""
    # Not torch's generator: dictionaries are initialised by it, perhaps with the same seed.
    rows: Tensor = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d))).float()
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return unit
