"""What probes say about held-out rows, and their scores with intervals over documents.

Accuracy, F1 and AUROC of a concept are functions of totals over documents, and so is their mean
over concepts; documents are resampled once for all concepts together. AUROC counts scores in at
most ``BINS`` bins of equal numbers of rows, ties counting half: exact for that many distinct
scores, and nearer to 1/2 by less than 0.01 otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.scores import Score, Statistic, ratio, score

BINS = 32


@dataclass(frozen=True)
class Verdicts:
    """Scores of several probes on held-out rows.

    Attributes:
        scores: of each row by each concept's probe; above 0 means "has the concept".
        actual: the labels.
        counted: which rows belong to the concept's evaluation (a balanced subsample, or all).
        documents: document of each row.
    """

    scores: Float[Tensor, "row concept"]
    actual: Bool[Tensor, "row concept"]
    counted: Bool[Tensor, "row concept"]
    documents: Int[Tensor, "row"]

    def accuracy(
        self, concept: int | None = None, null: Score | None = None, chance: float | None = None
    ) -> Score:
        """Share of right answers, of one concept (column number) or averaged over all."""
        return mean_over_concepts("accuracy", self._cells(concept), _accuracy, null, chance)

    def f1(self, concept: int | None = None, null: Score | None = None, chance: float | None = None) -> Score:
        """2 TP / (2 TP + FP + FN), of one concept or averaged over all that are defined."""
        return mean_over_concepts("f1", self._cells(concept), _f1, null, chance)

    def f1_of_chance(self) -> float:
        """Mean F1 of answers that are as often "yes" as these but know nothing: 2 p q / (p + q)."""
        tp, fp, fn, tn = np.moveaxis(self._cells(None).sum(0), -1, 0)
        n = tp + fp + fn + tn
        p, q = (tp + fn) / n, (tp + fp) / n
        return float(np.nanmean(ratio(2 * p * q, p + q)))

    def auroc(self, concept: int | None = None, null: Score | None = None) -> Score:
        """Chance that a row with the concept scores higher than one without; see the module."""
        wanted = range(self.scores.shape[1]) if concept is None else [concept]
        unique, place = np.unique(self.documents.cpu().numpy(), return_inverse=True)
        binned = np.zeros((len(unique), len(wanted), 2 * BINS))
        for column, each in enumerate(wanted):
            counted = self.counted[:, each].cpu().numpy()
            label = self.actual[:, each].cpu().numpy()[counted]
            bins = _bins(self.scores[:, each].double().cpu().numpy()[counted])
            np.add.at(binned[:, column], (place[counted], bins + BINS * ~label), 1)
        return mean_over_concepts("auroc", binned, _auroc, null, 0.5)

    def _cells(self, concept: int | None) -> Float[np.ndarray, "document concept 4"]:
        """Totals (TP, FP, FN, TN) per document."""
        keep = slice(None) if concept is None else slice(concept, concept + 1)
        said, is_so, counted = (self.scores > 0)[:, keep], self.actual[:, keep], self.counted[:, keep]
        unique, place = torch.unique(self.documents, return_inverse=True)
        cells = said.new_zeros((len(unique), said.shape[1], 4), dtype=torch.double)
        for column, each in enumerate((said & is_so, said & ~is_so, ~said & is_so, ~said & ~is_so)):
            cells[..., column].index_add_(0, place, (each & counted).double())
        return cells.cpu().numpy()


@dataclass(frozen=True)
class Figures:
    """Accuracy, F1 and AUROC averaged over concepts; single concepts from ``verdicts``."""

    accuracy: Score
    f1: Score
    auroc: Score
    verdicts: Verdicts

    @classmethod
    def of(cls, verdicts: Verdicts, null: Verdicts | None = None) -> Figures:
        """The figures of ``verdicts`` on balanced rows, with those of ``null`` as null controls."""
        accuracy, f1, auroc = (
            (None, None, None) if null is None else (null.accuracy(), null.f1(), null.auroc())
        )
        return cls(
            verdicts.accuracy(null=accuracy, chance=0.5),
            verdicts.f1(null=f1, chance=None if null is None else null.f1_of_chance()),
            verdicts.auroc(null=auroc),
            verdicts,
        )


def mean_over_concepts(
    name: str,
    sums: Float[np.ndarray, "document concept column"],
    statistic: Statistic,
    null: Score | None = None,
    chance: float | None = None,
) -> Score:
    """A statistic of each concept's totals, averaged over the concepts where it is defined.

    Args:
        statistic: of totals ``[any, column]``, NaN where undefined.
    """
    documents, concepts, width = sums.shape

    def averaged(totals: Float[np.ndarray, "resample all"]) -> Float[np.ndarray, "resample"]:
        each = statistic(totals.reshape(-1, width)).reshape(len(totals), concepts)
        defined = np.isfinite(each)
        return ratio(np.where(defined, each, 0.0).sum(1), defined.sum(1).astype(np.float64))

    return score(name, sums.reshape(documents, -1), averaged, null=null, chance=chance)


def _accuracy(cells: Float[np.ndarray, "any 4"]) -> Float[np.ndarray, "any"]:
    return ratio(cells[:, 0] + cells[:, 3], cells.sum(1))


def _f1(cells: Float[np.ndarray, "any 4"]) -> Float[np.ndarray, "any"]:
    tp, wrong = cells[:, 0], cells[:, 1] + cells[:, 2]
    return ratio(2 * tp, 2 * tp + wrong)


def _auroc(counts: Float[np.ndarray, "any bins"]) -> Float[np.ndarray, "any"]:
    positive, negative = counts[:, :BINS], counts[:, BINS:]
    below = negative.cumsum(1) - negative / 2
    return ratio((positive * below).sum(1), positive.sum(1) * negative.sum(1))


def _bins(values: Float[np.ndarray, "row"]) -> Int[np.ndarray, "row"]:
    """Bin of each value, in order: one per distinct value, or ``BINS`` of equal numbers."""
    edges = np.unique(values)
    if len(edges) > BINS:
        edges = np.quantile(values, np.arange(1, BINS) / BINS)
    # Values on an edge share the bin that begins there.
    place: np.ndarray = np.searchsorted(np.unique(edges), values, side="right")
    lowest: np.ndarray = place - place.min()
    return lowest
