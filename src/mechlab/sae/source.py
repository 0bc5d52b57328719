"""Where a trainer's batches come from: anything that can be opened at a remembered place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.activations.batch import Batch, seed_of
from mechlab.activations.batches import BUFFER, shuffled
from mechlab.activations.gather import StoreBatches
from mechlab.activations.live import Source
from mechlab.activations.ring import RingBatches
from mechlab.activations.store import Store
from mechlab.errors import MechlabError


@runtime_checkable
class Batches(Protocol):
    """Batches in a fixed order, with a place that can be remembered."""

    def __next__(self) -> Batch:
        """The next batch; StopIteration at the end."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain values from which the batches go on after the last one given."""
        ...


@runtime_checkable
class Opener(Protocol):
    """Opens batches of about ``batch_size`` rows for ever, from the start or from a state."""

    def __call__(
        self, batch_size: int, seed: int, state: dict[str, Any] | None
    ) -> AbstractContextManager[Batches]:
        """Batches of a size, in the order that a seed gives."""
        ...


@runtime_checkable
class Feed(Protocol):
    """What dictionaries can be trained on beside a store or a live model: pairs of models, whole contexts."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites in every row."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """What a dictionary records of it: name → fingerprint."""
        ...

    def opener(self, sites: Sequence[str], device: str = "cpu") -> Opener:
        """Batches of some of the sites, for ever."""
        ...


def mixed(source: Store | Source, sites: tuple[str, ...], device: str = "cpu") -> Opener:
    """Shuffled batches of a store or a live model, epoch after epoch, all of full size.

    Opening raises MechlabError for a store with fewer rows than one batch.
    """

    def open_batches(
        batch_size: int, seed: int, state: dict[str, Any] | None
    ) -> AbstractContextManager[Batches]:
        if isinstance(source, Store):
            require_rows(source.n_rows, batch_size)
        batches = shuffled(
            source, batch_size=batch_size, buffer=max(BUFFER, batch_size), seed=seed, epochs=None,
            sites=list(sites), device=device, state=state,
        )  # fmt: skip
        return Whole(batches, batch_size) if isinstance(source, Store) else batches

    return open_batches


def require_rows(rows: int, batch_size: int) -> None:
    """MechlabError when there are fewer rows than one batch holds."""
    if rows < batch_size:
        raise MechlabError(
            "fewer rows than one batch", rows, f"harvest at least {batch_size} tokens, or lower batch_size"
        )


class Whole(Iterator[Batch]):
    """Batches without the short ones that end a store's epochs: a step counts the same for any batch."""

    def __init__(self, batches: StoreBatches | RingBatches, size: int) -> None:
        self._batches, self._size = batches, size

    def __next__(self) -> Batch:
        while len(batch := next(self._batches)) < self._size:
            pass
        return batch

    def state(self) -> dict[str, Any]:
        return self._batches.state()

    def close(self) -> None:
        self._batches.close()

    def __enter__(self) -> Whole:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tables(values: Mapping[str, Float[Tensor, "row _"]]) -> Opener:
    """Shuffled batches of tables in memory: site → ``[row, dim]``, the same rows in each."""
    rows = {len(table) for table in values.values()}
    if len(rows) != 1:
        raise MechlabError(
            "tables differ in their number of rows", sorted(rows), "pass rows of the same tokens"
        )

    def open_batches(batch_size: int, seed: int, state: dict[str, Any] | None) -> _Tables:
        return _Tables(dict(values), batch_size, seed, state)

    return open_batches


def generated(make: Callable[[int, int, int], Mapping[str, Tensor]]) -> Opener:
    """Batches made as they are wanted: ``make(rows, seed, number of the batch)`` gives site → rows."""

    def open_batches(batch_size: int, seed: int, state: dict[str, Any] | None) -> _Generated:
        return _Generated(make, batch_size, seed, state)

    return open_batches


class _Generated(Iterator[Batch]):
    def __init__(
        self,
        make: Callable[[int, int, int], Mapping[str, Tensor]],
        batch_size: int,
        seed: int,
        state: dict[str, Any] | None,
    ) -> None:
        self._make, self._size, self._seed = make, batch_size, seed
        self._step = state["step"] if state else 0

    def __next__(self) -> Batch:
        values = dict(self._make(self._size, self._seed, self._step))
        rows = torch.arange(self._step * self._size, (self._step + 1) * self._size)
        self._step += 1
        return Batch(values, rows, rows)

    def state(self) -> dict[str, Any]:
        return {"step": self._step}

    def __enter__(self) -> _Generated:
        return self

    def __exit__(self, *_: object) -> None:
        return


class _Tables(Iterator[Batch]):
    """Each epoch is a permutation of its own; short rests are left out."""

    def __init__(
        self, values: dict[str, Tensor], batch_size: int, seed: int, state: dict[str, Any] | None
    ) -> None:
        self._values, self._size, self._seed = values, batch_size, seed
        self._rows = len(next(iter(values.values())))
        require_rows(self._rows, batch_size)
        self._step = state["step"] if state else 0
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __next__(self) -> Batch:
        epoch, at = divmod(self._step, self._rows // self._size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self._seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(self._rows, generator=generator)
        rows = self._order[at * self._size : (at + 1) * self._size]
        self._step += 1
        return Batch({site: table[rows] for site, table in self._values.items()}, rows, rows)

    def state(self) -> dict[str, Any]:
        return {"step": self._step}

    def __enter__(self) -> _Tables:
        return self

    def __exit__(self, *_: object) -> None:
        return
