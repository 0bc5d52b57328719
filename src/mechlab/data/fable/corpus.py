"""Fable's documents: each one a function of (seed, split, number) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import Bool, Int

from mechlab.data.fable import behaviours, behaviours_syntax, narrative
from mechlab.data.fable import lexicon as lex
from mechlab.data.fable.concepts import label
from mechlab.data.fable.grammar import Example, Mark, Segment, choice, render
from mechlab.errors import MechlabError, near

SPLITS: dict[str, int] = {"train": 250_000, "validation": 4_000, "test": 4_000}
"""Split -> number of documents in it."""

MAX_TOKENS = 127
"""The longest document, so that ``<bos>`` and a document fill a context of 128."""

KINDS: dict[str, float] = {"story": 0.84, "review": 0.08, "inference": 0.08}
"""Document kind -> share of the documents."""

RATES: dict[str, float] = {
    "ioi": 0.13,
    "facts": 0.12,
    "pronouns": 0.12,
    "translation": 0.09,
    "pairs": 0.08,
    "repeated_list": 0.06,
    "successor": 0.08,
    "greater_than": 0.07,
    "agreement": 0.06,
    "closing": 0.04,
    "kin": 0.05,
    "narrative": 0.10,
}
"""Segment kind -> share of the segments of a story document."""

_SAMPLERS: dict[str, Callable[[Random, str], Example]] = {
    "ioi": behaviours.ioi,
    "facts": behaviours.facts,
    "pronouns": behaviours_syntax.pronouns,
    "translation": behaviours_syntax.translation,
    "pairs": behaviours.pairs,
    "repeated_list": behaviours.repeated_list,
    "successor": behaviours.successor,
    "greater_than": behaviours.greater_than,
    "agreement": behaviours_syntax.agreement,
    "closing": behaviours_syntax.closing,
}
_SEGMENT_KINDS = tuple(RATES)
_BOUNDS = tuple(np.cumsum(list(RATES.values())).tolist())


@dataclass(frozen=True)
class Document:
    """One document of the corpus.

    ``tokens`` leaves ``<bos>`` out; ``text`` tokenises to exactly ``tokens``; row i of
    ``concepts`` labels token i with the columns of ``CONCEPTS``. ``kind`` is "story",
    "review" (``label`` positive or negative) or "inference" (``label`` entailment,
    contradiction or neutral; empty for stories). ``segments`` holds, per segment, the token
    it starts at and the behaviour it comes from.
    """

    id: int
    split: str
    kind: str
    label: str
    tokens: tuple[str, ...]
    text: str
    concepts: Bool[np.ndarray, "token concept"]
    segments: tuple[tuple[int, str], ...]


def document(split: str, index: int, *, seed: int = 0) -> Document:
    """Document ``index`` of a split, made without making any other.

    Raises:
        MechlabError: the split does not exist, or the index is outside it.
    """
    kind, tag, parts = _parts(split, index, seed)
    tokens: list[str] = []
    marks: list[Mark] = []
    segments: list[tuple[int, str]] = []
    for name, segment in parts:
        start = len(tokens)
        segments.append((start, name))
        tokens += segment.tokens
        marks += [(start + first, start + last, mark) for first, last, mark in segment.marks]
    concepts = label(tokens, marks)
    return Document(index, split, kind, tag, tuple(tokens), render(tokens), concepts, tuple(segments))


def documents(split: str, *, seed: int = 0, count: int | None = None, start: int = 0) -> Iterator[Document]:
    """The documents of a split in order, from number ``start`` on.

    Args:
        split: "train", "validation" or "test".
        seed: another seed is another corpus from the same grammar and the same facts.
        count: how many; all that are left when None.
        start: the first document's number, to resume.

    Raises:
        MechlabError: the split does not exist, or has no such document.
    """
    last = split_size(split) if count is None else start + count
    for index in range(start, last):
        yield document(split, index, seed=seed)


def split_size(split: str) -> int:
    """How many documents a split has.

    Raises:
        MechlabError: the split does not exist.
    """
    if split not in SPLITS:
        raise MechlabError("split does not exist", split, near(split, SPLITS))
    return SPLITS[split]


def token_rows(
    split: str, width: int, *, seed: int = 0, start: int = 0, shorten: bool = False
) -> Iterator[tuple[int, Int[np.ndarray, "width"]]]:
    """Rows of token ids for training, without labels: the fast path.

    Args:
        split: "train", "validation" or "test".
        width: tokens per row, ``<bos>`` included; a row ends in ``<pad>`` where text is short.
        seed: the corpus.
        start: the first document.
        shorten: split documents between sentences into rows of ``width``, the end of a longer
            sentence left out; otherwise one document is one row and ``width`` must be at least 128.

    Yields:
        The document's number and one row, int64, that begins with ``<bos>``.
    """
    if not shorten and width <= MAX_TOKENS:
        raise MechlabError("row width is too small for a document", width, "use 128 or shorten=True")
    ids, bos = lex.TOKEN_ID, lex.TOKEN_ID["<bos>"]
    for index in range(start, split_size(split)):
        row = [bos]
        for _, segment in _parts(split, index, seed)[2]:
            fresh = [ids[token] for token in segment.tokens]
            if len(row) + len(fresh) > width and len(row) > 1:
                yield index, _padded(row, width)
                row = [bos]
            row += fresh
        yield index, _padded(row, width)


def labelled(kind: str, split: str, *, seed: int = 0, count: int = 100) -> Iterator[tuple[str, str]]:
    """Texts with labels and without their verdict sentence, for classifiers.

    Args:
        kind: "review" or "inference".
        split: the split whose documents of that kind are walked in order.
        seed: the corpus.
        count: how many; fewer when the split ends.

    Yields:
        (text, label).

    Raises:
        MechlabError: the kind or the split does not exist.
    """
    if kind not in ("review", "inference"):
        raise MechlabError("documents of this kind have no labels", kind, "use review or inference")
    found = 0
    for index in range(split_size(split)):
        if found == count:
            return
        this, tag, parts = _parts(split, index, seed)
        if this == kind:
            found += 1
            yield render([token for name, part in parts if name != "verdict" for token in part.tokens]), tag


def _padded(row: list[int], width: int) -> Int[np.ndarray, "width"]:
    """The row at exactly ``width``: filled up, or cut where one sentence is longer."""
    padded = np.full(width, lex.TOKEN_ID["<pad>"], dtype=np.int64)
    padded[: len(row)] = row[:width]
    return padded


def _parts(split: str, index: int, seed: int) -> tuple[str, str, list[tuple[str, Segment]]]:
    """A document's kind, label and named segments, at most ``MAX_TOKENS`` tokens in all."""
    if not 0 <= index < split_size(split):
        raise MechlabError("document is outside its split", index, f"{split} has {SPLITS[split]} documents")
    # A string seed is hashed with SHA-512 by Random: neighbouring documents share nothing.
    rng = Random(f"fable {seed} {split} {index}")
    roll = rng.random()
    length = int(80 + rng.random() * (MAX_TOKENS - 79))
    if roll < KINDS["story"]:
        return "story", "", _story(rng, length)
    kind = "review" if roll < KINDS["story"] + KINDS["review"] else "inference"
    text = narrative.review(rng, length - 5) if kind == "review" else narrative.inference(rng, length)
    parts = [
        (kind, Segment(tokens, [(0, len(tokens), mark)]))
        for tokens, mark in zip(text.sentences, text.marks, strict=True)
    ]
    return kind, text.label, [*parts, ("verdict", Segment(text.verdict, []))]


def _story(rng: Random, length: int) -> list[tuple[str, Segment]]:
    hero, other = choice(rng, lex.NAMES), choice(rng, lex.NAMES)
    parts: list[tuple[str, Segment]] = []
    size = 0
    while True:
        roll = rng.random() * _BOUNDS[-1]
        name = next(kind for kind, bound in zip(_SEGMENT_KINDS, _BOUNDS, strict=True) if roll < bound)
        if name == "narrative":
            segment = narrative.story(rng, hero, other)
        elif name == "kin":
            segment = narrative.kin(rng)
        else:
            segment = _SAMPLERS[name](rng, "train").segment()
        # A segment that does not fit ends the document; choosing a shorter one would bias the rates.
        if size + len(segment.tokens) > MAX_TOKENS:
            return parts
        parts.append((name, segment))
        size += len(segment.tokens)
        if size >= length:
            return parts
