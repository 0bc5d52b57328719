"""How well a dictionary found features that are known, because they were planted.

Source: SynthSAEBench, Chanin & Garriga-Alonso (2026, arXiv 2602.14687), and ``sae_lens.synthetic.evals``,
with which MCC, uniqueness, precision, recall, F1, L0, shrinkage and explained variance agree (tested).

* MMCS, mean max cosine similarity (Sharkey et al. 2022): for each direction of one set the largest
  cosine, sign included, with any of the other; the mean over the set. From the latents it asks
  whether every latent is a feature, from the features whether every feature has a latent.
* MCC, mean correlation coefficient (arXiv 2505.20254): latents and features are paired one to one so
  that the sum of |cosine| is largest (Hungarian matching); the mean |cosine| of the pairs.
* Uniqueness: each latent's best feature is the one of largest |cosine|; the number of different best
  features over the number of latents.
* Precision, recall, F1: "the latent fires" as a classifier of "its best feature fires", 0 where
  undefined; means over all latents, dead ones too.
* Shrinkage: mean of |x_hat| / |x| over rows; 1 is none.
* FVE: 1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2.

The null control is the same for random directions (see ``random_control``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import normalize

from mechlab.data.synthetic import Planted
from mechlab.errors import MechlabError
from mechlab.sae.codes import Codes, scatter

# Below this norm a row has no direction, and its shrinkage no meaning.
_LEAST_NORM = 1e-6


@runtime_checkable
class Coder(Protocol):
    """What is asked of a dictionary here; ``mechlab.sae.base.Sae`` has it."""

    @property
    def W_dec(self) -> Tensor:
        """Decoder directions ``[d_sae, d]``."""
        ...

    def encode(self, x: Float[Tensor, "row d"]) -> Codes:
        """Codes of rows."""
        ...

    def decode(self, codes: Codes, x: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Reconstruction from codes; the rows themselves are for skip connections."""
        ...


@dataclass(frozen=True)
class Observed:
    """Rows, what a dictionary made of them, and what was really there.

    Attributes:
        x, x_hat: rows and their reconstruction ``[row, d]``.
        codes: the dictionary's codes of the rows.
        features: true activations ``[row, feature]``, 0 = does not fire.
    """

    x: Float[Tensor, "row d"]
    x_hat: Float[Tensor, "row d"]
    codes: Codes
    features: Float[Tensor, "row feature"]


@dataclass(frozen=True)
class GroundTruth:
    """Figures of a dictionary against planted features; definitions in the module docstring.

    Attributes:
        rows: how many were looked at.
        mmcs_latents, mmcs_features: mean over the latents, and over the features.
        l0, l0_true: mean number of latents, and of true features, that fire per row.
        dead: share of latents that fired on no row.
        control: the same for random directions, where it was asked for.
    """

    rows: int
    mmcs_latents: float
    mmcs_features: float
    mcc: float
    uniqueness: float
    precision: float
    recall: float
    f1: float
    l0: float
    l0_true: float
    dead: float
    shrinkage: float
    fve: float
    control: GroundTruth | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the control, if any, as a dictionary of its own."""
        return asdict(self)


@torch.no_grad()
def measure(
    sae: Coder, planted: Planted, *, rows: int = 100_000, batch: int = 1024, seed: int = 0
) -> GroundTruth:
    """Measure a dictionary, and its null control, on fresh rows of a planted model.

    ``seed`` names the stream of rows: take another than the one trained on. The model is moved to the
    dictionary's device. Raises MechlabError when rows or batch is below 1, or the widths differ.
    """
    if min(rows, batch) < 1:
        raise MechlabError("rows and batch are out of range", (rows, batch), "at least 1 each")
    if sae.W_dec.shape[1] != planted.directions.shape[1]:
        wanted = f"a dictionary for the planted model's d = {planted.directions.shape[1]}"
        raise MechlabError("dictionary has another width than the rows", sae.W_dec.shape[1], wanted)
    device = sae.W_dec.device
    planted = planted.to(device)
    sizes = [min(batch, rows - start) for start in range(0, rows, batch)]

    def observed() -> Iterator[Observed]:
        for index, size in enumerate(sizes):
            x, features = planted.batch(size, seed, index)
            codes = sae.encode(x)
            yield Observed(x, sae.decode(codes, x), codes, features)

    found = ground_truth(sae.W_dec, planted.directions, observed())
    control = random_control(
        (planted.batch(size, seed, index) for index, size in enumerate(sizes)),
        planted.directions,
        width=len(sae.W_dec),
        l0=found.l0,
        generator=torch.Generator().manual_seed(seed),
    )
    return replace(found, control=control)


@torch.no_grad()
def ground_truth(
    decoder: Float[Tensor, "latent d"],
    directions: Float[Tensor, "feature d"],
    batches: Iterable[Observed],
) -> GroundTruth:
    """All figures of a dictionary; one pass over the batches.

    Matching 4,096 latents with 16,384 features takes some seconds.
    Raises MechlabError when there are no rows.
    """
    cosines = cosine(decoder, directions)
    best = cosines.abs().argmax(1)
    tally = _Tally(best, len(directions))
    for seen in batches:
        tally.add(seen)
    if tally.rows == 0:
        raise MechlabError("there are no rows to measure on", 0, "at least one batch")
    precision = _share(tally.hits, tally.fired)
    recall = _share(tally.hits, tally.present[best])
    f1 = _share(2 * precision * recall, precision + recall)
    mean = tally.total / tally.rows
    variance = tally.squares / tally.rows - float(mean.square().sum())
    return GroundTruth(
        rows=tally.rows,
        mmcs_latents=mean_max_cosine(decoder, directions),
        mmcs_features=mean_max_cosine(directions, decoder),
        mcc=matched_cosine(decoder, directions),
        uniqueness=len(set(best.tolist())) / len(decoder),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
        l0=float(tally.fired.sum() / tally.rows),
        l0_true=float(tally.present.sum() / tally.rows),
        dead=float((tally.fired == 0).double().mean()),
        shrinkage=tally.ratios / max(1, tally.directed),
        fve=1 - tally.errors / tally.rows / variance if variance > 0 else float("nan"),
    )


@torch.no_grad()
def random_control(
    batches: Iterable[tuple[Float[Tensor, "row d"], Float[Tensor, "row feature"]]],
    directions: Float[Tensor, "feature d"],
    *,
    width: int,
    l0: float,
    generator: torch.Generator,
) -> GroundTruth:
    """The figures of ``width`` random unit directions: what a dictionary gets for nothing.

    Codes are the ``l0`` (rounded, at least 1) largest positive products of a row, less the batch's
    mean, with the directions; the reconstruction is scaled by one factor per batch, the best one.
    The generator is on the CPU.
    """
    decoder = normalize(torch.randn(width, directions.shape[1], generator=generator)).to(directions.device)
    k = min(width, max(1, round(l0)))

    def observed() -> Iterator[Observed]:
        for x, features in batches:
            mean = x.mean(0)
            values, indices = ((x - mean) @ decoder.T).topk(k)
            codes = Codes(values.relu(), indices)
            made = scatter(codes, width) @ decoder
            scale = ((x - mean) * made).sum() / made.square().sum().clamp(min=1e-12)
            yield Observed(x, mean + scale * made, codes, features)

    return ground_truth(decoder, directions, observed())


def cosine(
    left: Float[Tensor, "left_vector d"], right: Float[Tensor, "right_vector d"]
) -> Float[Tensor, "left_vector right_vector"]:
    """Cosine of every pair; 0 where a vector is 0."""
    return normalize(left) @ normalize(right).T


def mean_max_cosine(of: Float[Tensor, "of_vector d"], among: Float[Tensor, "among_vector d"]) -> float:
    """MMCS of the vectors ``of``: their largest cosine with any of ``among``, mean over ``of``."""
    return float(cosine(of, among).amax(1).mean())


def matched_cosine(left: Float[Tensor, "left_vector d"], right: Float[Tensor, "right_vector d"]) -> float:
    """MCC: mean |cosine| of the best one-to-one pairing; the surplus of the larger set is left out."""
    size = cosine(left, right).abs().double().cpu().numpy()
    rows, columns = linear_sum_assignment(size, maximize=True)
    return float(size[rows, columns].mean())


class _Tally:
    """Running sums over batches, in double precision where they are not counts."""

    def __init__(self, best: Int[Tensor, "latent"], features: int) -> None:
        self.best = best
        self.rows = self.directed = 0
        self.hits = torch.zeros(len(best), dtype=torch.int64, device=best.device)
        self.fired = torch.zeros_like(self.hits)
        self.present = torch.zeros(features, dtype=torch.int64, device=best.device)
        self.total: Tensor = torch.zeros(1, dtype=torch.float64, device=best.device)
        self.squares = self.errors = self.ratios = 0.0

    def add(self, seen: Observed) -> None:
        row, slot = (seen.codes.values != 0).nonzero(as_tuple=True)
        latent = seen.codes.indices[row, slot]
        on = seen.features > 0
        self.fired += torch.bincount(latent, minlength=len(self.best))
        self.hits += torch.bincount(latent[on[row, self.best[latent]]], minlength=len(self.best))
        self.present += on.sum(0)
        self.rows += len(seen.x)
        x, x_hat = seen.x.double(), seen.x_hat.double()
        self.total = self.total + x.sum(0)
        self.squares += float(x.square().sum())
        self.errors += float((x - x_hat).square().sum())
        norm = x.norm(dim=1)
        directed = norm > _LEAST_NORM
        self.directed += int(directed.sum())
        self.ratios += float((x_hat.norm(dim=1) / norm)[directed].sum())


def _share(part: Tensor, whole: Tensor) -> Float[Tensor, "latent"]:
    """part / whole in double precision, 0 where whole is 0."""
    return torch.where(whole > 0, part.double() / whole, 0.0)
