"""A small RASP: series over the positions of a sequence, and what each of them is.

A series has one value at every position after BOS. Programs are written as expressions of series
(Weiss et al. 2021, *Thinking like transformers*); ``interpret`` says what a program means, and the
compiler builds a transformer that does the same.

A categorical series takes one of finitely many values and is stored one-hot; a numerical one is a
number in a direction of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mechlab.errors import MechlabError

Value = int | float | str
Predicate = Callable[[Any, Any], bool]
Known = dict["Series", list[Any]]


@dataclass(frozen=True, eq=False)
class Series:
    """One value per position."""

    name: str


@dataclass(frozen=True, eq=False)
class Tokens(Series):
    """The tokens themselves."""

    name: str = "tokens"


@dataclass(frozen=True, eq=False)
class Indices(Series):
    """The positions, 0 for the token after BOS."""

    name: str = "indices"


@dataclass(frozen=True, eq=False)
class Map(Series):
    """A function of another series, position by position."""

    function: Callable[[Any], Any]
    of: Series
    numerical: bool = False


@dataclass(frozen=True, eq=False)
class SequenceMap(Series):
    """A function of two categorical series, position by position."""

    function: Callable[[Any, Any], Any]
    left: Series
    right: Series
    numerical: bool = False


@dataclass(frozen=True, eq=False)
class Select:
    """Which positions each position looks at: those whose key fits its query, ``predicate(key, query)``."""

    keys: Series
    queries: Series
    predicate: Predicate


@dataclass(frozen=True, eq=False)
class Aggregate(Series):
    """What the selected positions hold.

    Of a categorical series, the value that all of them share; of a numerical one, or of
    ``function`` of a categorical one, the mean. Nothing (or zero) where nothing is selected.
    """

    select: Select
    of: Series
    function: Callable[[Any], float] | None = None


@dataclass(frozen=True, eq=False)
class SelectorWidth(Series):
    """How many positions are selected."""

    select: Select


@dataclass(frozen=True, eq=False)
class AtLeast(Series):
    """1 where at least ``count`` of the inputs are 1, else 0: OR with count 1, AND with all of them."""

    count: int
    of: tuple[Series, ...]


@dataclass(frozen=True)
class Domain:
    """The values a series can take, in order; of a numerical series None where nobody listed them."""

    values: tuple[Any, ...] | None
    numerical: bool = False


def operands(series: Series) -> tuple[Series, ...]:
    """The series that a series is computed from."""
    if isinstance(series, Map):
        return (series.of,)
    if isinstance(series, SequenceMap):
        return (series.left, series.right)
    if isinstance(series, Aggregate):
        return (series.select.keys, series.select.queries, series.of)
    if isinstance(series, SelectorWidth):
        return (series.select.keys, series.select.queries)
    return series.of if isinstance(series, AtLeast) else ()


def in_order(output: Series) -> list[Series]:
    """Everything that ``output`` needs, and itself, each after its operands."""
    found: list[Series] = []

    def visit(series: Series) -> None:
        if series not in found:
            for operand in operands(series):
                visit(operand)
            found.append(series)

    visit(output)
    return found


def domain(series: Series, vocabulary: Sequence[Value], max_length: int) -> Domain:
    """The values a series can take.

    Raises:
        MechlabError: a function is applied to numbers that nobody listed.
    """
    lengths = range(1, max_length + 1)
    if isinstance(series, Indices):
        return Domain(tuple(range(max_length)))
    if isinstance(series, SelectorWidth):
        return Domain((0, *lengths))
    if isinstance(series, AtLeast):
        return Domain((0, 1), numerical=True)
    inputs = [domain(operand, vocabulary, max_length) for operand in operands(series)]
    if isinstance(series, Map):
        if inputs[0].values is None:
            raise MechlabError("a function needs a list of the numbers it gets", series.name, "map 0 and 1")
        return Domain(_distinct(series.function(v) for v in inputs[0].values), series.numerical)
    if isinstance(series, SequenceMap):
        left, right = (each.values or () for each in inputs)
        return Domain(_distinct(series.function(a, b) for a in left for b in right), series.numerical)
    if isinstance(series, Aggregate):
        of = inputs[2]
        if not of.numerical and series.function is None:
            return of
        numbers = {series.function(v) if series.function else v for v in of.values or (None,)}
        # Means of zeros and ones are the fractions; of other numbers there are too many.
        few = numbers <= {0, 1}
        return Domain(_distinct(a / b for b in lengths for a in range(b + 1)) if few else None, True)
    return Domain(tuple(vocabulary))


def _distinct(values: Any) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


def interpret(output: Series, tokens: Sequence[Value], *, causal: bool = False) -> list[Value | None]:
    """What a program says about a sequence (without BOS), position by position.

    None where it says nothing: nothing is selected, or the selected positions hold different
    categories. With ``causal`` no position selects a later one.
    """
    known: Known = {}
    for series in in_order(output):
        known[series] = _meaning(series, known, tokens, causal)
    return known[output]


def _meaning(series: Series, known: Known, tokens: Sequence[Value], causal: bool) -> list[Any]:
    places = range(len(tokens))
    if isinstance(series, Tokens):
        return list(tokens)
    if isinstance(series, Map):
        return [None if value is None else series.function(value) for value in known[series.of]]
    if isinstance(series, SequenceMap):
        pairs = zip(known[series.left], known[series.right], strict=True)
        return [None if a is None or b is None else series.function(a, b) for a, b in pairs]
    if isinstance(series, AtLeast):
        return [int(sum(known[each][place] for each in series.of) >= series.count) for place in places]
    if isinstance(series, (Aggregate, SelectorWidth)):
        rows = [_selected(series.select, known, place, causal) for place in places]
        if isinstance(series, SelectorWidth):
            return [len(row) for row in rows]
        return [_aggregate(series, [known[series.of][key] for key in row]) for row in rows]
    return list(places)


def _selected(select: Select, known: Known, query: int, causal: bool) -> list[int]:
    keys, wanted = known[select.keys], known[select.queries][query]
    last = query + 1 if causal else len(keys)
    return [
        place
        for place, key in enumerate(keys[:last])
        if key is not None and wanted is not None and select.predicate(key, wanted)
    ]


def _aggregate(series: Aggregate, found: list[Any]) -> Any:
    if not found:
        return None
    if series.function is not None:
        found = [series.function(value) for value in found]
    elif not _numerical(series.of):
        return found[0] if len(set(found)) == 1 else None
    return sum(found) / len(found)


def _numerical(series: Series) -> bool:
    if isinstance(series, Aggregate):
        return series.function is not None or _numerical(series.of)
    return isinstance(series, AtLeast) or (isinstance(series, (Map, SequenceMap)) and series.numerical)
