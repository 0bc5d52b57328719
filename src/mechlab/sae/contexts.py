"""Batches of whole contexts: activations, tokens and the model's own predictions.

What ``train`` needs when a dictionary is judged inside the model (``e2e``): one forward gives the
activations of some sites and the next-token distributions, for all dictionaries of a pass.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.activations.batch import Batch, require_state, seed_of
from mechlab.activations.capture import check_tokens, hooks
from mechlab.activations.selection import Selection
from mechlab.activations.shard import Rows
from mechlab.data.corpus import Corpus
from mechlab.data.stream import Contexts, Position, contexts
from mechlab.errors import MechlabError
from mechlab.files import fingerprint
from mechlab.models.subject import Subject
from mechlab.sae.source import Opener

# Contexts that are mixed with one another.
_GROUP = 512


@dataclass(frozen=True)
class ContextBatch(Batch):
    """Rows of whole contexts, context by context.

    Attributes:
        tokens: token ids ``[context, pos]``, padded on the right.
        mask: True on real tokens; chosen: True on those that are rows (all but BOS).
        clean: log probabilities of the next token of each row, from the model as it is.
    """

    tokens: Int[Tensor, "context pos"]
    mask: Bool[Tensor, "context pos"]
    chosen: Bool[Tensor, "context pos"]
    clean: Float[Tensor, "row d_vocab"]


class ContextFeed:
    """Batches of whole contexts with the model's activations and predictions, to train on.

    Contexts come in the corpus' order, mixed over a few hundred; epoch after epoch.
    """

    def __init__(
        self,
        subject: Subject,
        corpus: Corpus,
        sites: Sequence[str],
        *,
        split: str = "train",
        n_ctx: int | None = None,
        pack: bool = True,
    ) -> None:
        for site in sites:
            if not subject.site(site).editable:
                raise MechlabError("site cannot be replaced", site, "use a site of the table, no pattern")
        self.subject, self.sites = subject, tuple(sites)
        self._corpus, self._split, self._pack = corpus, split, pack
        self.n_ctx = subject.n_ctx if n_ctx is None else n_ctx
        if not 2 <= self.n_ctx <= subject.n_ctx:
            raise MechlabError("context length does not fit", self.n_ctx, f"2 to {subject.n_ctx}")

    def fingerprints(self) -> dict[str, str]:
        """What a dictionary trained on it records."""
        return {"model": self.subject.fingerprint, "activations": self.identity()}

    def identity(self) -> str:
        """Fingerprint of everything that decides the rows and their order."""
        stream = [self._corpus.fingerprint, self._split, self._pack, self.n_ctx, _GROUP]
        return fingerprint(["contexts", self.subject.fingerprint, stream, self.sites])

    def opener(self, sites: Sequence[str], device: str = "cpu") -> Opener:
        """Batches with all the sites, on the model's device."""

        def open_batches(batch_size: int, seed: int, state: dict[str, Any] | None) -> _ContextBatches:
            return _ContextBatches(self, batch_size, seed, state)

        return open_batches

    def groups(self, start: Position, size: int) -> Generator[Contexts, None, None]:
        """Contexts of the corpus, ``size`` at a time, from a place on."""
        return contexts(
            self._corpus, self._split, self.subject.tokenizer, n_ctx=self.n_ctx, batch=size,
            pack=self._pack, start=start, render=self.subject.chat_rows,
        )  # fmt: skip

    @torch.no_grad()
    def batch(self, part: Contexts, which: Int[Tensor, "context"], first: int) -> ContextBatch | None:
        """Run the model on some contexts of a group; None when there is no row in them."""
        subject, tokens, mask = self.subject, part.tokens[which], part.mask[which]
        # Contexts of other lengths may have set the group's width.
        width = int(mask.sum(1).max())
        tokens, mask = tokens[:, :width], mask[:, :width]
        chosen = Selection().chosen(subject, tokens, mask)
        rows = Rows.of(chosen, subject.device)
        if len(rows) == 0:
            return None
        check_tokens(subject, tokens)
        values: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            values[name] = rows.take(value)

        places = [subject.site(site) for site in self.sites]
        with hooks(subject, places, keep, [len(tokens)], stop=False):
            clean = predictions(subject, tokens, mask, chosen)
        document = part.document[which][rows.context, rows.position]
        row = torch.arange(first, first + len(rows))
        return ContextBatch(values, row, document, tokens, mask, chosen, clean)


class _ContextBatches(Iterator[Batch]):
    def __init__(self, feed: ContextFeed, batch_size: int, seed: int, state: dict[str, Any] | None) -> None:
        self._feed, self._seed = feed, seed
        self._contexts = max(1, batch_size // (feed.n_ctx - 1))
        self._size = max(1, _GROUP // self._contexts) * self._contexts
        if state is not None:
            require_state(state, self._settings())
        # Where the group now in use starts, its number, and how many of its contexts were given.
        there = state or {"epoch": 0, "number": 0, "given": 0, "row": 0, "start": {}}
        self._epoch, self._number = int(there["epoch"]), int(there["number"])
        self._given, self._row = int(there["given"]), int(there["row"])
        self._start = Position(**there["start"])
        self._groups = feed.groups(self._start, self._size)
        self._group: Contexts | None = None
        self._order = torch.empty(0, dtype=torch.long)

    def __next__(self) -> Batch:
        while True:
            if self._group is None or self._given >= len(self._order):
                self._next_group()
            assert self._group is not None
            which = self._order[self._given : self._given + self._contexts]
            self._given += len(which)
            batch = self._feed.batch(self._group, which, self._row)
            if batch is not None:
                self._row += len(batch)
                return batch

    def state(self) -> dict[str, Any]:
        return {
            "settings": self._settings(),
            "epoch": self._epoch,
            "number": self._number,
            "given": self._given,
            "row": self._row,
            "start": asdict(self._start),
        }

    def __enter__(self) -> _ContextBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._groups.close()

    def _settings(self) -> list[Any]:
        return [self._feed.identity(), self._contexts, self._seed]

    def _next_group(self) -> None:
        if self._group is not None:
            self._start, self._number, self._given = self._group.next, self._number + 1, 0
        self._group = next(self._groups, None)
        if self._group is None:
            self._groups.close()
            if self._number == 0:
                raise StopIteration
            self._epoch, self._number, self._start = self._epoch + 1, 0, Position()
            self._groups = self._feed.groups(self._start, self._size)
            self._group = next(self._groups)
        generator = torch.Generator().manual_seed(seed_of(self._seed, self._epoch, self._number))
        self._order = torch.randperm(len(self._group.tokens), generator=generator)


def predictions(
    subject: Subject,
    tokens: Int[Tensor, "context pos"],
    mask: Bool[Tensor, "context pos"],
    chosen: Bool[Tensor, "context pos"],
) -> Float[Tensor, "row d_vocab"]:
    """Log probabilities of the next token at the chosen positions, with the graph where there is one."""
    extra = {} if subject.causal else {"attention_mask": mask.long().to(subject.device)}
    logits = subject.module(tokens.to(subject.device), use_cache=False, **extra).logits
    picked: Tensor = logits[chosen.to(logits.device)]
    return picked.float().log_softmax(-1)
