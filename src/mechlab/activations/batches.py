"""Well-mixed batches of activations from a store or a live model, at the speed of the source.

A ring of ``buffer`` slots is filled once. Each cycle draws one permutation of the filled slots;
a step gathers the next ``batch_size`` of them as a batch and puts as many new rows from the
source into the slots it has just emptied. So every row is copied twice (into a slot, into a
batch), nothing is ever concatenated or moved within the ring, and a row leaves within two cycles
after it came: a batch mixes the last ``buffer`` rows of the source evenly. When the source ends
the ring drains; every row is given exactly once per epoch.

A background thread keeps the source one chunk ahead. Everything follows from the seed, and
``state`` holds what it takes to give the same next batch again: the source's place and which
row is in which slot. Restoring reads those rows again instead of storing them.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.sources import Chunk, Source, StoreSource, seed_of
from mechlab.activations.store import Store
from mechlab.data.ahead import ahead
from mechlab.errors import MechlabError

BUFFER = 2**16


@dataclass(frozen=True)
class Batch:
    """Mixed rows: ``batch["blocks.2.hook_resid_post"]``.

    Attributes:
        values: site → ``[row, dim]``, in the source's dtype; the same token in all sites of a row.
        row: number of each row in the source's own order ``[row]``.
        document: document of each row ``[row]``.
    """

    values: dict[str, Float[Tensor, "row _"]]
    row: Int[Tensor, "row"]
    document: Int[Tensor, "row"]

    def __getitem__(self, site: str) -> Float[Tensor, "row dim"]:
        return self.values[site]

    def __len__(self) -> int:
        return len(self.row)


class ShuffledBatches(Iterator[Batch]):
    """The iterator that ``shuffled`` makes."""

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        buffer: int,
        seed: int,
        epochs: int | None,
        state: dict[str, Any] | None,
    ) -> None:
        self._source, self._batch_size, self._seed, self._epochs = source, batch_size, seed, epochs
        # Whole batches only, so that no batch is short before the source ends.
        self._capacity = max(1, buffer // batch_size) * batch_size
        self._ring: dict[str, Tensor] = {}
        # Number of the row in each slot, counted as rows come out of the source; -1: empty.
        self._fed_in = torch.full((self._capacity,), -1)
        self._row = torch.zeros(self._capacity, dtype=torch.long)
        self._document = torch.zeros(self._capacity, dtype=torch.long)
        self._order = torch.empty(0, dtype=torch.long)
        self._at = 0
        self._cycle = -1
        self._fed = 0
        self._cycle_starts = (0, 0)
        # (number of the first row, epoch, place) of the chunks whose rows may still be in the ring.
        self._recent: deque[tuple[int, int, dict[str, Any]]] = deque()
        self._chunk: Chunk | None = None
        self._used = 0
        self._chunks: Iterator[tuple[int, Chunk]] = iter(())
        if state is None:
            self._chunks = self._open(0, None)
        else:
            self._restore(state)

    def __next__(self) -> Batch:
        if self._cycle < 0:
            self._put(torch.arange(self._capacity))
        if self._at >= len(self._order):
            self._start_cycle()
        slots = self._order[self._at : self._at + self._batch_size]
        self._at += len(slots)
        where = slots.to(self._source.device, non_blocking=True)
        values = {site: ring.index_select(0, where) for site, ring in self._ring.items()}
        batch = Batch(values, self._row[slots], self._document[slots])
        self._fed_in[slots] = -1
        self._put(slots)
        return batch

    def state(self) -> dict[str, Any]:
        """What gives the same next batch again: tensors and plain values, small beside the ring."""
        return {
            "settings": self._settings(),
            "fed_in": self._fed_in.clone(),
            "order": self._order[self._at :].clone(),
            "cycle": self._cycle,
            "fed": self._fed,
            "cycle_starts": list(self._cycle_starts),
            "recent": json.dumps(list(self._recent)),
        }

    def close(self) -> None:
        """Stop the background thread; the iterator is of no use afterwards."""
        close = getattr(self._chunks, "close", None)
        if close:
            close()

    def __enter__(self) -> ShuffledBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settings(self) -> list[Any]:
        return [self._source.identity(), self._batch_size, self._capacity, self._seed, self._epochs]

    def _open(self, epoch: int, place: dict[str, Any] | None) -> Iterator[tuple[int, Chunk]]:
        def chunks() -> Iterator[tuple[int, Chunk]]:
            start = place
            for number in itertools.count(epoch) if self._epochs is None else range(epoch, self._epochs):
                empty = start is None
                for chunk in self._source.chunks(self._seed, number, start):
                    empty = False
                    yield number, chunk
                if empty:
                    return
                start = None

        return ahead(chunks(), depth=1)

    def _start_cycle(self) -> None:
        filled = (self._fed_in >= 0).nonzero()[:, 0]
        if len(filled) == 0:
            self.close()
            raise StopIteration
        self._cycle += 1
        generator = torch.Generator().manual_seed(seed_of(self._seed, self._cycle))
        self._order, self._at = filled[torch.randperm(len(filled), generator=generator)], 0
        # A cycle empties every slot, so what is in the ring came since the last one started.
        self._cycle_starts = (self._cycle_starts[1], self._fed)
        while len(self._recent) > 1 and self._recent[1][0] <= self._cycle_starts[0]:
            self._recent.popleft()

    def _put(self, slots: Int[Tensor, "slot"]) -> None:
        """Fill empty slots with the source's next rows, as far as there are any."""
        done = 0
        while done < len(slots):
            spent = self._chunk is None or self._used == len(self._chunk.row)
            if spent and not self._next_chunk():
                return
            assert self._chunk is not None
            count = min(len(slots) - done, len(self._chunk.row) - self._used)
            rows = slice(self._used, self._used + count)
            self._write(slots[done : done + count], self._chunk, rows)
            self._fed_in[slots[done : done + count]] = torch.arange(self._fed, self._fed + count)
            self._fed += count
            self._used += count
            done += count

    def _next_chunk(self) -> bool:
        found = next(self._chunks, None)
        if found is None:
            return False
        epoch, self._chunk = found
        self._used = 0
        self._recent.append((self._fed, epoch, self._chunk.place))
        return True

    def _write(self, slots: Int[Tensor, "slot"], chunk: Chunk, rows: slice | Int[Tensor, "slot"]) -> None:
        for site, value in chunk.values.items():
            if site not in self._ring:
                self._ring[site] = torch.empty(
                    self._capacity, value.shape[1], dtype=value.dtype, device=value.device
                )
            self._ring[site].index_copy_(0, slots.to(value.device, non_blocking=True), value[rows])
        self._row[slots] = chunk.row[rows]
        self._document[slots] = chunk.document[rows]

    def _restore(self, state: dict[str, Any]) -> None:
        if state["settings"] != self._settings():
            raise MechlabError(
                "state of shuffled batches belongs to other data or settings",
                None,
                "use the same source, batch size, buffer, seed and epochs",
            )
        self._order, self._cycle = state["order"].clone(), state["cycle"]
        self._cycle_starts = tuple(state["cycle_starts"])
        recent = [tuple(each) for each in json.loads(state["recent"])]
        if not recent:
            self._chunks = self._open(0, None)
            return
        number, epoch, place = recent[0]
        self._chunks = self._open(epoch, place)
        fed_in, self._fed = state["fed_in"], number
        filled = (fed_in >= 0).nonzero()[:, 0]
        # slot_of[n - number]: where row n was put; -1 when it has left already.
        slot_of = torch.full((state["fed"] - number,), -1)
        slot_of[fed_in[filled] - number] = filled
        while self._fed < state["fed"]:
            if not self._next_chunk() or self._chunk is None:
                raise MechlabError("source ended before the place to go on at", None, "start afresh")
            count = min(state["fed"] - self._fed, len(self._chunk.row))
            slots = slot_of[self._fed - number : self._fed - number + count]
            there = (slots >= 0).nonzero()[:, 0]
            self._write(slots[there], self._chunk, there)
            self._fed_in[slots[there]] = self._fed + there
            self._fed += count
            self._used = count


def shuffled(
    source: Source | Store,
    *,
    batch_size: int = 4096,
    buffer: int = BUFFER,
    seed: int = 0,
    epochs: int | None = 1,
    state: dict[str, Any] | None = None,
) -> ShuffledBatches:
    """Mixed batches from a store or a live model.

    Args:
        source: a store, ``StoreSource`` (some sites, another device) or ``live(...)``.
        batch_size: rows per batch; only the last may be short.
        buffer: rows that are mixed with one another; rounded down to whole batches.
        seed: decides the order.
        epochs: how often every row is given; None goes on for ever.
        state: what ``state()`` of an iterator with the same arguments returned: goes on there.

    Use it in a ``with`` block, or ``close`` it: a thread runs ahead of it. Raises MechlabError
    for sizes below 1 and for a state that belongs to something else.
    """
    for name, value in (("batch_size", batch_size), ("buffer", buffer), ("epochs", epochs)):
        if value is not None and value < 1:
            raise MechlabError(f"{name} must be positive", value, "ask for at least 1")
    source = StoreSource(source) if isinstance(source, Store) else source
    return ShuffledBatches(
        source, batch_size=batch_size, buffer=buffer, seed=seed, epochs=epochs, state=state
    )


@dataclass(frozen=True)
class Mixing:
    """How well batches are mixed.

    Attributes:
        neighbour_distance: mean distance, in rows of the source, between neighbours in a batch:
            1 without mixing; a third of the range that a perfect mix is drawn from.
        document_share: mean share of a batch that comes from its most frequent document.
    """

    neighbour_distance: float
    document_share: float


def mixing(batches: Iterable[Batch]) -> Mixing:
    """Measure the mixing of some batches; each counts the same."""
    distances, shares = [], []
    for batch in batches:
        if len(batch) > 1:
            distances.append(batch.row.diff().abs().double().mean().item())
        _, counts = torch.unique(batch.document, return_counts=True)
        shares.append(counts.max().item() / len(batch))
    if not distances:
        raise MechlabError("no batch to measure", None, "pass batches of two rows or more")
    return Mixing(sum(distances) / len(distances), sum(shares) / len(shares))
