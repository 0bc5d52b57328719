"""Well-mixed batches of a live model's activations, at the speed of the model.

A ring of ``buffer`` slots is filled once. Each cycle draws one permutation of the filled slots;
a step gathers the next ``batch_size`` of them as a batch and puts as many new rows of the model
into the slots it has just emptied. So nothing is ever concatenated or moved within the ring, and
a row leaves within two cycles after it came: a batch mixes the last ``buffer`` rows evenly. When
the stream ends the ring drains; every row is given exactly once per epoch.

On a CUDA device a background thread keeps the model one forward ahead. Everything follows from the seed, and
``state`` holds what it takes to give the same next batch again: the place in the stream and which
row is in which slot. Restoring runs the model over those rows again instead of storing them.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechlab.activations.batch import Batch, require_state, seed_of
from mechlab.activations.live import Chunk, Source
from mechlab.data.ahead import ahead
from mechlab.errors import MechlabError


class RingBatches(Iterator[Batch]):
    """What ``shuffled`` makes of a live model."""

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

    def __enter__(self) -> RingBatches:
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
                for chunk in self._source.chunks(start):
                    empty = False
                    yield number, chunk
                if empty:
                    return
                start = None

        # On a CPU the reader runs the model itself: a second thread would fight for the same cores
        # (measured on Fable: 0.80 of the bare forward with it, 1.01 without).
        return ahead(chunks(), depth=1) if self._source.device.type == "cuda" else chunks()

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
        require_state(state, self._settings())
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
