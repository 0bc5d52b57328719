"""Well-mixed batches of a store, gathered straight from its memory-mapped shards.

An epoch puts all runs of consecutive rows into a random order; windows of ``buffer`` rows are cut
from that order, and the rows of a window are permuted. A batch is the next rows of the window,
copied once from the maps. Nothing is held in memory but row numbers: what a window touches, runs
of 256 kB, the system reads ahead and keeps. A batch lists its rows shard by shard, in random order
within each; which rows it has is a matter of chance alone.

Everything follows from (seed, epoch, window), so a state is two numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.batch import Batch, require_state, seed_of
from mechlab.activations.storage import SCALE, dequantise
from mechlab.activations.store import Store
from mechlab.data.ahead import ahead

# Rows are read in runs of this many bytes: long enough for a disk, short enough that a window
# has many.
_RUN_BYTES = 2**18


class StoreBatches(Iterator[Batch]):
    """What ``shuffled`` makes of a store."""

    def __init__(
        self,
        store: Store,
        sites: tuple[str, ...],
        *,
        batch_size: int,
        buffer: int,
        seed: int,
        epochs: int | None,
        device: str,
        state: dict[str, Any] | None,
    ) -> None:
        store.check_sites(sites)
        self._store, self._sites, self._device = store, sites, torch.device(device)
        self._batch_size, self._seed, self._epochs = batch_size, seed, epochs
        self._window = max(1, buffer // batch_size) * batch_size
        self._shards = [shard for shard in store.shards if shard.rows]
        self._first = torch.tensor([int(shard.entry["first_row"]) for shard in self._shards])
        self._starts, self._lengths = self._runs()
        epoch, given = 0, 0
        if state is not None:
            require_state(state, self._settings())
            epoch, given = state["epoch"], state["given"]
        self._epoch, self._given = epoch, given
        found = self._all(epoch, given)
        # On a CPU the reader gathers itself: another thread would only take its cores.
        self._batches = ahead(found, depth=2) if self._device.type == "cuda" else found

    def __next__(self) -> Batch:
        epoch, given, batch = next(self._batches)
        self._epoch, self._given = epoch, given
        return batch

    def state(self) -> dict[str, Any]:
        """What gives the same next batch again, as plain values."""
        return {"settings": self._settings(), "epoch": self._epoch, "given": self._given}

    def close(self) -> None:
        """Stop the background thread, if there is one; the iterator is of no use afterwards."""
        self._batches.close()

    def __enter__(self) -> StoreBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settings(self) -> list[Any]:
        made = self._store.artifact.manifest.fingerprint
        return [made, list(self._sites), self._batch_size, self._window, self._seed, self._epochs]

    def _runs(self) -> tuple[Int[Tensor, "run"], Int[Tensor, "run"]]:
        """First row and length of every run; none reaches over the end of its shard."""
        raw = [self._shards[0].raw(site) for site in self._sites]
        length = max(1, _RUN_BYTES // sum(each.shape[1] * each.element_size() for each in raw))
        starts = [
            first + torch.arange(0, shard.rows, length)
            for first, shard in zip(self._first.tolist(), self._shards, strict=True)
        ]
        ends = [
            torch.clamp(each + length, max=first + shard.rows)
            for each, first, shard in zip(starts, self._first.tolist(), self._shards, strict=True)
        ]
        return torch.cat(starts), torch.cat(ends) - torch.cat(starts)

    def _all(self, epoch: int, given: int) -> Iterator[tuple[int, int, Batch]]:
        """(epoch, rows given in it so far, batch), from a place on."""
        for number in itertools.count(epoch) if self._epochs is None else range(epoch, self._epochs):
            generator = torch.Generator().manual_seed(seed_of(self._seed, number))
            order = torch.randperm(len(self._starts), generator=generator)
            ends = self._lengths[order].cumsum(0)
            total = int(ends[-1])
            for start in range(given // self._window * self._window, total, self._window):
                rows = self._rows(order, ends, start, min(start + self._window, total))
                following = start + self._window
                if following < total:
                    self._announce(order, ends, following, min(following + self._window, total))
                shuffle = torch.Generator().manual_seed(seed_of(self._seed, number, start))
                rows = rows[torch.randperm(len(rows), generator=shuffle)]
                for at in range(given - start if given > start else 0, len(rows), self._batch_size):
                    batch = self._gather(rows[at : at + self._batch_size])
                    yield number, start + at + len(batch), batch
            given = 0

    def _rows(
        self, order: Int[Tensor, "run"], ends: Int[Tensor, "run"], start: int, stop: int
    ) -> Int[Tensor, "row"]:
        """Rows at places ``start`` to ``stop`` of the epoch's order of runs."""
        place = torch.arange(start, stop)
        run = torch.searchsorted(ends, place, right=True)
        before = ends[run] - self._lengths[order[run]]
        return self._starts[order[run]] + place - before

    def _announce(self, order: Int[Tensor, "run"], ends: Int[Tensor, "run"], start: int, stop: int) -> None:
        """Tell the system which parts of the files the next window reads."""
        first, last = (int(torch.searchsorted(ends, place, right=True)) for place in (start, stop - 1))
        for run in order[first : last + 1].tolist():
            row, length = int(self._starts[run]), int(self._lengths[run])
            shard = self._shards[int(torch.searchsorted(self._first, row, right=True)) - 1]
            shard.read_ahead(self._sites, row - int(shard.entry["first_row"]), length)

    def _gather(self, rows: Int[Tensor, "row"]) -> Batch:
        shard = torch.searchsorted(self._first, rows, right=True) - 1
        rows = rows[shard.argsort(stable=True)]
        counts = shard.bincount(minlength=len(self._shards)).tolist()
        parts, at = [], 0
        for number, count in enumerate(counts):
            if count:
                here = rows[at : at + count] - self._first[number]
                parts.append((self._shards[number], slice(at, at + count), here))
                at += count
        values = {site: self._values(site, parts, len(rows)) for site in self._sites}
        document = torch.empty(len(rows), dtype=torch.long)
        for view, place, here in parts:
            torch.index_select(view.column("document"), 0, here, out=document[place])
        return Batch(values, rows, document)

    def _values(
        self, site: str, parts: list[tuple[Any, slice, Tensor]], rows: int
    ) -> Float[Tensor, "row dim"]:
        raw = self._shards[0].raw(site)
        pinned = self._device.type == "cuda"
        out = torch.empty(rows, raw.shape[1], dtype=raw.dtype, pin_memory=pinned)
        for view, place, here in parts:
            torch.index_select(view.raw(site), 0, here, out=out[place])
        if raw.dtype != torch.int8:
            return out.to(self._device, non_blocking=True)
        scale = torch.empty(rows, pin_memory=pinned)
        for view, place, here in parts:
            torch.index_select(view.raw(site + SCALE), 0, here, out=scale[place])
        return dequantise(*(each.to(self._device, non_blocking=True) for each in (out, scale)))
