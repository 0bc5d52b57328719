"""Sparse probing: how well do one, two or five latents tell a concept?

The k latents with the largest absolute difference of mean activation between rows with the concept
and rows without are chosen on train documents, a logistic regression on them is fitted there, and
scored on held-out documents (Gurnee et al. 2023, arXiv 2305.01610; SAEBench, Karvonen et al. 2025,
arXiv 2503.09532). Both sides are balanced by subsampling the larger class, as SAEBench does, to at
most ``MOST`` rows; rows are tokens here, where SAEBench takes means over texts.

Beside it stand the dense probe on the activations themselves, and the same sparse probe on a
dictionary of random directions with as many active latents. The null of each repeats the whole
procedure with labels shuffled among the drawn rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.codes import Codes
from mechlab.sae.metrics.logistic import fit_logistic
from mechlab.sae.metrics.rows import (
    balanced,
    columns,
    mean_difference,
    random_codes,
    scorable,
    select,
    train_rows,
)
from mechlab.sae.metrics.verdicts import Figures, Verdicts

MOST = 4000


@dataclass(frozen=True)
class SparseProbing:
    """Held-out figures of probes, averaged over concepts.

    Attributes:
        concepts: column of the labels → its column in the figures' verdicts, in order.
        unscored: column of the labels → why it was left out.
        latents: k → the latents chosen for each scored concept.
        sparse: k → figures of the probe on k latents, null: shuffled labels.
        random: k → the same on random directions.
        dense: figures of the probe on the activations.
    """

    concepts: tuple[int, ...]
    unscored: dict[int, str]
    latents: dict[int, Int[Tensor, "concept _k"]]
    sparse: dict[int, Figures]
    random: dict[int, Figures]
    dense: Figures


@dataclass(frozen=True)
class _Draw:
    """Rows drawn for one concept, and its labels on them."""

    train: Int[Tensor, "train"]
    test: Int[Tensor, "test"]
    y_train: Bool[Tensor, "train"]
    y_test: Bool[Tensor, "test"]

    def shuffled(self, generator: torch.Generator) -> _Draw:
        y_train, y_test = (
            y[torch.randperm(len(y), generator=generator).to(y.device)] for y in (self.y_train, self.y_test)
        )
        return _Draw(self.train, self.test, y_train, y_test)


@torch.no_grad()
def sparse_probing(
    codes: Codes,
    x: Float[Tensor, "row d_in"],
    labels: Bool[Tensor, "row concept"],
    documents: Int[Tensor, "row"],
    d_sae: int,
    *,
    ks: Sequence[int] = (1, 2, 5),
    seed: int = 0,
) -> SparseProbing:
    """Sparse probes of every concept; see the module's docstring.

    Args:
        x: the activations that ``codes`` encode.
        seed: decides the split of documents, the balanced rows, the random directions.

    Raises MechlabError when k is out of range, or no concept has enough rows.
    """
    if not ks or min(ks) < 1 or max(ks) > d_sae:
        raise MechlabError("k is out of range", list(ks), f"between 1 and d_sae = {d_sae}")
    train = train_rows(documents, seed)
    kept, unscored = scorable(labels, train)
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for concept in kept:
        y = labels[:, concept]
        rows = [balanced(y, side, MOST, generator) for side in (train, ~train)]
        draws.append(_Draw(rows[0], rows[1], y[rows[0]], y[rows[1]]))
    nulls = [draw.shuffled(generator) for draw in draws]
    random = random_codes(x, codes, d_sae, seed)
    latents, sparse, control = {}, {}, {}
    for k in ks:
        latents[k], sparse[k] = _sparse_figures(codes, draws, nulls, documents, d_sae, k)
        control[k] = _sparse_figures(random, draws, nulls, documents, d_sae, k)[1]
    return SparseProbing(
        tuple(kept), unscored, latents, sparse, control, _dense_figures(x, draws, nulls, documents)
    )


def _sparse_figures(
    codes: Codes,
    draws: list[_Draw],
    nulls: list[_Draw],
    documents: Int[Tensor, "row"],
    d_sae: int,
    k: int,
) -> tuple[Int[Tensor, "concept k"], Figures]:
    outcomes, chosen = [], []
    for group in (draws, nulls):
        scores = []
        for draw in group:
            part = select(codes, draw.train)
            latents = mean_difference(part, draw.y_train, d_sae).abs().topk(k).indices
            probe = fit_logistic(columns(part, latents), draw.y_train)
            scores.append(probe.score(columns(select(codes, draw.test), latents)))
            chosen.append(latents)
        outcomes.append(_verdicts(group, scores, documents))
    return torch.stack(chosen[: len(draws)]), Figures.of(*outcomes)


def _dense_figures(
    x: Float[Tensor, "row d_in"], draws: list[_Draw], nulls: list[_Draw], documents: Int[Tensor, "row"]
) -> Figures:
    outcomes = []
    for group in (draws, nulls):
        scores = [fit_logistic(x[draw.train], draw.y_train).score(x[draw.test]) for draw in group]
        outcomes.append(_verdicts(group, scores, documents))
    return Figures.of(*outcomes)


def _verdicts(draws: list[_Draw], scores: list[Tensor], documents: Int[Tensor, "row"]) -> Verdicts:
    shape = len(documents), len(draws)
    said = torch.zeros(shape, device=documents.device)
    actual, counted = torch.zeros_like(said, dtype=torch.bool), torch.zeros_like(said, dtype=torch.bool)
    for column, (draw, score) in enumerate(zip(draws, scores, strict=True)):
        said[draw.test, column] = score.to(said)
        actual[draw.test, column] = draw.y_test
        counted[draw.test, column] = True
    used = counted.any(1)
    return Verdicts(said[used], actual[used], counted[used], documents[used])
