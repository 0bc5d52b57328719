"""Rows of text, with activations where they are wanted: a store, a model that runs, or text alone.

Every source gives the same rows block by block. BOS is never among them. Blocks are made equally
large (``regrouped``), counted from the first row, so that what is computed block by block depends
on neither a store's shards nor a model's batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mechlab.activations.capture import check_tokens, reading
from mechlab.activations.harvest import Plan, make_plan, open_stream
from mechlab.activations.selection import Selection
from mechlab.activations.shard import Rows
from mechlab.activations.store import ShardView, Store
from mechlab.data.corpus import Corpus
from mechlab.data.stream import Contexts, Position
from mechlab.errors import MechlabError
from mechlab.features.sources.block import BLOCK, COLUMNS, Block, apart
from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary, vocabulary_of
from mechlab.files import fingerprint
from mechlab.models.subject import Subject


@runtime_checkable
class RowSource(Protocol):
    """What features are computed on.

    Attributes:
        vocabulary: what the tokens say.
        n_rows: rows there will be; 0 where that is not known before.
        sites: sites that can be asked for; None where any site of the model can.
        device: where activations are.
    """

    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def sites(self) -> tuple[str, ...] | None: ...
    @property
    def device(self) -> torch.device: ...

    def inputs(self) -> dict[str, str]:
        """Role → fingerprint of what the rows come from."""
        ...

    def about(self) -> dict[str, Any]:
        """Which text it is, in words; plain JSON values."""
        ...

    def blocks(self, sites: Sequence[str]) -> Generator[Block, None, None]:
        """All rows in order, with the activations at ``sites``, float32."""
        ...


@dataclass(frozen=True)
class StoreRows:
    """Rows of an activation store; made by ``store_rows``."""

    store: Store
    vocabulary: Vocabulary
    bos: int | None
    device: torch.device
    rows: int | None = None

    @property
    def n_rows(self) -> int:
        """Rows that are read, BOS included where it was stored."""
        return self.store.n_rows if self.rows is None else min(self.rows, self.store.n_rows)

    @property
    def sites(self) -> tuple[str, ...] | None:
        """Sites in the store."""
        return self.store.sites

    def inputs(self) -> dict[str, str]:
        """The model's and the store's fingerprints."""
        manifest = self.store.artifact.manifest
        return {"model": manifest.inputs["model"], "activations": manifest.fingerprint}

    def about(self) -> dict[str, Any]:
        """Corpus and split that were harvested."""
        manifest = self.store.artifact.manifest
        config = manifest.config
        return {
            "model_name": manifest.facts["model"],
            **{key: config[key] for key in ("corpus", "split", "n_ctx", "pack", "bos", "storage")},
            **({} if self.rows is None else {"rows": self.n_rows}),
        }

    def blocks(self, sites: Sequence[str]) -> Generator[Block, None, None]:
        """See ``RowSource``; a shard is read a block at a time."""
        self.store.check_sites(sites)
        return apart(self._all(sites))

    def _all(self, sites: Sequence[str]) -> Iterator[Block]:
        left = self.n_rows
        for shard in self.store.shards:
            for start in range(0, min(shard.rows, left), BLOCK):
                block = self._read(shard, sites, start, min(start + BLOCK, shard.rows, left))
                if len(block):
                    yield block
            left -= min(shard.rows, left)

    def _read(self, shard: ShardView, sites: Sequence[str], start: int, stop: int) -> Block:
        columns = [shard.column(name)[start:stop].numpy() for name in COLUMNS]
        keep = np.ones(stop - start, bool) if self.bos is None else columns[0] != self.bos
        values = {}
        for site in sites:
            value = shard.values(site, start, stop).to(torch.float32)
            values[site] = (value if keep.all() else value[torch.from_numpy(keep)]).to(self.device)
        tokens, context, position, document = (column[keep] for column in columns)
        return Block(tokens, context, position, document, values)


def store_rows(
    store: Store, subject: Subject, *, device: torch.device | str = "cpu", rows: int | None = None
) -> StoreRows:
    """Rows of a store made from ``subject``, whose tokenizer says what the tokens are.

    Args:
        rows: the first so many only.

    Raises MechlabError when the store comes from another model.
    """
    there = store.artifact.manifest.inputs["model"]
    if there != subject.fingerprint:
        raise MechlabError(
            "store comes from another model",
            f"fingerprint {there[:12]}, not {subject.fingerprint[:12]} ({subject.name})",
            "load the model it was harvested from",
        )
    return StoreRows(store, vocabulary_of(subject), subject.bos, torch.device(device), rows)


@dataclass(frozen=True)
class ModelRows:
    """Rows of a model that runs over a corpus; made by ``model_rows``."""

    subject: Subject
    corpus: Corpus
    split: str
    tokens: int | None
    plan: Plan
    pack: bool
    bos: str
    vocabulary: Vocabulary

    @property
    def n_rows(self) -> int:
        """Rows asked for; 0 for all there are."""
        return self.tokens or 0

    @property
    def sites(self) -> tuple[str, ...] | None:
        """None: any of the model's."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.subject.device

    def inputs(self) -> dict[str, str]:
        """Fingerprints of the model and of the text."""
        plan = self.plan
        text = [self.corpus.fingerprint, self.split, self.tokens, plan.n_ctx, plan.batch, self.pack, self.bos]
        return {"model": self.subject.fingerprint, "text": fingerprint(text)}

    def about(self) -> dict[str, Any]:
        """Corpus and split."""
        return {
            "model_name": self.subject.name,
            "corpus": self.corpus.name,
            "split": self.split,
            "n_ctx": self.plan.n_ctx,
            "pack": self.pack,
            "bos": self.bos,
        }

    def blocks(self, sites: Sequence[str]) -> Generator[Block, None, None]:
        """See ``RowSource``; one forward a block, and none without sites. MechlabError for a pattern."""
        for site in sites:
            if self.subject.site(site).pattern:
                raise MechlabError(
                    "patterns have no coordinates that could be features", site, "name another"
                )
        return apart(self._limited(sites))

    def _limited(self, sites: Sequence[str]) -> Iterator[Block]:
        done = 0
        for block in self._all(sites):
            left = len(block) if self.tokens is None else self.tokens - done
            yield block.cut(0, left)
            done += len(block)
            if self.tokens is not None and done >= self.tokens:
                return

    def _all(self, sites: Sequence[str]) -> Iterator[Block]:
        subject, first = self.subject, 0
        values: dict[str, Tensor] = {}
        rows: Rows | None = None

        def keep(name: str, value: Tensor) -> None:
            assert rows is not None
            values[name] = rows.take(value).to(torch.float32)

        stream = open_stream(
            subject, self.corpus, self.split, self.plan, pack=self.pack, bos=self.bos, start=Position()
        )
        if not sites:
            for batch in stream:
                yield _block(batch, self._rows(batch), first, {})
                first += len(batch.tokens)
            return
        with reading(subject, list(sites), keep) as run:
            for batch in stream:
                rows = self._rows(batch)
                if len(rows):
                    check_tokens(subject, batch.tokens)
                    run(batch.tokens, batch.mask)
                    yield _block(batch, rows, first, dict(values))
                first += len(batch.tokens)

    def _rows(self, batch: Contexts) -> Rows:
        chosen = self.plan.select.chosen(self.subject, batch.tokens, batch.mask, batch.assistant)
        return Rows.of(chosen, self.subject.device)


def _block(batch: Contexts, rows: Rows, first: int, values: dict[str, Tensor]) -> Block:
    return Block(
        batch.tokens[rows.context, rows.position].numpy().astype(np.int32),
        (first + rows.context).numpy().astype(np.int32),
        rows.position.numpy().astype(np.int32),
        batch.document[rows.context, rows.position].numpy(),
        values,
    )


def model_rows(
    subject: Subject,
    corpus: Corpus,
    *,
    split: str = "train",
    tokens: int | None = None,
    n_ctx: int | None = None,
    batch: int | None = None,
    pack: bool = False,
    bos: str = "each",
) -> ModelRows:
    """Rows that ``harvest`` with the same arguments would store, without a store.

    Args:
        tokens: rows at most; all of the split by default.

    Raises MechlabError when contexts do not fit the model.
    """
    if tokens is not None and tokens < 1:
        raise MechlabError("number of tokens must be positive", tokens, "ask for at least 1")
    # A plan names a site; which ones are read is known only when features ask for them.
    plan = make_plan(subject, list(subject.sites)[:1], n_ctx=n_ctx, batch=batch, select=Selection())
    return ModelRows(subject, corpus, split, tokens, plan, pack, bos, vocabulary_of(subject))


@dataclass(frozen=True)
class TextRows:
    """Rows of a text in memory, without activations: for functions of text.

    Attributes:
        text: such as that of an index.
        name: what to call it.
    """

    text: Text
    name: str = "text"

    @property
    def vocabulary(self) -> Vocabulary:
        """The text's."""
        return self.text.vocabulary

    @property
    def n_rows(self) -> int:
        """Rows of the text."""
        return len(self.text)

    @property
    def sites(self) -> tuple[str, ...] | None:
        """None to be had."""
        return ()

    @property
    def device(self) -> torch.device:
        """The processor."""
        return torch.device("cpu")

    def inputs(self) -> dict[str, str]:
        """A fingerprint of the text."""
        columns = (getattr(self.text, name).astype(np.int64).tobytes() for name in COLUMNS)
        sums = [hashlib.sha256(column).hexdigest() for column in columns]
        return {"text": fingerprint([sums, self.vocabulary.to_dict()])}

    def about(self) -> dict[str, Any]:
        """Its name."""
        return {"corpus": self.name}

    def blocks(self, sites: Sequence[str]) -> Generator[Block, None, None]:
        """See ``RowSource``. MechlabError when a site is asked for."""
        require_sites(self, sites)
        for start in range(0, len(self.text), BLOCK):
            part = self.text.cut(start, min(start + BLOCK, len(self.text)))
            yield Block(part.tokens, part.context, part.position, part.document, {})


def require_sites(source: RowSource, sites: Sequence[str]) -> None:
    """MechlabError unless the source has activations at all ``sites``."""
    for site in sites:
        if source.sites is not None and site not in source.sites:
            there = ", ".join(source.sites) or "no activations"
            raise MechlabError("source does not hold the site", site, f"it holds {there}")
