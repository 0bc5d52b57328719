"""Token streams: the documents of a corpus, tokenised ahead of their reader and cut into contexts.

1. Rows of the split are read and tokenised in groups, many documents a call, in a thread of
   their own (``ahead``).
2. The documents lie one after another in flat arrays, each behind its BOS where it has one.
3. Contexts are cut from those by index arithmetic. A context that begins inside a document is
   given a BOS of its own where the policy is "each".

Where a stream goes on after a batch is three numbers (``Position``). A stream that starts there
gives exactly the batches that are left, whatever lies behind it is not tokenised again, and the
contexts depend on neither the batch size nor the groups.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechlab.data.ahead import ahead
from mechlab.data.corpus import SPLITS, Corpus
from mechlab.data.rows import Chat, Content, Fault
from mechlab.errors import MechlabError, near

BOS_POLICIES = ("each", "document", "none")
# Groups of documents grow to this many, or to about this many characters: a reader that wants
# little waits for little, and a call of the tokenizer still keeps all its threads busy.
_FIRST, _DOCUMENTS, _CHARACTERS = 16, 256, 2**20

Render: TypeAlias = Callable[[Chat], tuple[list[int], list[bool]]]
"""Turns of a chat -> its token ids without BOS, and which of them an assistant wrote."""


@dataclass(frozen=True)
class Position:
    """Where a stream goes on.

    Attributes:
        row: rows of the corpus (of all splits, corrupt ones counted) that lie wholly behind.
        token: tokens of the next document already given out, the document's BOS counted.
        corrupt: corrupt rows of this split skipped so far.
    """

    row: int = 0
    token: int = 0
    corrupt: int = 0


@dataclass(frozen=True)
class Contexts:
    """A batch of contexts, padded on the right by repeating the last token.

    Attributes:
        tokens: token ids ``[context, pos]``.
        mask: True on real tokens, BOS among them ``[context, pos]``.
        document: id of the document each token comes from ``[context, pos]``; a BOS belongs to
            the document behind it, padding to the one before it.
        assistant: True on tokens of an assistant's turns ``[context, pos]``; None without ``render``.
        faults: the corrupt rows skipped for this batch, each "file, line N: why".
        next: where the stream goes on after this batch.
    """

    tokens: Int[Tensor, "context pos"]
    mask: Bool[Tensor, "context pos"]
    document: Int[Tensor, "context pos"]
    assistant: Bool[Tensor, "context pos"] | None
    faults: tuple[str, ...]
    next: Position


def bos_token(tokenizer: Any) -> int | None:
    """The token that starts a text: BOS, or CLS for a tokenizer without; None without either."""
    for name in ("bos_token_id", "cls_token_id"):
        token: int | None = getattr(tokenizer, name, None)
        if token is not None:
            return token
    return None


def contexts(
    corpus: Corpus,
    split: str,
    tokenizer: Any,
    *,
    n_ctx: int,
    batch: int = 32,
    pack: bool = False,
    bos: str = "each",
    start: Position = Position(),
    render: Render | None = None,
    threads: bool = True,
) -> Generator[Contexts, None, None]:
    """Contexts of at most ``n_ctx`` tokens, BOS included, ``batch`` at a time.

    Args:
        corpus, split: where the documents come from.
        tokenizer: a Hugging Face tokenizer; its special tokens are left out but for BOS.
        pack: fill every context with consecutive documents of the split, so that only the last
            one may be short; ``document`` tells them apart. Otherwise a context holds tokens of
            one document, and a long document gives several.
        bos: "each" starts every context with BOS, and every document inside a packed one;
            "document" starts documents only, so that a context from the middle of one has none;
            "none" puts none. A tokenizer without BOS and CLS has none to put.
        start: ``next`` of the last batch that was read, to go on from there.
        render: turns a chat into tokens; needed where the corpus holds chats.
        threads: tokenise in a background thread; it ends when the generator is closed or dropped.

    Raises MechlabError for an unknown policy or split, a context too short for its BOS, a
    position that is not one of this stream, a chat without ``render``, a chat that cannot be rendered
    (with ``skip_corrupt`` a fault), and what ``Corpus`` raises.
    """
    if bos not in BOS_POLICIES:
        raise MechlabError("unknown BOS policy", bos, near(bos, BOS_POLICIES))
    if split not in SPLITS:
        raise MechlabError("unknown split", split, near(split, SPLITS))
    token = None if bos == "none" else bos_token(tokenizer)
    again = token is not None and bos == "each"
    if n_ctx < 1 + again:
        raise MechlabError("context length is too short", n_ctx, f"at least {1 + again}")
    if batch < 1:
        raise MechlabError("batch must be positive", batch, "at least 1 context")
    encoded = _encode(corpus, split, tokenizer, token, start, render)
    chunks = ahead(encoded) if threads else encoded
    return _batches(chunks, n_ctx, batch, pack, token if again else None, start.corrupt)


@dataclass(frozen=True)
class _Flat:
    """Documents one after another, each behind its BOS where it has one.

    ``starts[i]`` is the index of document i's first token; it is negative where the first
    document's beginning was given out before.
    """

    tokens: Int[np.ndarray, "token"]
    document: Int[np.ndarray, "token"]
    assistant: Bool[np.ndarray, "token"] | None
    starts: list[int]
    faults: list[tuple[int, str]]

    def from_token(self, at: int) -> _Flat:
        """Without the first ``at`` tokens and the documents that end there."""
        first = bisect.bisect_right(self.starts, at) - 1 if at < len(self.tokens) else len(self.starts)
        return _Flat(
            self.tokens[at:],
            self.document[at:],
            None if self.assistant is None else self.assistant[at:],
            [start - at for start in self.starts[first:]],
            self.faults,
        )

    def followed_by(self, other: _Flat) -> _Flat:
        both = self.assistant is not None and other.assistant is not None
        return _Flat(
            np.concatenate([self.tokens, other.tokens]),
            np.concatenate([self.document, other.document]),
            np.concatenate([self.assistant, other.assistant]) if both else None,
            self.starts + [start + len(self.tokens) for start in other.starts],
            self.faults + other.faults,
        )


def _encode(
    corpus: Corpus, split: str, tokenizer: Any, bos: int | None, start: Position, render: Render | None
) -> Generator[_Flat, None, None]:
    """The documents from ``start`` on, a group at a time; the first one without what lies behind."""
    behind = start.token
    for group in _groups(corpus.rows(split, start.row)):
        texts = [content for _, content in group if isinstance(content, str)]
        ids_of = iter(_tokenise(tokenizer, texts))
        pieces: list[list[int]] = []
        turns: list[list[bool]] = []
        documents, lengths, faults = [], [], []
        for number, content in group:
            if isinstance(content, Fault):
                faults.append((number, str(content)))
                continue
            if isinstance(content, str):
                ids = next(ids_of)
                said = [False] * len(ids) if render else []
            elif render:
                try:
                    ids, said = render(content)
                except MechlabError as error:
                    where = f"{corpus.name}, row {number}"
                    # A tokenizer that can render no chat is no fault of the row.
                    if not (tokenizer.chat_template and tokenizer.is_fast):
                        raise
                    if not corpus.skip_corrupt:
                        raise MechlabError(
                            error.what, f"{where}: {error.value}", f"{error.remedy}, or pass --skip-corrupt"
                        ) from None
                    faults.append((number, f"{where}: {error.what}: {error.value}"))
                    continue
            else:
                raise MechlabError(
                    "corpus holds chats", f"{corpus.name}, row {number}", "pass render, or name a text column"
                )
            if ids:
                # Texts that were rendered for a model may bring their BOS along.
                prefix = [] if bos is None or ids[0] == bos else [bos]
                pieces += [prefix, ids]
                turns += [[False] * len(prefix), said]
                documents.append(number)
                lengths.append(len(prefix) + len(ids))
        ends = list(itertools.accumulate(lengths, initial=0))
        flat = _Flat(
            np.fromiter(itertools.chain.from_iterable(pieces), np.int64, ends[-1]),
            np.repeat(np.array(documents, dtype=np.int64), lengths),
            np.fromiter(itertools.chain.from_iterable(turns), np.bool_, ends[-1]) if render else None,
            ends[:-1],
            faults,
        )
        if behind and documents:
            if documents[0] != start.row or behind >= lengths[0]:
                raise MechlabError("position is not one of this stream", start, "start from the beginning")
            flat, behind = flat.from_token(behind), 0
        yield flat


def _groups(rows: Iterable[tuple[int, Content]]) -> Iterator[list[tuple[int, Content]]]:
    """The rows, a group at a time; an error comes after the rows before it."""
    group: list[tuple[int, Content]] = []
    characters, most, failure = 0, _FIRST, None
    try:
        for number, content in rows:
            group.append((number, content))
            characters += len(content) if isinstance(content, str) else 0
            if len(group) == most or characters > _CHARACTERS:
                yield group
                group, characters, most = [], 0, min(2 * most, _DOCUMENTS)
    except MechlabError as error:
        failure = error
    if group:
        yield group
    if failure:
        raise failure


def _tokenise(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of every text without special tokens."""
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return encoded


def _batches(
    chunks: Generator[_Flat, None, None], n_ctx: int, batch: int, pack: bool, again: int | None, corrupt: int
) -> Generator[Contexts, None, None]:
    """Batches from flat documents; ``again`` is the BOS of contexts that begin inside a document."""
    with contextlib.closing(chunks):
        held: _Flat | None = None
        for chunk in itertools.chain(chunks, [None]):
            if chunk is not None:
                held = chunk if held is None else held.followed_by(chunk)
            if held is None:
                return
            cuts = _cuts(held.starts, len(held.tokens), n_ctx, pack, again is not None, chunk is None)
            at = 0
            # A batch waits for what is behind it: the faults at the end belong to the last one.
            for first in range(0, len(cuts) if chunk is None else len(cuts) - batch, batch):
                group = cuts[first : first + batch]
                at = group[-1][1]
                row, token = _place(held, at)
                faults = tuple(why for number, why in held.faults if number < row)
                del held.faults[: len(faults)]
                corrupt += len(faults)
                yield _contexts(held, group, again, faults, Position(row, token, corrupt))
            held = held.from_token(at)


def _cuts(
    starts: list[int], total: int, n_ctx: int, pack: bool, again: bool, final: bool
) -> list[tuple[int, int, int]]:
    """Contexts as (first token, token after the last, 1 if a BOS goes before the first).

    With ``pack``, a context that the tokens do not fill is cut only when they are the ``final`` ones.
    """
    ends = [*starts[1:], total]
    cuts: list[tuple[int, int, int]] = []
    at = document = 0
    while at < total:
        while ends[document] <= at:
            document += 1
        extra = int(again and at != starts[document])
        end = at + n_ctx - extra
        if pack and end > total and not final:
            break
        end = min(end, total if pack else ends[document])
        cuts.append((at, end, extra))
        at = end
    return cuts


def _place(held: _Flat, at: int) -> tuple[int, int]:
    """``row`` and ``token`` of the position before token ``at``; at the very end, behind all rows seen."""
    if at == len(held.tokens):
        return 1 + max([int(held.document[-1]), *(number for number, _ in held.faults[-1:])]), 0
    token = at - held.starts[bisect.bisect_right(held.starts, at) - 1]
    return (int(held.document[at]), token) if token else (int(held.document[at - 1]) + 1, 0)


def _contexts(
    held: _Flat, cuts: list[tuple[int, int, int]], again: int | None, faults: tuple[str, ...], after: Position
) -> Contexts:
    first, end, extra = np.array(cuts).T[:, :, None]
    index = first - extra + np.arange((end - first + extra).max())
    mask = index < end
    # Padding repeats the last token: models warn when they meet their padding token without a mask.
    kept = index.clip(first, end - 1)
    tokens, assistant = held.tokens[kept], None
    inserted = index < first
    if again is not None:
        tokens[inserted] = again
    if held.assistant is not None:
        assistant = torch.from_numpy(held.assistant[kept] & mask & ~inserted)
    return Contexts(
        torch.from_numpy(tokens),
        torch.from_numpy(mask),
        torch.from_numpy(held.document[kept]),
        assistant,
        faults,
        after,
    )
