"""Harvesting: running a model over a corpus and storing the activations shard by shard.

1. The stream of contexts is cut into shards of a fixed number of contexts, so what a shard holds
   follows from the settings alone. With several processes, shard s belongs to rank s mod world.
2. A shard's rows are gathered by hooks into one of two buffers while another thread writes the
   other buffer, checksum included.
3. A finished shard gets a line in a journal beside it: rows, checksum, and the place in the
   stream where it starts and where the next one does. Resuming reads the journal, checks the
   shards, and goes on at that place; a shard that is not whole is made again.
4. The manifest comes last, with the statistics of all shards merged in order.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mechlab.activations.capture import check_tokens, reading
from mechlab.activations.ranks import Ranks, together
from mechlab.activations.selection import Selection
from mechlab.activations.shard import Rows, Shard
from mechlab.activations.storage import FORMATS, check_format
from mechlab.activations.store import (
    JOURNAL,
    KIND,
    SHARDS,
    Store,
    merged_statistics,
    open_store,
    read_journals,
)
from mechlab.artifacts import PARTIAL, Writer, writing
from mechlab.data.corpus import Corpus
from mechlab.data.stream import Contexts, Position, contexts
from mechlab.errors import MechlabError
from mechlab.files import disk_errors, is_whole, write_atomic
from mechlab.models.sites import Site
from mechlab.models.subject import Subject

Progress = Callable[[int, int], None]
Make = Callable[[list[tuple[Contexts, Rows]], dict[str, Any]], Iterator[int]]

# A shard is the unit of writing and of resuming: large enough to write at full speed, small
# enough that two fit in memory and a kill costs little.
_SHARD_BYTES = 2**26
_SHARD_ROWS = 2**16
_NAME = "shard-{:05d}.safetensors"
# Corrupt rows that are named in a store's record; all are counted.
_FAULTS = 5
# Documents among which one must be a chat where assistant turns are wanted.
_LOOK = 256
# Tokens per forward: beyond this a bigger batch is no faster.
_FORWARD_TOKENS = {"cpu": 4096, "cuda": 32768}


@dataclass(frozen=True)
class Plan:
    """What decides every byte of a shard, given the stream."""

    sites: tuple[Site, ...]
    storage: str
    n_ctx: int
    batch: int
    select: Selection
    shard_contexts: int


def harvest(
    subject: Subject,
    corpus: Corpus,
    sites: str | Sequence[str],
    out: Path | str,
    *,
    tokens: int,
    split: str = "train",
    n_ctx: int | None = None,
    batch: int | None = None,
    storage: str | None = None,
    select: Selection | None = None,
    pack: bool = False,
    bos: str = "each",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Store:
    """Run the model over a corpus and store the activations of its tokens.

    Under ``torchrun`` every process makes its share of the shards, into one directory that all of
    them see; the result is the same as one process'.

    Args:
        sites: one site name or several; a row holds all of them for one token.
        out: directory of the store; an unfinished harvest of the same settings is resumed.
        tokens: how many rows to store; fewer, with a warning, when the split has fewer.
        split: which documents to read ("train", "validation" or "test").
        n_ctx: context length in tokens, BOS included; the model's own by default.
        batch: contexts per forward.
        storage: "float32", "float16", "bfloat16" or "int8"; the model's own dtype by default.
        select: which tokens to store; all but BOS by default.
        pack: fill contexts with several documents.
        bos: where BOS is put, see ``mechlab.data.stream.contexts``.
        progress: called with (rows so far, rows wanted).

    Raises MechlabError for a missing site, a context longer than the model's, an output
    directory that holds something else, a full disk, and NaN or infinite activations.
    """
    names = [sites] if isinstance(sites, str) else list(sites)
    if tokens < 1:
        raise MechlabError("number of tokens must be positive", tokens, "ask for at least 1")
    plan = make_plan(subject, names, n_ctx=n_ctx, batch=batch, storage=storage, select=select or Selection())
    policy = bos if subject.bos is not None else "none"
    config = {
        "sites": [place.name for place in plan.sites],
        "storage": plan.storage,
        "corpus": corpus.name,
        "column": corpus.column,
        "skip_corrupt": corpus.skip_corrupt,
        "split": split,
        "tokens": tokens,
        "n_ctx": plan.n_ctx,
        "pack": pack,
        "bos": policy,
        "select": asdict(plan.select),
        "batch": plan.batch,
        "shard_contexts": plan.shard_contexts,
    }
    inputs = {"model": subject.fingerprint, "corpus": corpus.fingerprint}

    def stream(start: Position) -> Generator[Contexts, None, None]:
        return open_stream(subject, corpus, split, plan, pack=pack, bos=bos, start=start)

    stream(Position()).close()  # its mistakes come before any directory is made
    _check_wanted(plan, corpus, split, policy)
    out = Path(out)
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(together())

        work = writing(out, KIND, config=config, seed=0, inputs=inputs, overwrite=overwrite)
        writers: list[Writer] = []

        def begin() -> bool:
            writers.append(stack.enter_context(work))
            return writers[0].finished is not None

        if not ranks.first_does(begin):
            made = ranks.each_does(
                lambda: fill(subject, plan, stream, out / PARTIAL, tokens, ranks=ranks, progress=progress)
            )

            def end() -> None:
                if sum(entry["rows"] for entry in read_journals(out / PARTIAL)) != made:
                    raise MechlabError(
                        "shards of other processes are not here", out, "choose an --out that all of them see"
                    )
                publish(writers[0], plan, subject.name, f"{corpus.name}, {split}", tokens)

            ranks.first_does(end)
    return open_store(out)


def make_plan(
    subject: Subject,
    sites: Sequence[str],
    *,
    n_ctx: int | None = None,
    batch: int | None = None,
    storage: str | None = None,
    select: Selection,
) -> Plan:
    """Settings made definite; MechlabError for those that cannot be."""
    places = tuple(subject.site(name) for name in dict.fromkeys(sites))
    # One head can be written in two ways (":3", ":03").
    if not sites or len({place.name for place in places}) != len(sites):
        raise MechlabError("sites must be named once each", ", ".join(sites) or "none", "check --sites")
    for place in places:
        if place.pattern:
            raise MechlabError(
                "patterns differ in size from context to context and cannot be stored", place.name,
                "read them in memory with ml.activations",
            )  # fmt: skip
    n_ctx = subject.n_ctx if n_ctx is None else n_ctx
    check_context(subject, n_ctx)
    if batch is None:
        batch = max(1, _FORWARD_TOKENS.get(subject.device.type, 4096) // n_ctx)
    if batch < 1:
        raise MechlabError("batch must be positive", batch, "ask for at least 1 context per forward")
    own = str(subject.dtype).removeprefix("torch.")
    storage = (own if own in FORMATS else "float32") if storage is None else storage
    check_format(storage)
    bytes_per_row = sum(place.dim for place in places) * FORMATS[storage].itemsize
    rows = min(_SHARD_ROWS, _SHARD_BYTES // bytes_per_row)
    shard_contexts = max(1, rows // n_ctx // batch) * batch
    return Plan(places, storage, n_ctx, batch, select, shard_contexts)


def open_stream(
    subject: Subject, corpus: Corpus, split: str, plan: Plan, *, pack: bool, bos: str, start: Position
) -> Generator[Contexts, None, None]:
    """The contexts that a harvest under ``plan`` reads, from ``start`` on."""
    return contexts(
        corpus, split, subject.tokenizer, n_ctx=plan.n_ctx, batch=plan.batch, pack=pack, bos=bos,
        start=start, render=subject.chat_rows,
    )  # fmt: skip


def _check_wanted(plan: Plan, corpus: Corpus, split: str, bos: str) -> None:
    """MechlabError where no token can be wanted: a corpus without an end would be read for ever."""
    select = plan.select
    if select.first >= plan.n_ctx:
        raise MechlabError("first position is beyond the context", select.first, f"below {plan.n_ctx}")
    if select.last == 1 and bos == "each" and not select.bos:
        raise MechlabError("only BOS stands before the last position", 1, "keep BOS, or raise --last")
    if select.assistant and all(
        isinstance(document.text, str) for document in itertools.islice(corpus.documents(split), _LOOK)
    ):
        raise MechlabError("texts have no assistant turns", corpus.name, "its column must hold chats")


def check_context(subject: Subject, n_ctx: int) -> None:
    """MechlabError unless contexts of ``n_ctx`` tokens, BOS included, fit the model."""
    if not 2 <= n_ctx <= subject.n_ctx:
        raise MechlabError("context length is out of range", n_ctx, f"between 2 and {subject.n_ctx}")


def fill(
    subject: Subject,
    plan: Plan,
    stream: Callable[[Position], Iterable[Contexts]],
    work: Path,
    tokens: int,
    *,
    ranks: Ranks = Ranks(),  # noqa: B008 (immutable)
    progress: Progress | None = None,
) -> int:
    """Make the shards that are not there yet, up to ``tokens`` rows in all, in ``work``.

    Returns the rows of all shards, those of other ranks included.

    ``stream`` gives the contexts from a position on. The journal in ``work`` says what was made.
    """
    done = {entry["number"]: entry for entry in read_journals(work) if is_whole(work / entry["name"], entry)}
    number = next(i for i in itertools.count() if i not in done)
    rows, first, start = 0, 0, Position()
    if number:
        last = done[number - 1]
        rows, first = last["first_row"] + last["rows"], last["first_context"] + last["contexts"]
        start = Position(**last["next"])
    batches = iter(stream(start))
    if progress:
        progress(rows, tokens)
    per_shard = plan.shard_contexts // plan.batch
    with making(subject, plan, work, work / JOURNAL.format(ranks.rank)) as make:
        while rows < tokens and (group := list(itertools.islice(batches, per_shard))):
            picked = picked_rows(subject, plan, group, tokens - rows)
            entry = {
                "number": number,
                "first_row": rows,
                "first_context": first,
                "start": asdict(start),
                "next": asdict(picked[-1][0].next),
                "faults": [fault for batch, _ in picked for fault in batch.faults][:_FAULTS],
            }
            if number % ranks.world == ranks.rank and number not in done:
                for made in make(picked, entry):
                    if progress:
                        progress(rows + made, tokens)
            rows += sum(len(each) for _, each in picked)
            first += sum(len(batch.tokens) for batch, _ in picked)
            start, number = picked[-1][0].next, number + 1
    return rows


def picked_rows(
    subject: Subject, plan: Plan, group: list[Contexts], limit: int
) -> list[tuple[Contexts, Rows]]:
    """The batches of a shard with the positions to keep; batches beyond ``limit`` rows are left out."""
    found: list[tuple[Contexts, Rows]] = []
    for batch in group:
        chosen = plan.select.chosen(subject, batch.tokens, batch.mask, batch.assistant)
        rows = Rows.of(chosen, subject.device, limit)
        found.append((batch, rows))
        limit -= len(rows)
        if limit == 0:
            break
    return found


@contextlib.contextmanager
def making(subject: Subject, plan: Plan, work: Path, journal: Path) -> Iterator[Make]:
    """A function that makes one shard a call and gives the rows done so far after each forward.

    The file is written by another thread; leaving the block waits for it and raises its error.
    """
    device = subject.device
    room = plan.shard_contexts * plan.n_ctx
    # The second buffer is filled while the first is written.
    shards = [Shard(plan.sites, plan.storage, room, device) for _ in range(2)]
    pending: list[Future[None]] = []
    current = shards[0]

    def write(shard: Shard, entry: dict[str, Any], ready: torch.cuda.Event | None) -> None:
        with disk_errors(work.parent):
            line = {**entry, **shard.write(work / _NAME.format(entry["number"]), ready)}
            with journal.open("a") as handle:
                # A line that a kill tore apart must not swallow this one.
                handle.write(f"\n{json.dumps(line)}\n")
                handle.flush()
                os.fsync(handle.fileno())

    def make(picked: list[tuple[Contexts, Rows]], entry: dict[str, Any]) -> Iterator[int]:
        nonlocal current
        while len(pending) > 1 or (pending and pending[0].done()):
            pending.pop(0).result()
        shards.reverse()
        current = shards[0]
        current.clear()
        first = entry["first_context"]
        for batch, rows in picked:
            check_tokens(subject, batch.tokens)
            current.begin(batch, rows, first)
            run(batch.tokens, batch.mask)
            first += len(batch.tokens)
            yield current.rows
        ready = None
        if device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(torch.cuda.current_stream(device))
        pending.append(pool.submit(write, current, entry, ready))

    with (
        ThreadPoolExecutor(1, "shard writer") as pool,
        reading(
            subject, [site.name for site in plan.sites], lambda name, value: current.put(name, value)
        ) as run,
    ):
        yield make
        for each in pending:
            each.result()


def publish(writer: Writer, plan: Plan, model: str, source: str, tokens: int) -> None:
    """The manifest of the shards that the journals in the writer's directory list."""
    entries = read_journals(writer.work)
    rows = sum(entry["rows"] for entry in entries)
    if rows == 0:
        for leftover in [*writer.work.glob("journal-*"), *(writer.work / e["name"] for e in entries)]:
            leftover.unlink()  # nothing here is worth going on from
        remedy = "its column must hold chats" if plan.select.assistant else "add documents"
        raise MechlabError("corpus has no tokens to store in this split", source, remedy)
    if rows < tokens:
        warnings.warn(f"corpus ended after {rows:,} of {tokens:,} tokens ({source})", stacklevel=4)
    write_atomic(writer.work / SHARDS, "".join(json.dumps(entry) + "\n" for entry in entries))
    facts = {
        "model": model,
        "rows": rows,
        "contexts": sum(entry["contexts"] for entry in entries),
        "corrupt": entries[-1]["next"]["corrupt"],
        "faults": [fault for entry in entries for fault in entry["faults"]][:_FAULTS],
        "statistics": {site.name: merged_statistics(writer.work, entries, site.name) for site in plan.sites},
    }
    writer.commit(
        [SHARDS, *(entry["name"] for entry in entries)],
        facts=facts,
        sums={entry["name"]: {"xxh3_128": entry["xxh3_128"]} for entry in entries},
    )
