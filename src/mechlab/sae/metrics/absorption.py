"""Feature absorption: does a concept's latent fall silent where a more specific one fires?

Definitions of SAEBench (Karvonen et al. 2025, arXiv 2503.09532; code of sae-bench 0.6.0), after
Chanin et al. 2024 (arXiv 2409.14507). For each concept:

* a dense logistic probe gives the unit direction d; contribution of latent i on a row:
  c_i = code_i · (W_dec[i] · d); total projection t = x · d;
* the *main* latents are the first k by mean difference, k growing to at most 10 while the k-sparse
  probe's F1 rises by more than 0.03;
* on held-out rows that have the concept and that the dense probe gets right:
  - *full* absorption: no main latent fires, the latent with the largest contribution has
    cos(W_dec[i], d) ≥ 0.025, and that contribution is ≥ 0.4 t;
  - *fraction*: A = sum of the three largest positive contributions of latents that are not main
    and have cos ≥ 0.1; M = sum of main contributions. 0 when M ≥ t or A < 0.4 t; 1 when M ≤ 0;
    else a / (a + M) with a = min(A, t - M).

Both are averaged over rows, then over concepts. SAEBench's concept is the first letter of a word
and it ranks latents by an L1 probe with F1 on test words; here latents are ranked by mean difference
and k is chosen on train documents. It multiplies codes by the cosine, for unit decoder rows; here
decoder rows keep their norm, which is the same where it is 1.

The null deals the decoder's alignments with d to latents at random. Theory gives it no chance
level; it says how much absorption the thresholds report when alignment means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.sae.codes import Codes
from mechlab.sae.metrics.logistic import Probe, fit_logistic
from mechlab.sae.metrics.probing import MOST
from mechlab.sae.metrics.rows import (
    balanced,
    columns,
    mean_difference,
    scorable,
    select,
    train_rows,
)
from mechlab.sae.metrics.verdicts import mean_over_concepts
from mechlab.scores import Score, mean

MAX_K, F1_JUMP = 10, 0.03
FULL_COSINE, FRACTION_COSINE, SHARE, MAX_ABSORBERS = 0.025, 0.1, 0.4, 3
_SILENT = 1e-8


class RowAbsorption(NamedTuple):
    """Absorption of each row: whether it is full, and the fraction in 0 to 1."""

    full: Bool[Tensor, "row"]
    fraction: Float[Tensor, "row"]


@dataclass(frozen=True)
class Absorption:
    """Absorption of concepts.

    Attributes:
        concepts, unscored: which columns of the labels were scored, and why the others were not.
        main: main latents of each scored concept.
        full, fraction: mean over concepts of the rate and of the fraction. A concept whose probe is
            right on no held-out row is left out of the mean.
        full_by_concept, fraction_by_concept: the same for each scored concept; NaN where undefined.
    """

    concepts: tuple[int, ...]
    unscored: dict[int, str]
    main: list[Int[Tensor, "_k"]]
    full: Score
    fraction: Score
    full_by_concept: Float[Tensor, "concept"]
    fraction_by_concept: Float[Tensor, "concept"]


@torch.no_grad()
def absorption(
    codes: Codes,
    x: Float[Tensor, "row d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    labels: Bool[Tensor, "row concept"],
    documents: Int[Tensor, "row"],
    *,
    seed: int = 0,
) -> Absorption:
    """Absorption of every concept; see the module's docstring.

    Raises MechlabError when no concept has enough rows.
    """
    train = train_rows(documents, seed)
    kept, unscored = scorable(labels, train)
    generator = torch.Generator().manual_seed(seed)
    norms = W_dec.norm(dim=1)
    numbers = torch.unique(documents[~train])
    main: list[Tensor] = []
    # Columns: rows, full, fraction; of the dictionary and of the null.
    totals = torch.zeros(2, len(numbers), len(kept), 3, dtype=torch.double, device=x.device)
    for column, concept in enumerate(kept):
        y = labels[:, concept]
        rows = balanced(y, train, MOST, generator)
        probe = fit_logistic(x[rows], y[rows])
        main.append(main_latents(select(codes, rows), y[rows], len(W_dec)))
        right = torch.nonzero(~train & y & (probe.score(x) > 0))[:, 0]
        direction = probe.weight / probe.weight.norm()
        aligned = W_dec @ direction
        cosine = aligned / norms.clamp_min(1e-12)
        deal = torch.randperm(len(W_dec), generator=generator).to(x.device)
        for which, order in enumerate((slice(None), deal)):
            found = row_absorption(
                select(codes, right), x[right] @ direction, aligned[order], cosine[order], main[-1]
            )
            each = torch.stack([torch.ones_like(found.fraction), found.full.to(x), found.fraction], dim=1)
            place = torch.searchsorted(numbers, documents[right])
            totals[which, :, column].index_add_(0, place, each.double())
    full, fraction = (_score(name, totals, at) for at, name in ((1, "full absorption"), (2, "absorption")))
    by_concept = totals[0].sum(0)
    return Absorption(
        tuple(kept),
        unscored,
        main,
        full,
        fraction,
        (by_concept[:, 1] / by_concept[:, 0]).float(),
        (by_concept[:, 2] / by_concept[:, 0]).float(),
    )


def main_latents(codes: Codes, label: Bool[Tensor, "row"], d_sae: int) -> Int[Tensor, "k"]:
    """The latents a concept is split over: see the module's docstring. At least one."""
    ranked = mean_difference(codes, label, d_sae).topk(min(MAX_K, d_sae)).indices
    strengths = columns(codes, ranked)
    best, k = -1.0, 0
    while k < len(ranked):
        inputs = strengths[:, : k + 1]
        f1 = _f1(fit_logistic(inputs, label), inputs, label)
        if f1 <= best + F1_JUMP:
            break
        best, k = f1, k + 1
    return ranked[:k]


def row_absorption(
    codes: Codes,
    projection: Float[Tensor, "row"],
    aligned: Float[Tensor, "d_sae"],
    cosine: Float[Tensor, "d_sae"],
    main: Int[Tensor, "k"],
) -> RowAbsorption:
    """Absorption of each row by the module's formulas.

    Args:
        projection: t, the activation along the probe's unit direction.
        aligned: W_dec[i] · d of each latent; cosine: the same over the norm of W_dec[i].
        main: the main latents.
    """
    given = codes.values * aligned[codes.indices]
    is_main = torch.isin(codes.indices, main)
    fires = (is_main & (codes.values.abs() >= _SILENT)).any(1)
    top = given.max(1)
    top_cosine = cosine[codes.indices.gather(1, top.indices[:, None])[:, 0]]
    # A latent that does not fire contributes 0, so a top that is not positive carries no share.
    full = (
        ~fires
        & (top_cosine >= FULL_COSINE)
        & (projection > 0)
        & (top.values > 0)
        & (top.values >= SHARE * projection)
    )
    from_main = (given * is_main).sum(1)
    may_absorb = ~is_main & (cosine[codes.indices] >= FRACTION_COSINE)
    absorbers = (given * may_absorb).relu().topk(min(MAX_ABSORBERS, given.shape[1])).values.sum(1)
    absorbed = torch.minimum(absorbers, projection - from_main)
    fraction = (absorbed / (absorbed + from_main).clamp_min(1e-12)).clamp(0, 1)
    fraction = torch.where(from_main <= 0, 1.0, fraction)
    none = (from_main >= projection) | (absorbers < SHARE * projection) | (projection <= 0)
    return RowAbsorption(full, fraction.masked_fill(none, 0))


def _f1(probe: Probe, x: Float[Tensor, "row k"], label: Bool[Tensor, "row"]) -> float:
    said = probe.score(x) > 0
    return float(2 * (said & label).sum() / (said.sum() + label.sum()))


def _score(name: str, totals: Float[Tensor, "2 document concept 3"], column: int) -> Score:
    sums: np.ndarray = totals[..., [column, 0]].cpu().numpy()
    null = mean_over_concepts(f"{name}, alignments dealt at random", sums[1], mean)
    return mean_over_concepts(name, sums[0], mean, null)
