"""The best single latent of each concept, and board-game style coverage and reconstruction.

* F1 of a latent as a detector "activation > threshold": the threshold is the one with the highest
  F1 on train documents among zero and all activations seen there; the F1 is then taken on held-out
  documents. The best latent of a concept is the one with the highest train F1.
* Coverage: mean over concepts of the best latent's F1. Reconstruction: a concept is predicted
  where any latent is above its threshold for that concept; latents qualify when some
  threshold reaches precision ≥ 0.95 on train rows with at least ten rows firing, and take the
  lowest such threshold; mean F1 over concepts (Karvonen et al. 2024, arXiv 2408.00113, whose
  concepts are properties of a game's board). The paper takes thresholds at ten shares of a latent's
  maximum, and scores coverage on the rows that chose it; here all activations are thresholds
  and everything is scored on held-out documents.

Only positive activations count as firing. The null repeats everything with labels moved along the
rows within either side of the split; its chance is the F1 of answers as frequent as its own that
know nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.sae.codes import Codes
from mechlab.sae.metrics.rows import scorable, select, train_rows
from mechlab.sae.metrics.verdicts import Verdicts
from mechlab.scores import Score

PRECISION, FEWEST_FIRING = 0.95, 10


@dataclass(frozen=True)
class BestLatents:
    """How well single latents detect concepts.

    Attributes:
        concepts: columns of the labels that could be scored, in the order of the rows below.
        unscored: column of the labels → why it was left out.
        latent: the best latent of each concept on train documents.
        threshold: of each pair; infinite where the latent never fires on train documents.
        train_f1: F1 of each pair on train documents; held_out_f1: on held-out ones, same threshold.
        f1: mean held-out F1 of the best latents (coverage), null: labels moved along.
        verdicts: what the best latents say on held-out rows, for scores of single concepts.
    """

    concepts: tuple[int, ...]
    unscored: dict[int, str]
    latent: Int[Tensor, "concept"]
    threshold: Float[Tensor, "concept d_sae"]
    train_f1: Float[Tensor, "concept d_sae"]
    held_out_f1: Float[Tensor, "concept d_sae"]
    f1: Score
    verdicts: Verdicts


@dataclass(frozen=True)
class BoardReconstruction:
    """Concepts predicted by all their high-precision latents together.

    Attributes:
        concepts, unscored: as in ``BestLatents``.
        detectors: number of high-precision latents of each concept.
        f1: mean held-out F1, null: labels moved along.
        verdicts: the predictions on held-out rows.
    """

    concepts: tuple[int, ...]
    unscored: dict[int, str]
    detectors: Int[Tensor, "concept"]
    f1: Score
    verdicts: Verdicts


@dataclass(frozen=True)
class _Firings:
    """Positive activations, latent by latent, the strongest first.

    Attributes:
        latent, row, value: of each firing.
        rank: place of the firing within its latent, from 0.
        first: index of the latent's first firing.
        last_of_ties: False where the next firing of the latent is as strong.
        rows: number of rows, with and without firings.
    """

    latent: Int[Tensor, "firing"]
    row: Int[Tensor, "firing"]
    value: Float[Tensor, "firing"]
    rank: Int[Tensor, "firing"]
    first: Int[Tensor, "firing"]
    last_of_ties: Bool[Tensor, "firing"]
    rows: int
    d_sae: int

    @classmethod
    def of(cls, codes: Codes, d_sae: int) -> _Firings:
        active = codes.values > 0
        row = torch.nonzero(active)[:, 0]
        latent, value = codes.indices[active], codes.values[active]
        order = value.argsort(descending=True, stable=True)
        order = order[latent[order].argsort(stable=True)]
        row, latent, value = row[order], latent[order], value[order]
        counts = torch.bincount(latent, minlength=d_sae)
        first = (counts.cumsum(0) - counts)[latent]
        rank = torch.arange(len(latent), device=latent.device) - first
        last = torch.ones_like(latent, dtype=torch.bool)
        if len(latent):
            last[:-1] = (latent[1:] != latent[:-1]) | (value[1:] != value[:-1])
        return cls(latent, row, value, rank, first, last, len(codes.values), d_sae)

    def hits(self, label: Bool[Tensor, "row"]) -> Int[Tensor, "firing"]:
        """Rows with the label among a latent's firings, up to and with each firing."""
        total = torch.nn.functional.pad(label[self.row].long().cumsum(0), (1, 0))
        return total[1:] - total[self.first]

    def per_latent(self, which: Bool[Tensor, "firing"]) -> Float[Tensor, "d_sae"]:
        """Number of a latent's firings that are marked."""
        return torch.bincount(self.latent[which], minlength=self.d_sae).double()

    def pick(
        self, quality: Float[Tensor, "firing"], floor: float
    ) -> tuple[Float[Tensor, "d_sae"], Float[Tensor, "d_sae"]]:
        """Each latent's highest quality, and the threshold that the first firing to have it is above.

        The threshold is the strength of the next weaker firing, 0 when there is none, so that
        what lies between the two counts as firing; infinite where no quality passes ``floor``.
        """
        best = torch.full((self.d_sae,), floor, dtype=quality.dtype, device=quality.device)
        best = best.scatter_reduce(0, self.latent, quality, "amax")
        n = len(self.latent)
        at = torch.full((self.d_sae,), n, device=quality.device)
        reached = (quality > floor) & (quality == best[self.latent])
        place = torch.arange(n, device=quality.device)[reached]
        at = at.scatter_reduce(0, self.latent[reached], place, "amin")
        weaker = self.value.new_zeros(n)
        weaker[:-1] = torch.where(self.latent[1:] == self.latent[:-1], self.value[1:], 0)
        return best, torch.cat([weaker, weaker.new_full((1,), torch.inf)])[at]

    def best_f1(self, label: Bool[Tensor, "row"]) -> tuple[Float[Tensor, "d_sae"], Float[Tensor, "d_sae"]]:
        """Each latent's best F1 over thresholds, 0 when it never fires on the label, and the threshold."""
        f1 = 2 * self.hits(label).double() / (self.rank + 1 + label.sum())
        return self.pick(f1.masked_fill(~self.last_of_ties, 0), 0.0)

    def precise(self, label: Bool[Tensor, "row"]) -> tuple[Float[Tensor, "d_sae"], Float[Tensor, "d_sae"]]:
        """Rows firing at the lowest threshold of high precision (0 when none), and the threshold."""
        fired = (self.rank + 1).double()
        enough = self.last_of_ties & (fired >= FEWEST_FIRING) & (self.hits(label) >= PRECISION * fired)
        return self.pick(fired.masked_fill(~enough, 0), 0.0)

    def above(self, threshold: Float[Tensor, "d_sae"]) -> Bool[Tensor, "firing"]:
        """Which firings are above their latent's threshold."""
        return self.value > threshold[self.latent]


@torch.no_grad()
def best_latent_f1(
    codes: Codes,
    labels: Bool[Tensor, "row concept"],
    documents: Int[Tensor, "row"],
    d_sae: int,
    *,
    seed: int = 0,
) -> BestLatents:
    """F1 of every latent for every concept, and of each concept's best latent (coverage).

    Work and memory grow with the active latents times the concepts, not with d_sae. Raises
    MechlabError when no concept has enough rows.
    """
    train = train_rows(documents, seed)
    kept, unscored = scorable(labels, train)
    labels, held_out = labels[:, kept], documents[~train]
    fit, test = (_Firings.of(select(codes, rows), d_sae) for rows in (train, ~train))

    def run(y: Bool[Tensor, "row concept"]) -> tuple[Tensor, Tensor, Tensor, Tensor, Verdicts]:
        pairs = [fit.best_f1(column) for column in y[train].T]
        train_f1, threshold = (torch.stack(each) for each in zip(*pairs, strict=True))
        actual = y[~train]
        f1, said = torch.zeros_like(train_f1), torch.full(actual.shape, -1.0, device=y.device)
        latent = train_f1.argmax(1)
        for concept, best in enumerate(latent):
            fires = test.above(threshold[concept])
            hits = test.per_latent(fires & actual[test.row, concept])
            f1[concept] = 2 * hits / (test.per_latent(fires) + actual[:, concept].sum())
            said[test.row[fires & (test.latent == best)], concept] = 1.0
        return latent, threshold, train_f1, f1, Verdicts(said, actual, torch.ones_like(actual), held_out)

    latent, threshold, train_f1, held_out_f1, verdicts = run(labels)
    null = run(_shifted(labels, documents, train, seed))[-1]
    return BestLatents(
        tuple(kept),
        unscored,
        latent,
        threshold,
        train_f1.float(),
        held_out_f1.float(),
        _with_null(verdicts, null),
        verdicts,
    )


@torch.no_grad()
def board_reconstruction(
    codes: Codes,
    labels: Bool[Tensor, "row concept"],
    documents: Int[Tensor, "row"],
    d_sae: int,
    *,
    seed: int = 0,
) -> BoardReconstruction:
    """Concepts predicted from latents of high precision; see the module's docstring.

    Raises MechlabError when no concept has enough rows.
    """
    train = train_rows(documents, seed)
    kept, unscored = scorable(labels, train)
    labels, held_out = labels[:, kept], documents[~train]
    fit, test = (_Firings.of(select(codes, rows), d_sae) for rows in (train, ~train))

    def run(y: Bool[Tensor, "row concept"]) -> tuple[Tensor, Verdicts]:
        actual = y[~train]
        said, detectors = torch.full(actual.shape, -1.0, device=y.device), []
        for concept, column in enumerate(y[train].T):
            fired, threshold = fit.precise(column)
            said[test.row[test.above(threshold)], concept] = 1.0
            detectors.append((fired > 0).sum())
        return torch.stack(detectors), Verdicts(said, actual, torch.ones_like(actual), held_out)

    detectors, verdicts = run(labels)
    null = run(_shifted(labels, documents, train, seed))[-1]
    return BoardReconstruction(tuple(kept), unscored, detectors, _with_null(verdicts, null), verdicts)


def _with_null(verdicts: Verdicts, null: Verdicts) -> Score:
    chance = null.f1_of_chance()
    return verdicts.f1(null=null.f1(chance=chance), chance=chance)


def _shifted(
    labels: Bool[Tensor, "row concept"],
    documents: Int[Tensor, "row"],
    train: Bool[Tensor, "row"],
    seed: int,
) -> Bool[Tensor, "row concept"]:
    """Labels moved along the rows of either side, in document order, by a quarter of them at least.

    Not shuffled: labels that hold for whole passages make latents look precise by chance, and the
    control must have such labels too.
    """
    generator = torch.Generator().manual_seed(seed)
    mixed = labels.clone()
    for side in (train, ~train):
        rows = torch.nonzero(side)[:, 0]
        rows = rows[documents[rows].argsort(stable=True)]
        least = (len(rows) + 3) // 4
        by = int(torch.randint(least, len(rows) - least + 1, (1,), generator=generator))
        mixed[rows] = labels[rows].roll(by, 0)
    return mixed
