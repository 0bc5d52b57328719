"""Removing a concept by ablating its latents: targeted probe perturbation and spurious correlation.

An audit (arXiv 2605.18229) found both TPP and SCR unreliable as measures of a dictionary: read
them beside sparse probing, not alone.

Definitions of SAEBench (Karvonen et al. 2025, arXiv 2503.09532; code of sae-bench 0.6.0), after
Karvonen et al. 2024 (arXiv 2411.18895) and Marks et al. 2024 (arXiv 2403.19647), on tokens where
SAEBench takes means over texts. Probes are fitted on activations. A latent's effect on a probe w
is the difference of its mean activation between rows with and without the concept, times
W_dec[i] · w; the N latents with the largest effect are set to zero, the reconstruction error being
kept, so an activation x becomes x - sum of code_i W_dec[i] over them.

* TPP (differences clamped at 0; latents with effect above 0): the drop of the concept's own
  probe's held-out accuracy, less the mean drop of the other concepts' probes; averaged over concepts.
* SCR (absolute effects): a probe for one concept is fitted where a second, spurious concept always
  comes with it; the latents of the spurious one are ablated. (A_ablated - A_biased) /
  (A_clean - A_biased), accuracies on held-out rows with all four combinations equally common; A_clean
  is that of a probe fitted on such rows. Undefined (NaN) where A_clean - A_biased < 0.001.

The null ablates as many random latents among those that fire; its chance is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.codes import Codes
from mechlab.sae.metrics.logistic import Probe, fit_logistic
from mechlab.sae.metrics.probing import MOST
from mechlab.sae.metrics.rows import FEWEST, balanced, mean_difference, scorable, select, train_rows
from mechlab.scores import Score, Statistic, ratio, score

NS = (2, 5, 10, 20, 50, 100, 500)
"""Numbers of ablated latents that SAEBench reports."""
_LEAST_BIAS = 0.001


@dataclass(frozen=True)
class TargetedRemoval:
    """TPP by number of ablated latents.

    Attributes:
        concepts, unscored: which columns of the labels were scored, and why the others were not.
        accuracy: mean held-out accuracy of the probes before anything is ablated.
        tpp: N → intended drop less unintended, null: random latents.
        intended, unintended: N → the two drops of accuracy.
    """

    concepts: tuple[int, ...]
    unscored: dict[int, str]
    accuracy: Score
    tpp: dict[int, Score]
    intended: dict[int, Score]
    unintended: dict[int, Score]


@dataclass(frozen=True)
class SpuriousRemoval:
    """SCR by number of ablated latents.

    Attributes:
        clean, biased: held-out accuracy of the probe fitted without and with the spurious concept.
        scr: N → share of the lost accuracy that ablation wins back, null: random latents.
    """

    clean: Score
    biased: Score
    scr: dict[int, Score]


@torch.no_grad()
def targeted_removal(
    codes: Codes,
    x: Float[Tensor, "row d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    labels: Bool[Tensor, "row concept"],
    documents: Int[Tensor, "row"],
    *,
    ns: Sequence[int] = NS,
    seed: int = 0,
) -> TargetedRemoval:
    """TPP over all concepts; see the module's docstring. Work grows with their number squared.

    Raises MechlabError when N is below 1 or fewer than two concepts have enough rows.
    """
    _check(ns)
    train = train_rows(documents, seed)
    kept, unscored = scorable(labels, train)
    if len(kept) < 2:
        raise MechlabError("TPP compares concepts", f"{len(kept)} with enough rows", "give two or more")
    generator = torch.Generator().manual_seed(seed)
    live = torch.nonzero(select(codes, train).fired(len(W_dec)))[:, 0]
    probes, tests, ranked = [], [], []
    for concept in kept:
        y = labels[:, concept]
        rows = balanced(y, train, MOST, generator)
        probes.append(fit_logistic(x[rows], y[rows]))
        difference = mean_difference(select(codes, rows), y[rows], len(W_dec)).relu()
        ranked.append(_ranked(difference * (W_dec @ probes[-1].weight)))
        tests.append(balanced(y, ~train, MOST, generator))
    aligned = W_dec @ torch.stack([probe.weight for probe in probes]).T
    numbers = torch.unique(documents[~train])
    places = [torch.searchsorted(numbers, documents[rows]) for rows in tests]
    clean = torch.zeros(len(numbers), len(kept), 2, dtype=torch.double, device=x.device)
    for j, rows in enumerate(tests):
        right = (probes[j].score(x[rows]) > 0) == labels[rows, kept[j]]
        each = torch.stack([right.double(), torch.ones_like(right, dtype=torch.double)], dim=1)
        clean[:, j].index_add_(0, places[j], each)

    def after(sets: list[Tensor]) -> Float[np.ndarray, "document column"]:
        """Totals: right answers and rows of every probe, then right answers of probe j under set i."""
        held = torch.zeros(len(sets), len(W_dec), dtype=torch.bool, device=x.device)
        for i, latents in enumerate(sets):
            held[i, latents] = True
        totals = torch.zeros(len(numbers), len(sets), len(kept), dtype=torch.double, device=x.device)
        for j, rows in enumerate(tests):
            part = select(codes, rows)
            logits = probes[j].score(x[rows])
            for i in range(len(sets)):
                said = logits - _removed(part, held[i], aligned[:, j]) > 0
                totals[:, i, j].index_add_(0, places[j], (said == labels[rows, kept[j]]).double())
        parts = (clean[..., 0], clean[..., 1], totals.flatten(1))
        return torch.cat(parts, dim=1).cpu().numpy()

    n_concepts = len(kept)
    tpp, intended, unintended = {}, {}, {}
    for n in ns:
        sums = after([latents[:n] for latents in ranked])
        random = after([_draw(live, len(latents[:n]), generator) for latents in ranked])
        null = score(f"tpp of {n} random latents", random, _drops(n_concepts, "tpp"))
        tpp[n] = score(f"tpp at {n}", sums, _drops(n_concepts, "tpp"), null=null, chance=0.0)
        intended[n] = score(f"intended drop at {n}", sums, _drops(n_concepts, "intended"))
        unintended[n] = score(f"unintended drop at {n}", sums, _drops(n_concepts, "unintended"))
    accuracy = score("accuracy", clean.flatten(1).cpu().numpy(), _mean_accuracy)
    return TargetedRemoval(tuple(kept), unscored, accuracy, tpp, intended, unintended)


@torch.no_grad()
def spurious_removal(
    codes: Codes,
    x: Float[Tensor, "row d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    wanted: Bool[Tensor, "row"],
    spurious: Bool[Tensor, "row"],
    documents: Int[Tensor, "row"],
    *,
    ns: Sequence[int] = NS,
    seed: int = 0,
) -> SpuriousRemoval:
    """SCR of one pair of concepts in one direction; see the module's docstring.

    SAEBench takes, of a pair's two directions, the one whose biased probe is worse.

    Raises MechlabError when N is below 1, or one of the four combinations has too few rows.
    """
    _check(ns)
    train = train_rows(documents, seed)
    generator = torch.Generator().manual_seed(seed)
    both = [_four_cells(wanted, spurious, side, generator) for side in (train, ~train)]
    fit, test = both[0], both[1]
    agree = fit[wanted[fit] == spurious[fit]]
    clean, biased = (fit_logistic(x[rows], wanted[rows]) for rows in (fit, agree))
    other = fit_logistic(x[fit], spurious[fit])
    difference = mean_difference(select(codes, fit), spurious[fit], len(W_dec))
    ranked = _ranked((difference * (W_dec @ other.weight)).abs())
    live = torch.nonzero(select(codes, train).fired(len(W_dec)))[:, 0]
    part, aligned, answers = select(codes, test), W_dec @ biased.weight, wanted[test]
    numbers, place = torch.unique(documents[test], return_inverse=True)

    def right(probe: Probe, ablated: Tensor | None = None) -> Tensor:
        logits = probe.score(x[test])
        if ablated is not None:
            held = torch.zeros(len(W_dec), dtype=torch.bool, device=x.device)
            held[ablated] = True
            logits = logits - _removed(part, held, aligned)
        return ((logits > 0) == answers).double()

    def sums(*each: Tensor) -> Float[np.ndarray, "document column"]:
        columns = torch.stack(each, dim=1)
        return columns.new_zeros(len(numbers), len(each)).index_add(0, place, columns).cpu().numpy()

    ones = torch.ones(len(test), dtype=torch.double, device=x.device)
    scr = {}
    for n in ns:
        random = _draw(live, len(ranked[:n]), generator)
        found, control = (
            sums(right(biased, each), right(biased), right(clean), ones) for each in (ranked[:n], random)
        )
        null = score(f"scr of {n} random latents", control, _won_back)
        scr[n] = score(f"scr at {n}", found, _won_back, null=null, chance=0.0)
    return SpuriousRemoval(
        score("accuracy, clean", sums(right(clean), ones), _mean_accuracy),
        score("accuracy, biased", sums(right(biased), ones), _mean_accuracy),
        scr,
    )


def _removed(
    codes: Codes, held: Bool[Tensor, "d_sae"], aligned: Float[Tensor, "d_sae"]
) -> Float[Tensor, "row"]:
    """What the marked latents put on a probe's logit, row by row."""
    return (codes.values * (aligned * held)[codes.indices]).sum(1)


def _ranked(effects: Float[Tensor, "d_sae"]) -> Int[Tensor, "latent"]:
    """Latents with an effect above 0, the largest first."""
    order = effects.argsort(descending=True)
    return order[: int((effects > 0).sum())]


def _draw(live: Int[Tensor, "live"], n: int, generator: torch.Generator) -> Int[Tensor, "drawn"]:
    return live[torch.randperm(len(live), generator=generator).to(live.device)[:n]]


def _four_cells(
    a: Bool[Tensor, "row"], b: Bool[Tensor, "row"], pool: Bool[Tensor, "row"], generator: torch.Generator
) -> Int[Tensor, "drawn"]:
    """Rows with every combination of two labels equally common."""
    cells = [torch.nonzero(pool & (a == p) & (b == q))[:, 0] for p in (True, False) for q in (True, False)]
    each = min(*map(len, cells), MOST // 4)
    if each < FEWEST:
        raise MechlabError("combination of the two concepts is too rare", f"{each} rows", "add documents")
    drawn = [rows[torch.randperm(len(rows), generator=generator).to(rows.device)[:each]] for rows in cells]
    return torch.cat(drawn)


def _check(ns: Sequence[int]) -> None:
    if not ns or min(ns) < 1:
        raise MechlabError("number of ablated latents is out of range", list(ns), "at least 1")


def _drops(concepts: int, which: str) -> Statistic:
    """A statistic over the columns of ``after``: one of "tpp", "intended", "unintended"."""

    def statistic(totals: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, "resample"]:
        right, rows = totals[:, :concepts], totals[:, concepts : 2 * concepts]
        after = totals[:, 2 * concepts :].reshape(-1, concepts, concepts)
        drops = ratio(right, rows)[:, None] - ratio(after, np.broadcast_to(rows[:, None], after.shape))
        own = np.einsum("rii->r", drops)
        others: np.ndarray = (drops.sum((1, 2)) - own) / (concepts * (concepts - 1))
        intended: np.ndarray = own / concepts
        by_name: dict[str, np.ndarray] = {
            "tpp": intended - others,
            "intended": intended,
            "unintended": others,
        }
        return by_name[which]

    return statistic


def _mean_accuracy(totals: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, "resample"]:
    accuracy: np.ndarray = ratio(totals[:, ::2], totals[:, 1::2]).mean(1)
    return accuracy


def _won_back(totals: Float[np.ndarray, "resample 4"]) -> Float[np.ndarray, "resample"]:
    """Over (right ablated, right biased, right clean, rows)."""
    lost = totals[:, 2] - totals[:, 1]
    return ratio(totals[:, 0] - totals[:, 1], np.where(lost < _LEAST_BIAS * totals[:, 3], 0.0, lost))
