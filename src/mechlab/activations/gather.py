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
from collections.abc import Generator, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.batch import Batch, require_state, seed_of
from mechlab.activations.storage import SCALE, dequantise
from mechlab.activations.store import ShardView, Store
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

    def _all(self, epoch: int, given: int) -> Generator[tuple[int, int, Batch], None, None]:
        """(epoch, rows given in it so far, batch), from a place on."""
        for number in itertools.count(epoch) if self._epochs is None else range(epoch, self._epochs):
            generator = torch.Generator().manual_seed(seed_of(self._seed, number))
            order = torch.randperm(len(self._starts), generator=generator)
            total = int(self._lengths.sum())
            for start in range(given // self._window * self._window, total, self._window):
                runs = self._cut(order, start, min(start + self._window, total))
                following = self._cut(order, start + self._window, start + 2 * self._window)
                # The first window was announced by nobody before.
                for shard, row, count in following if start > given else runs + following:
                    self._shards[shard].read_ahead(self._sites, row, count)
                deal = _Deal(runs, self._batch_size, len(self._shards), seed_of(self._seed, number, start))
                documents = [
                    self._shards[shard].column("document")[rows] for shard, rows in enumerate(deal.rows)
                ]
                done = given - start if given > start else 0
                for at in range(-(-done // self._batch_size), deal.batches):
                    done += deal.size(at)
                    yield number, start + done, self._gather(deal, documents, at)
            given = 0

    def _cut(self, order: Int[Tensor, "run"], start: int, stop: int) -> list[tuple[int, int, int]]:
        """Runs between two places of the epoch's order: (shard, first row in it, rows), by shard."""
        lengths = self._lengths[order]
        ends = lengths.cumsum(0)
        here = (ends > start) & (ends - lengths < stop)
        begins, ends, rows = (ends - lengths)[here], ends[here], self._starts[order][here]
        skipped = (start - begins).clamp_min(0)
        counts = ends.clamp(max=stop) - begins - skipped
        rows = rows + skipped
        shard = torch.searchsorted(self._first, rows, right=True) - 1
        found = zip(shard.tolist(), (rows - self._first[shard]).tolist(), counts.tolist(), strict=True)
        return sorted(found)

    def _gather(self, deal: _Deal, documents: list[Int[Tensor, "_"]], at: int) -> Batch:
        parts, size, place = [], deal.size(at), 0
        for shard, here in deal.parts(at):
            count = here.stop - here.start
            parts.append((shard, here, slice(place, place + count), deal.rows[shard][here]))
            place += count
        row = torch.cat([rows + self._first[shard] for shard, _, _, rows in parts])
        document = torch.cat([documents[shard][here] for shard, here, _, _ in parts])
        wanted = [(self._shards[shard], where, rows) for shard, _, where, rows in parts]
        return Batch({site: self._values(site, wanted, size) for site in self._sites}, row, document)

    def _values(
        self, site: str, parts: list[tuple[ShardView, slice, Tensor]], rows: int
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


class _Deal:
    """The rows of a window dealt to batches: uniformly at random, without sorting.

    Permuting all rows and sorting each batch by shard would do; this permutes within each shard,
    draws how many rows of each shard a batch gets from a permutation of labels, and deals.

    Attributes:
        rows: for each shard, its rows of the window in random order.
        batches: number of batches.
    """

    def __init__(self, runs: list[tuple[int, int, int]], batch_size: int, shards: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shard, first, count = torch.tensor(runs).T
        ends = count.cumsum(0)
        rows = torch.arange(int(ends[-1])) + (first - ends + count).repeat_interleave(count)
        sizes = torch.zeros(shards, dtype=torch.long).index_add_(0, shard, count)
        groups = rows.split(sizes.tolist())
        self.rows = [group[torch.randperm(len(group), generator=generator)] for group in groups]
        self.batches = -(-len(rows) // batch_size)
        labels = torch.arange(shards).repeat_interleave(sizes)
        labels = labels[torch.randperm(len(rows), generator=generator)]
        keys = labels + torch.arange(len(rows)) // batch_size * shards
        counts = keys.bincount(minlength=self.batches * shards).view(self.batches, shards)
        self._counts, self._ends = counts.tolist(), counts.cumsum(0).tolist()

    def size(self, batch: int) -> int:
        """Number of rows of a batch."""
        return sum(self._counts[batch])

    def parts(self, batch: int) -> Iterator[tuple[int, slice]]:
        """(shard, which of its dealt rows) for the shards that a batch has rows of."""
        for shard, (count, end) in enumerate(zip(self._counts[batch], self._ends[batch], strict=True)):
            if count:
                yield shard, slice(end - count, end)
