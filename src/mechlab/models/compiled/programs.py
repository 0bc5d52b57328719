"""Programs whose circuits are known, because they were written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mechlab.errors import MechlabError, near
from mechlab.models.compiled.rasp import (
    Aggregate,
    AtLeast,
    Indices,
    Map,
    Select,
    SelectorWidth,
    SequenceMap,
    Series,
    Tokens,
    Value,
)

BOS, PAD = "<bos>", "<pad>"


@dataclass(frozen=True)
class Program:
    """A program and the sequences it is for.

    Attributes:
        output: the series that the model puts out.
        vocabulary: values of the tokens.
        lengths: how long a sequence may be, BOS not counted.
        causal: whether attention sees earlier positions only.
        last: whether the output is read at the last position only; else at all but BOS.
        valid: which sequences the program is right for.
    """

    name: str
    output: Series
    vocabulary: tuple[Value, ...]
    lengths: tuple[int, ...]
    causal: bool = False
    last: bool = False
    valid: Callable[[Sequence[Any]], bool] = lambda sequence: True

    def reads(self, length: int) -> range:
        """The positions a sequence of this length is read at; BOS is position 0."""
        return range(length if self.last else 1, length + 1)


def reverse() -> Program:
    """The sequence backwards (Lindner et al. 2023): 4 layers, of which only the last moves tokens."""
    indices, tokens = Indices(), Tokens()
    length = SelectorWidth("length", Select(tokens, tokens, lambda key, query: True))
    from_end = SequenceMap("from_end", lambda length, index: length - index, length, indices)
    opposite = Map("opposite", lambda place: place - 1, from_end)
    mirrored = Aggregate("reverse", Select(indices, opposite, _equal), tokens)
    return Program("reverse", mirrored, (1, 2, 3), tuple(range(1, 6)))


def proportion() -> Program:
    """The share of "x" among the tokens so far (Lindner et al. 2023, frac_prevs)."""
    indices = Indices()
    is_x = Map("is_x", lambda token: float(token == "x"), Tokens(), numerical=True)
    so_far = Select(indices, indices, lambda key, query: key <= query)
    return Program("proportion", Aggregate("proportion", so_far, is_x), tuple("wxyz"), tuple(range(1, 6)))


def histogram() -> Program:
    """How often each token occurs in the sequence: one layer."""
    tokens = Tokens()
    same = Select(tokens, tokens, _equal)
    return Program("histogram", SelectorWidth("count", same), tuple("abcd"), tuple(range(1, 6)))


def sort() -> Program:
    """The tokens in ascending order, for sequences without repeats: two layers."""
    tokens = Tokens()
    place = SelectorWidth("place", Select(tokens, tokens, lambda key, query: key < query))
    sorted_ = Aggregate("sort", Select(place, Indices(), _equal), tokens)
    return Program(
        "sort",
        sorted_,
        (1, 2, 3, 4, 5, 6),
        tuple(range(1, 5)),
        valid=lambda sequence: len(set(sequence)) == len(sequence),
    )


def induction() -> Program:
    """What followed the last token when it occurred before: a previous-token and an induction head.

    Causal, read at the last position, for sequences whose last token occurred exactly once before.
    """
    indices, tokens = Indices(), Tokens()
    previous = Aggregate("previous", Select(indices, indices, lambda key, query: key == query - 1), tokens)
    follows = Aggregate("induction", Select(previous, tokens, _equal), tokens)
    return Program(
        "induction",
        follows,
        tuple("abcd"),
        tuple(range(2, 7)),
        causal=True,
        last=True,
        valid=lambda sequence: Counter(sequence[:-1])[sequence[-1]] == 1,
    )


def gates(n_bits: int = 8, kinds: Sequence[str] = ("and", "or")) -> Program:
    """A tree of two-input gates over as many bits, every gate a head of its own.

    A head of layer 0 fetches each bit; layer after layer, gates of one kind join neighbours, the
    kinds taken in turn, until one gate is left. An OR hides its inputs from noising them one at a
    time where both are 1, an AND from denoising them one at a time where both were 0.

    Args:
        n_bits: a power of two, 2 or more; there are ``n_bits - 1`` gates.
        kinds: "and" and "or", the first for the first layer of gates.

    Raises:
        MechlabError: another number of bits, or an unknown kind.
    """
    if n_bits < 2 or n_bits & (n_bits - 1):
        raise MechlabError("number of bits must be a power of two, 2 or more", n_bits)
    counts = {"and": 2, "or": 1}
    for kind in kinds:
        if kind not in counts:
            raise MechlabError("unknown gate", kind, near(kind, counts))
    indices, tokens = Indices(), Tokens()

    def bit(place: int) -> Series:
        there = Select(indices, indices, lambda key, query: key == place)
        return Aggregate(f"bit{place}", there, tokens, function=float)

    level, depth = [bit(place) for place in range(n_bits)], 0
    while len(level) > 1:
        kind, pairs = kinds[depth % len(kinds)], zip(level[::2], level[1::2], strict=True)
        level = [AtLeast(f"{kind}{depth}.{n}", counts[kind], pair) for n, pair in enumerate(pairs)]
        depth += 1
    name = kinds[0] if depth == 1 else "gates"
    return Program(name, level[0], (0, 1), (n_bits,), last=True)


def _equal(key: Any, query: Any) -> bool:
    return bool(key == query)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "reverse": reverse,
    "proportion": proportion,
    "histogram": histogram,
    "sort": sort,
    "induction": induction,
    "and": lambda: gates(2, ("and",)),
    "or": lambda: gates(2, ("or",)),
    "gates": gates,
}


def program_named(name: str) -> Program:
    """The program called ``name``; MechlabError offers near names when there is none."""
    if name not in PROGRAMS:
        raise MechlabError("unknown program", name, near(name, PROGRAMS))
    return PROGRAMS[name]()
