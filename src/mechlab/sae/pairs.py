"""Activations of two models on the same tokens, to compare the models by one dictionary.

A pair is trained on like a store: its sites are those of the first model with "A:" in front and those
of the second with "B:", as in ``site="A:blocks.2.hook_resid_post,B:blocks.2.hook_resid_post"``. What
to read off such a dictionary is said in ``crosscoder``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.batch import Batch
from mechlab.activations.batches import BUFFER
from mechlab.activations.capture import check_tokens, reading
from mechlab.activations.gather import StoreBatches
from mechlab.activations.harvest import make_plan, open_stream
from mechlab.activations.live import Chunk
from mechlab.activations.selection import Selection
from mechlab.activations.shard import Rows
from mechlab.activations.storage import SCALE, dequantise
from mechlab.activations.store import Store
from mechlab.data.corpus import Corpus
from mechlab.data.stream import Position
from mechlab.errors import MechlabError
from mechlab.files import fingerprint
from mechlab.models.subject import Subject
from mechlab.sae.source import Opener, Whole, mixed, require_rows

A, B = "A:", "B:"
_COLUMNS = ("tokens", "document", "position")


class StorePair:
    """Two stores whose rows are the same tokens.

    Rows are mixed as the first store's are; the second's are looked up by their number.
    """

    def __init__(self, a: Store, b: Store) -> None:
        for name in _COLUMNS:
            if a.n_rows != b.n_rows or not torch.equal(a.column(name), b.column(name)):
                raise MechlabError(
                    f"stores differ in their {name}",
                    f"{a.artifact.path} ({a.n_rows:,} rows), {b.artifact.path} ({b.n_rows:,} rows)",
                    "harvest both from the same corpus with the same settings",
                )
        self._stores = {A: a, B: b}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, with the model in front."""
        return tuple(model + site for model, store in self._stores.items() for site in store.sites)

    def fingerprints(self) -> dict[str, str]:
        """What a dictionary trained on the pair records of it."""
        a, b = (store.artifact.manifest for store in self._stores.values())
        return {
            "model_a": a.inputs["model"],
            "model_b": b.inputs["model"],
            "activations": fingerprint([a.fingerprint, b.fingerprint]),
        }

    def activations(self, site: str) -> Float[Tensor, "row dim"]:
        """Activations of every row at one site, in stream order, in memory."""
        store, bare = self._at(site)
        return store.activations(bare)

    def mean_norm(self, site: str) -> float:
        """Mean norm of a site's rows."""
        store, bare = self._at(site)
        return float(store.statistics(bare)["mean_norm"])

    def opener(self, sites: Sequence[str], device: str = "cpu") -> Opener:
        """Mixed batches of some of the sites, epoch after epoch."""
        for site in sites:
            self._at(site)[0].check_sites([self._at(site)[1]])

        def open_batches(batch_size: int, seed: int, state: dict[str, Any] | None) -> _StorePairBatches:
            return _StorePairBatches(self._stores, tuple(sites), batch_size, seed, device, state)

        return open_batches

    def _at(self, site: str) -> tuple[Store, str]:
        return self._stores[_model(site)], site[len(A) :]


class _StorePairBatches(Iterator[Batch]):
    def __init__(
        self,
        stores: dict[str, Store],
        sites: tuple[str, ...],
        batch_size: int,
        seed: int,
        device: str,
        state: dict[str, Any] | None,
    ) -> None:
        self._b, self._device = stores[B], device
        own = [site[len(A) :] for site in sites if _model(site) == A]
        self._others = [site[len(B) :] for site in sites if _model(site) == B]
        self._shown = [A + site for site in own]
        shards = [shard for shard in self._b.shards if shard.rows]
        self._first = torch.tensor([int(shard.entry["first_row"]) for shard in shards])
        self._shards = shards
        require_rows(stores[A].n_rows, batch_size)
        batches = StoreBatches(
            stores[A], tuple(own) or stores[A].sites[:1], batch_size=batch_size,
            buffer=max(BUFFER, batch_size), seed=seed, epochs=None, device=device, state=state,
        )  # fmt: skip
        self._batches = Whole(batches, batch_size)

    def __next__(self) -> Batch:
        batch = next(self._batches)
        values = {site: batch.values[site[len(A) :]] for site in self._shown}
        values |= {B + site: self._rows(site, batch.row) for site in self._others}
        return Batch(values, batch.row, batch.document)

    def state(self) -> dict[str, Any]:
        return self._batches.state()

    def __enter__(self) -> _StorePairBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._batches.close()

    def _rows(self, site: str, row: Int[Tensor, "row"]) -> Float[Tensor, "row dim"]:
        """Rows of the second store by their numbers, in the order given."""
        raw = self._shards[0].raw(site)
        out = torch.empty(len(row), raw.shape[1], dtype=raw.dtype)
        scale = torch.empty(len(row))
        shard = torch.searchsorted(self._first, row, right=True) - 1
        for number in set(shard.tolist()):
            here = (shard == number).nonzero().squeeze(1)
            local = row[here] - self._first[number]
            out[here] = self._shards[number].raw(site)[local]
            if raw.dtype == torch.int8:
                scale[here] = self._shards[number].raw(site + SCALE)[local]
        if raw.dtype == torch.int8:
            return dequantise(out.to(self._device), scale.to(self._device))
        return out.to(self._device)


class LivePair:
    """Two models that run over the same stream of contexts; a ``Source`` of shuffled batches."""

    def __init__(
        self,
        a: Subject,
        b: Subject,
        corpus: Corpus,
        sites: Sequence[str],
        *,
        split: str = "train",
        n_ctx: int | None = None,
        batch: int | None = None,
        select: Selection | None = None,
        pack: bool = False,
        bos: str = "each",
    ) -> None:
        if a.tokenizer.get_vocab() != b.tokenizer.get_vocab() or a.bos != b.bos:
            raise MechlabError(
                "models have different tokens", f"{a.name}, {b.name}", "compare models of one tokenizer"
            )
        n_ctx = min(a.n_ctx, b.n_ctx) if n_ctx is None else n_ctx
        bare = {model: [site[len(A) :] for site in sites if _model(site) == model] for model in (A, B)}
        select = select or Selection()
        self._plans = [
            make_plan(subject, bare[model], n_ctx=n_ctx, batch=batch, select=select)
            for model, subject in ((A, a), (B, b))
        ]
        self._subjects, self._corpus, self._split = (a, b), corpus, split
        self._pack, self._bos = pack, bos

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, with the model in front."""
        return tuple(
            model + site.name for model, plan in zip((A, B), self._plans, strict=True) for site in plan.sites
        )

    @property
    def device(self) -> torch.device:
        """Where batches are: where the first model runs."""
        return self._subjects[0].device

    def identity(self) -> str:
        """Fingerprint of models, stream and settings."""
        plan = self._plans[0]
        models = [subject.fingerprint for subject in self._subjects]
        stream = [self._corpus.fingerprint, self._split, self._pack, self._bos]
        return fingerprint([models, stream, self.sites, plan.n_ctx, plan.batch, asdict(plan.select)])

    def fingerprints(self) -> dict[str, str]:
        """What a dictionary trained on the pair records of it."""
        a, b = (subject.fingerprint for subject in self._subjects)
        return {"model_a": a, "model_b": b, "activations": self.identity()}

    def opener(self, sites: Sequence[str], device: str = "cpu") -> Opener:
        """Mixed batches of all the sites, epoch after epoch."""
        return mixed(self, tuple(sites), device)

    def chunks(self, place: dict[str, Any] | None = None) -> Generator[Chunk, None, None]:
        """All rows once, one forward of each model a chunk; see ``live.Source``."""
        first = place["row"] if place else 0
        start = Position(**place["stream"]) if place else Position()
        (a, b), (plan, other) = self._subjects, self._plans
        taken: dict[str, Tensor] = {}
        rows: list[Rows] = []

        def keep_of(model: str, number: int) -> Any:
            def keep(name: str, value: Tensor) -> None:
                taken[model + name] = rows[number].take(value).to(self.device)

            return keep

        stream = open_stream(a, self._corpus, self._split, plan, pack=self._pack, bos=self._bos, start=start)
        with (
            reading(a, [site.name for site in plan.sites], keep_of(A, 0)) as run_a,
            reading(b, [site.name for site in other.sites], keep_of(B, 1)) as run_b,
        ):
            for batch in stream:
                chosen = plan.select.chosen(a, batch.tokens, batch.mask, batch.assistant)
                rows[:] = [Rows.of(chosen, subject.device) for subject in (a, b)]
                count = len(rows[0])
                if count:
                    taken.clear()
                    for subject, run in ((a, run_a), (b, run_b)):
                        check_tokens(subject, batch.tokens)
                        run(batch.tokens, batch.mask)
                    document = batch.document[rows[0].context, rows[0].position]
                    place = {"row": first, "stream": asdict(start)}
                    yield Chunk(dict(taken), torch.arange(first, first + count), document, place)
                first, start = first + count, batch.next


def pairs(a: Store, b: Store) -> StorePair:
    """Two stores of different models on the same tokens, to train one dictionary on.

    Raises MechlabError when their tokens, documents or positions differ.
    """
    return StorePair(a, b)


def live_pairs(
    a: Subject, b: Subject, corpus: Corpus, sites: str | Sequence[str], **options: Any
) -> LivePair:
    """Two models that run while a dictionary is trained; nothing is kept on disk.

    Args:
        sites: sites with "A:" or "B:" in front, at least one of each.
        options: as for ``live``: split, n_ctx, batch, select, pack, bos.

    Raises MechlabError when the models' vocabularies differ or a site does not exist.
    """
    names = [site.strip() for site in sites.split(",")] if isinstance(sites, str) else list(sites)
    return LivePair(a, b, corpus, names, **options)


def _model(site: str) -> str:
    model = site[: len(A)]
    if model not in (A, B):
        raise MechlabError("site does not say of which model", site, f"A:{site} or B:{site}")
    return model
