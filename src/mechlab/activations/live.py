"""Rows of a model that runs while they are used: nothing is kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.capture import check_tokens, reading
from mechlab.activations.harvest import Plan, make_plan, open_stream
from mechlab.activations.selection import Selection
from mechlab.activations.shard import Rows
from mechlab.data.corpus import Corpus
from mechlab.data.stream import Contexts, Position
from mechlab.files import fingerprint
from mechlab.models.subject import Subject


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a source.

    Attributes:
        values: site → ``[row, dim]``.
        row: number of each row in the source's own order ``[row]``.
        document: document of each row ``[row]``.
        place: plain values from which ``chunks`` gives this chunk again.
    """

    values: dict[str, Float[Tensor, "row _"]]
    row: Int[Tensor, "row"]
    document: Int[Tensor, "row"]
    place: dict[str, Any]


@runtime_checkable
class Source(Protocol):
    """What shuffled batches are made of."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites in every row."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the chunks' values are."""
        ...

    def identity(self) -> str:
        """A fingerprint of everything that decides the rows and their order."""
        ...

    def chunks(self, place: dict[str, Any] | None) -> Iterator[Chunk]:
        """All rows once, chunk by chunk, from ``place`` on (a chunk's; the start by default)."""
        ...


class LiveSource:
    """Rows of a model that runs over a stream of contexts; nothing is kept on disk.

    The order is the stream's: mixing is up to the buffer.
    """

    def __init__(
        self,
        subject: Subject,
        plan: Plan,
        stream: Callable[[Position], Iterable[Contexts]],
        stream_identity: str,
    ) -> None:
        self._subject, self._plan, self._stream, self._stream_identity = (
            subject,
            plan,
            stream,
            stream_identity,
        )

    @property
    def subject(self) -> Subject:
        """The model that runs."""
        return self._subject

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites in every row."""
        return tuple(site.name for site in self._plan.sites)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._subject.device

    def identity(self) -> str:
        """Fingerprint of model, stream and settings."""
        plan = self._plan
        settings = [self.sites, plan.n_ctx, plan.batch, asdict(plan.select)]
        return fingerprint([self._subject.fingerprint, self._stream_identity, settings])

    def chunks(self, place: dict[str, Any] | None = None) -> Iterator[Chunk]:
        """All rows once, a forward a chunk; see ``Source``."""
        first = place["row"] if place else 0
        start = Position(**place["stream"]) if place else Position()
        subject, plan = self._subject, self._plan
        rows: Rows | None = None
        values: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            assert rows is not None
            values[name] = rows.take(value)

        with reading(subject, self.sites, keep) as run:
            for batch in self._stream(start):
                chosen = plan.select.chosen(subject, batch.tokens, batch.mask, batch.assistant)
                rows = Rows.of(chosen, subject.device)
                if len(rows):
                    check_tokens(subject, batch.tokens)
                    values = {}
                    run(batch.tokens, batch.mask)
                    document = batch.document[rows.context, rows.position]
                    place = {"row": first, "stream": asdict(start)}
                    yield Chunk(values, torch.arange(first, first + len(rows)), document, place)
                first, start = first + len(rows), batch.next


def live(
    subject: Subject,
    corpus: Corpus,
    sites: str | Sequence[str],
    *,
    split: str = "train",
    n_ctx: int | None = None,
    batch: int | None = None,
    select: Selection | None = None,
    pack: bool = False,
    bos: str = "each",
) -> LiveSource:
    """A source whose rows are what ``harvest`` with the same arguments would store."""
    names = [sites] if isinstance(sites, str) else list(sites)
    plan = make_plan(subject, names, n_ctx=n_ctx, batch=batch, select=select or Selection())

    def stream(start: Position) -> Iterator[Contexts]:
        return open_stream(subject, corpus, split, plan, pack=pack, bos=bos, start=start)

    identity = fingerprint([corpus.fingerprint, split, pack, bos])
    return LiveSource(subject, plan, stream, identity)
