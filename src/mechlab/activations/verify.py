"""Checking a store: every byte against its checksum, and a sample against the model run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.capture import reading
from mechlab.activations.storage import TOLERANCE
from mechlab.activations.store import ShardView, Store
from mechlab.errors import MechlabError
from mechlab.files import is_whole
from mechlab.models.subject import Subject


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found in a store whose bytes are all in order.

    Attributes:
        shards: shards whose checksum was compared.
        rows: rows that were computed again.
        difference: site → largest difference, as a share of the row's largest magnitude.
        equal: share of the compared values that are equal bit for bit.
        tolerance: the largest difference allowed; it follows from the storage format.
    """

    shards: int
    rows: int
    difference: dict[str, float]
    equal: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """True when no value differs by more than the tolerance."""
        return all(value <= self.tolerance for value in self.difference.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}


def damaged_shards(store: Store, progress: Callable[[int, int], None] | None = None) -> list[ShardView]:
    """Shards that are missing or whose bytes differ from the manifest's checksum."""
    found = []
    files = store.artifact.manifest.files
    for i, shard in enumerate(store.shards):
        if not is_whole(shard.path, files[shard.path.name]):
            found.append(shard)
        if progress:
            progress(i + 1, len(store.shards))
    return found


def verify(
    store: Store,
    subject: Subject,
    *,
    batches: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compare every shard's checksum, then run a sample of the stored contexts again.

    Args:
        subject: the model that the store was made with.
        batches: forwards to repeat, drawn evenly over the store.
        seed: decides which.
        progress: called with (shards checked, shards).

    Raises MechlabError when the model is another one, or naming the first damaged shard.
    """
    made_from = store.artifact.manifest.inputs["model"]
    if made_from != subject.fingerprint:
        raise MechlabError(
            "store was made from another model",
            f"fingerprint {made_from[:12]}, not {subject.fingerprint[:12]} ({subject.name})",
            "pass the model it was made from with --model, or harvest again",
        )
    damaged = damaged_shards(store, progress)
    if damaged:
        raise MechlabError(
            f"{len(damaged)} of {len(store.shards)} shards are missing or damaged, the first is",
            damaged[0].path,
            "pass --repair to make them again",
        )
    size = int(store.artifact.manifest.config["batch"])
    places = [(shard, at) for shard in store.shards for at in range(0, int(shard.entry["contexts"]), size)]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(places), generator=generator).tolist()
    worst = dict.fromkeys(store.sites, 0.0)
    rows = equal = compared = 0
    for shard, at in (places[i] for i in drawn):
        if batches == 0:
            break
        context, position = shard.column("context"), shard.column("position")
        first = int(shard.entry["first_context"]) + at
        here = ((context >= first) & (context < first + size)).nonzero()[:, 0]
        if len(here) == 0:
            continue  # says nothing
        batches -= 1
        values = _run_again(subject, store.sites, shard.contexts()[at : at + size])
        rows += len(here)
        for site, value in values.items():
            fresh = value[context[here] - first, position[here]].float()
            kept = shard.values(site, int(here[0]), int(here[-1]) + 1).float()
            worst[site] = max(worst[site], _difference(fresh, kept))
            equal += int((fresh == kept).sum())
            compared += fresh.numel()
    storage = store.artifact.manifest.config["storage"]
    return Verification(len(store.shards), rows, worst, equal / max(compared, 1), TOLERANCE[storage])


def _run_again(
    subject: Subject, sites: tuple[str, ...], stored: Int[Tensor, "context pos"]
) -> dict[str, Float[Tensor, "context width _"]]:
    """The sites' values on stored contexts (-1 beyond their end), padded as they were when harvested."""
    mask = stored >= 0
    width = int(mask.sum(1).max())
    mask, tokens = mask[:, :width], stored[:, :width].long()
    last = tokens.gather(1, mask.sum(1, keepdim=True) - 1)
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        found[name] = value.cpu().expand(len(tokens), *value.shape[1:])

    with reading(subject, sites, keep) as run:
        run(torch.where(mask, tokens, last), mask)
    return found


def _difference(fresh: Float[Tensor, "row dim"], kept: Float[Tensor, "row dim"]) -> float:
    scale = fresh.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny)
    # NaN would pass every comparison.
    return float(((fresh - kept).abs().amax(-1) / scale).nan_to_num(torch.inf).max())
