"""Stored documents token by token: which features are active, and what they do to the next token.

Blocks of the page: ``tokens`` lists the documents, ``tokens-K`` holds the K-th of them. The features of
a document are those that are among the strongest of any of its tokens; all their activations are there,
so that the whole document can be coloured by one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from mechlab.dashboards.block_values import short
from mechlab.dashboards.next_tokens import NextTokens, Reader
from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.features.text import Text
from mechlab.models.subject import Subject
from mechlab.sae.splice import Placed

DOCUMENTS, TOP, LONGEST = 40, 6, 1024
_WORDS = 24
# Entries of the index that are looked through at a time.
_CHUNK = 2**24


@dataclass(frozen=True)
class _Document:
    """Rows ``start`` to ``stop`` of the text, of ``length`` that the document has."""

    number: int
    start: int
    stop: int
    length: int


@dataclass(frozen=True)
class _Entries:
    """Activations on the rows of the documents, by row and the strongest first."""

    row: Int64[np.ndarray, "entry"]
    feature: Int64[np.ndarray, "entry"]
    value: Float32[np.ndarray, "entry"]

    def between(self, start: int, stop: int) -> _Entries:
        first, last = np.searchsorted(self.row, [start, stop])
        return _Entries(self.row[first:last], self.feature[first:last], self.value[first:last])


def token_blocks(
    index: FeatureIndex,
    *,
    documents: int | Sequence[int] = DOCUMENTS,
    top: int = TOP,
    longest: int = LONGEST,
    subject: Subject | None = None,
    dictionary: Placed | None = None,
) -> Iterator[tuple[str, Any]]:
    """The blocks of the token view, one after the other.

    Args:
        documents: their numbers in the index's text, or how many, evenly spread over it.
        top: features of each token, the strongest.
        longest: tokens of a document that are shown.
        subject: the model that the text was read by; adds what it expects next.
        dictionary: what was indexed; adds each feature's contribution to the logits of the token that
            came next and of the one the model holds most likely (see ``next_tokens``).

    Raises MechlabError for a document that is not in the index, for ``top`` or ``longest`` below 1, a
    dictionary without a subject, and a model that does not predict the next token.
    """
    if top < 1 or longest < 1:
        raise MechlabError("nothing to show", f"top {top}, longest {longest}", "ask for at least 1 of each")
    if dictionary is not None and subject is None:
        raise MechlabError("contributions need the model", None, "give the subject too")
    chosen = _documents(index.text, documents, longest)
    reader = None if subject is None else Reader(subject, dictionary, signs=bool(index.about.get("signs")))
    entries = _entries(index, chosen)
    yield (
        "tokens",
        {
            "documents": [
                {"d": each.number, "n": each.length, "words": _words(index.text, each)} for each in chosen
            ],
            "top": top,
            "guesses": reader is not None,
            "effects": reader is not None and not reader.why,
            "why": "the model was not loaded" if reader is None else reader.why,
        },
    )
    for place, document in enumerate(chosen):
        here = entries.between(document.start, document.stop)
        yield f"tokens-{place}", _block(index, document, here, top, reader)


def _documents(text: Text, documents: int | Sequence[int], longest: int) -> list[_Document]:
    """The documents to show, in the order of the text or as they were asked for."""
    firsts = np.flatnonzero(np.diff(text.document, prepend=np.int64(-1)) != 0)
    ends = np.append(firsts[1:], len(text))
    numbers = text.document[firsts]
    if isinstance(documents, int):
        if documents < 1:
            raise MechlabError("number of documents is not positive", documents, "ask for at least 1")
        places = np.unique(np.linspace(0, len(firsts) - 1, min(documents, len(firsts))).round().astype(int))
    else:
        where = {int(number): place for place, number in reversed(list(enumerate(numbers)))}
        for number in documents:
            if number not in where:
                raise MechlabError("document is not in the index", number, f"it has {len(firsts)} documents")
        places = np.array([where[number] for number in dict.fromkeys(documents)], int)
    return [
        _Document(
            int(numbers[at]),
            int(firsts[at]),
            min(int(firsts[at]) + longest, int(ends[at])),
            int(ends[at] - firsts[at]),
        )
        for at in places
    ]


def _entries(index: FeatureIndex, documents: list[_Document]) -> _Entries:
    """All activations on the documents' rows; the index is read once, a piece at a time."""
    keep = np.zeros(len(index.text), bool)
    for each in documents:
        keep[each.start : each.stop] = True
    found = [
        first + np.flatnonzero(keep[index.row[first : first + _CHUNK]])
        for first in range(0, len(index.row), _CHUNK)
    ]
    entry = np.concatenate(found or [np.zeros(0, np.int64)])
    feature = np.searchsorted(index.indptr, entry, side="right") - 1
    row, value = index.row[entry].astype(np.int64), np.asarray(index.value[entry], np.float32)
    order = np.lexsort((feature, -value, row))
    return _Entries(row[order], feature[order].astype(np.int64), value[order])


def _block(
    index: FeatureIndex, document: _Document, entries: _Entries, top: int, reader: Reader | None
) -> dict[str, Any]:
    strings = _Strings(index.text)
    tokens = index.text.tokens[document.start : document.stop]
    place = entries.row - document.start
    # Entries of a row follow one another, so that the rank is the distance from the row's first.
    rank = np.arange(len(place)) - np.searchsorted(place, place)
    strongest = rank < top
    block: dict[str, Any] = {
        "d": document.number,
        "n": document.length,
        "t": [strings.number(int(token)) for token in tokens],
        "features": [
            [
                int(feature),
                short(float(index.maximum[feature])),
                place[own].tolist(),
                _shorts(entries.value[own]),
            ]
            for feature in np.unique(entries.feature[strongest])
            for own in [entries.feature == feature]
        ],
    }
    if reader is not None:
        expected = reader.expect(index.text, document.start, document.stop)
        block["guesses"] = [
            [[strings.number(int(token)), short(float(p))] for token, p in zip(*pair, strict=True)]
            if known
            else None
            for known, *pair in zip(expected.known, expected.guess, expected.probability, strict=True)
        ]
        if not reader.why:
            block["effects"] = _effects(
                index.text, document, entries, np.flatnonzero(strongest), expected, reader
            )
    return {**block, "strings": strings.texts}


def _effects(
    text: Text,
    document: _Document,
    entries: _Entries,
    which: Int64[np.ndarray, "pair"],
    expected: NextTokens,
    reader: Reader,
) -> list[list[list[Any]]]:
    """By place: [feature, contribution to the token that came next, to the model's first guess]."""
    feature, value, place = entries.feature[which], entries.value[which], entries.row[which] - document.start
    count = document.stop - document.start
    after = np.minimum(np.arange(count) + document.start + 1, len(text) - 1)
    follows = (np.arange(count) + document.start + 1 < len(text)) & ~text.starts[after]
    follows &= text.position[after] == text.position[document.start : document.stop] + 1
    scale = expected.scale[place]
    to_next = reader.contributions(feature, text.tokens[after][place], value, scale)
    to_guess = reader.contributions(feature, expected.guess[place, 0], value, scale)
    known = expected.known[place]
    found: list[list[list[Any]]] = [[] for _ in range(count)]
    for at, number, real, guessed, sure in zip(place, feature, to_next, to_guess, known, strict=True):
        real_one = short(float(real)) if sure and follows[at] else None
        found[int(at)].append([int(number), real_one, short(float(guessed)) if sure else None])
    return found


class _Strings:
    """Texts of a document's tokens, each once."""

    def __init__(self, text: Text) -> None:
        self._vocabulary = text.vocabulary
        self.texts: list[str] = []
        self._numbers: dict[int, int] = {}

    def number(self, token: int) -> int:
        found = self._numbers.setdefault(token, len(self.texts))
        if found == len(self.texts):
            self.texts.append(self._vocabulary[token])
        return found


def _words(text: Text, document: _Document) -> str:
    """How a document begins."""
    return text.vocabulary.string(text.tokens[document.start : min(document.start + _WORDS, document.stop)])


def _shorts(values: Float32[np.ndarray, "value"]) -> list[float | int | None]:
    return [short(value) for value in values.tolist()]
