"""Contexts: pieces of text around a token, to show what a feature does and does not react to.

All samplers look activity up in the index and cut contexts at the bounds of their passage, so that
the centre is where the activation is at the edges too. Random ones take a generator; the same
generator, the same contexts. The whole is deterministic: ties are broken by place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.features.text import Text
from mechlab_kernels.contexts import top_peaks

COUNT, RADIUS = 10, 12
QUANTILES = 10
# Contexts without the feature among which those like its own are looked for.
_POOL = 512
# Rows drawn for each context asked for, before all are looked through.
_DRAWS = 16
# Most tokens by which a context grows on either side so as not to cut a character, of 4 bytes at most.
_MARGIN = 3


@dataclass(frozen=True)
class Context:
    """Rows ``start`` to ``stop`` of a text, all of one passage.

    Attributes:
        centre: which of them it was chosen for; row: the same as a row of the text.
        document: where it comes from.
    """

    start: int
    stop: int
    centre: int
    row: int
    document: int

    def __len__(self) -> int:
        return self.stop - self.start

    def tokens(self, index: FeatureIndex) -> Int[np.ndarray, "token"]:
        """Its token ids."""
        return index.text.tokens[self.start : self.stop]

    def activations(self, index: FeatureIndex, feature: int) -> Float32[np.ndarray, "token"]:
        """A feature's activation on each token, 0 where it is not active."""
        row, value = index.entries(feature)
        first, last = np.searchsorted(row, np.array([self.start, self.stop], row.dtype))
        found = np.zeros(len(self), np.float32)
        found[row[first:last] - self.start] = value[first:last]
        return found


@dataclass(frozen=True)
class Shown:
    """A piece of a context as it is shown.

    Attributes:
        text: what it says; tokens that are parts of one character are joined.
        activation: the largest on its tokens.
        centre: whether the token that the context was chosen for is among them.
    """

    text: str
    activation: float
    centre: bool


def shown(index: FeatureIndex, feature: int, context: Context) -> list[Shown]:
    """A context as text with a feature's activations."""
    activations = context.activations(index, feature)
    return [
        Shown(
            piece.text,
            float(activations[piece.start : piece.stop].max()),
            piece.start <= context.centre < piece.stop,
        )
        for piece in index.text.vocabulary.pieces(context.tokens(index))
    ]


def context_at(text: Text, row: int, radius: int = RADIUS) -> Context:
    """The context of a row: ``radius`` tokens on either side as far as its passage goes.

    A character in several tokens is not cut in two: up to three tokens more are taken for that.
    Raises MechlabError for a row outside the text or a negative radius.
    """
    if not 0 <= row < len(text) or radius < 0:
        raise MechlabError("no such context", f"row {row}, radius {radius}", f"there are {len(text)} rows")
    passage = int(text.passage[row])
    first, last = int(text.bounds[passage]), int(text.bounds[passage + 1])
    start, stop = max(first, row - radius), min(last, row + radius + 1)
    if text.vocabulary.partial:
        continues = text.vocabulary.continues
        for _ in range(_MARGIN):
            start -= start > first and continues(int(text.tokens[start]))
            stop += stop < last and continues(int(text.tokens[stop]))
    return Context(start, stop, row - start, row, int(text.document[row]))


def top_contexts(
    index: FeatureIndex, feature: int, count: int = COUNT, radius: int = RADIUS
) -> list[Context]:
    """The strongest, strongest first; one of a passage, and none with the same text twice.

    Raises MechlabError for a feature that does not exist, a count below 1, and a damaged index.
    """
    index.entries(feature)
    _positive(count)
    here = index.indptr[feature : feature + 2].astype(np.int64)
    try:
        peaks = top_peaks(here, index.row, index.value, index.text.tokens, index.text.bounds, count, radius)
    except ValueError as error:
        raise MechlabError("entries of the index are damaged", str(error), "make the index again") from error
    return [context_at(index.text, int(row), radius) for row in peaks[0] if row >= 0]


def quantile_contexts(
    index: FeatureIndex,
    feature: int,
    count: int,
    generator: np.random.Generator,
    *,
    radius: int = RADIUS,
    quantiles: int = QUANTILES,
) -> list[list[Context]]:
    """``count`` random contexts from each quantile of a feature's peaks, the strongest quantile first.

    Raises MechlabError as ``top_contexts``.
    """
    _positive(count)
    return [
        distinct_contexts(index.text, generator.permutation(row), count, radius)
        for row, _ in quantile_peaks(index, feature, quantiles)
    ]


def quantile_peaks(
    index: FeatureIndex, feature: int, quantiles: int = QUANTILES
) -> list[tuple[Int[np.ndarray, "peak"], Float32[np.ndarray, "peak"]]]:
    """Quantiles of a feature's peaks, the strongest first: rows and activations, strongest first.

    Peaks are the strongest tokens of every passage. Quantiles are of their ranks: each has the same
    number of them. Raises MechlabError for a feature that does not exist.
    """
    row, value = peaks(index, feature)
    order = np.lexsort((row, -value))
    return [(row[part], value[part]) for part in np.array_split(order, quantiles)]


def importance_contexts(
    index: FeatureIndex, feature: int, count: int, generator: np.random.Generator, *, radius: int = RADIUS
) -> list[Context]:
    """Contexts around active tokens drawn with probability proportional to activation, one of a passage.

    Drawn without replacement (Efraimidis & Spirakis 2006). Raises MechlabError as ``top_contexts``.
    """
    _positive(count)
    row, value = index.entries(feature)
    order = np.argsort(-np.log(generator.random(len(row))) / value, kind="stable")
    return distinct_contexts(index.text, row[order], count, radius)


def random_contexts(
    index: FeatureIndex, feature: int, count: int, generator: np.random.Generator, *, radius: int = RADIUS
) -> list[Context]:
    """Contexts around random active tokens, one of a passage. MechlabError as ``top_contexts``."""
    _positive(count)
    return distinct_contexts(index.text, _mixed(index, feature, generator), count, radius)


def inactive_contexts(
    index: FeatureIndex, feature: int, count: int, generator: np.random.Generator, *, radius: int = RADIUS
) -> list[Context]:
    """Contexts around random tokens, on no token of which the feature is active; one of a passage.

    Raises MechlabError as ``top_contexts``.
    """
    _positive(count)
    rows = len(index.text)
    some = generator.integers(0, rows, _DRAWS * count) if rows else np.zeros(0, np.int64)
    found = _without(index, feature, some, count, radius)
    return (
        found if len(found) == count else _without(index, feature, generator.permutation(rows), count, radius)
    )


def near_miss_contexts(
    index: FeatureIndex,
    feature: int,
    neighbours: Sequence[int],
    count: int,
    generator: np.random.Generator,
    *,
    radius: int = RADIUS,
) -> list[Context]:
    """Contexts without the feature around active tokens of features like it, one of a passage.

    Neighbours (by decoder cosine or co-occurrence) take turns, each with its active tokens in random
    order. Raises MechlabError as ``top_contexts``.
    """
    _positive(count)
    rows = [_mixed(index, int(each), generator) for each in neighbours]
    turn = np.concatenate([np.arange(len(each)) for each in rows] or [np.zeros(0, np.int64)])
    mixed = np.concatenate(rows or [np.zeros(0, np.int32)])[np.argsort(turn, kind="stable")]
    return _without(index, feature, mixed, count, radius)


def similar_contexts(
    index: FeatureIndex,
    feature: int,
    vectors: Callable[[list[str]], Float[np.ndarray, "text dimension"]],
    count: int,
    generator: np.random.Generator,
    *,
    radius: int = RADIUS,
) -> list[Context]:
    """Contexts without the feature whose text is most like that of its top contexts, most alike first.

    Args:
        vectors: texts → one vector each; likeness is the cosine to the mean of the top contexts.

    Chosen among 512 random contexts without the feature. Raises MechlabError as ``top_contexts``.
    """
    top = top_contexts(index, feature, count, radius)
    pool = inactive_contexts(index, feature, max(_POOL, count), generator, radius=radius)
    if not top or not pool:
        return []
    texts = [index.text.vocabulary.string(each.tokens(index)) for each in (*top, *pool)]
    found = vectors(texts)
    found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    likeness = found[len(top) :] @ found[: len(top)].mean(0)
    return [pool[place] for place in np.argsort(-likeness, kind="stable")[:count].tolist()]


def _mixed(index: FeatureIndex, feature: int, generator: np.random.Generator) -> Int[np.ndarray, "entry"]:
    """A feature's rows in random order."""
    # Of an empty array NumPy would mix the memory map itself, which cannot be written.
    return generator.permutation(np.array(index.entries(feature)[0]))


def peaks(index: FeatureIndex, feature: int) -> tuple[Int[np.ndarray, "peak"], Float32[np.ndarray, "peak"]]:
    """The strongest token of every passage in which a feature is active, the first among equals.

    Ascending, with the activations there. Raises MechlabError for a feature that does not exist.
    """
    row, value = index.entries(feature)
    order = np.lexsort((row, -value, index.text.passage[row]))
    passage = index.text.passage[row[order]]
    first = order[np.flatnonzero(np.append(True, passage[1:] != passage[:-1])[: len(order)])]
    return row[first], value[first]


def distinct_contexts(
    text: Text, rows: Int[np.ndarray, "candidate"], count: int, radius: int = RADIUS
) -> list[Context]:
    """Contexts of the first ``count`` rows whose passage and text have not come before."""
    found: list[Context] = []
    texts: set[bytes] = set()
    _, first = np.unique(text.passage[rows], return_index=True)
    for row in rows[np.sort(first)]:
        if len(found) == count:
            break
        context = context_at(text, int(row), radius)
        said = text.tokens[context.start : context.stop].tobytes()
        if said not in texts:
            texts.add(said)
            found.append(context)
    return found


def _without(
    index: FeatureIndex, feature: int, rows: Int[np.ndarray, "candidate"], count: int, radius: int
) -> list[Context]:
    """The same of the rows around which the feature is nowhere active."""
    text, active = index.text, index.entries(feature)[0]
    reach = radius + (_MARGIN if text.vocabulary.partial else 0)
    # The first few nearly always suffice, and give what all of them would.
    for some in (rows[: _DRAWS * count], rows):
        passage = text.passage[some]
        start = np.maximum(text.bounds[passage], some - reach).astype(active.dtype)
        stop = np.minimum(text.bounds[passage + 1], some.astype(np.int64) + reach + 1).astype(active.dtype)
        silent = np.searchsorted(active, start) == np.searchsorted(active, stop)
        found = distinct_contexts(text, some[silent], count, radius)
        if len(found) == count:
            break
    return found


def _positive(count: int) -> None:
    if count < 1:
        raise MechlabError("count of contexts is not positive", count, "ask for at least 1")
