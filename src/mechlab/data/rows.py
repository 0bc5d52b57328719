"""Rows of a corpus: read from files or ``datasets`` objects, with bad rows as values.

Every reader numbers the rows it passes and decodes only those that are wanted, so that another
split's rows, and rows that lie behind, cost next to nothing. A corrupt row takes a number like
any other. What is wrong with a whole file (missing, truncated, without the column) is raised.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mechlab.errors import MechlabError, near

SUFFIXES = (".txt", ".jsonl", ".parquet")
# Rows of a table that are decoded at a time.
_TABLE_ROWS = 1024

Chat: TypeAlias = list[dict[str, Any]]
"""Turns of a conversation, each with at least "role" and "content"."""


@dataclass(frozen=True)
class Fault:
    """A corrupt row: what is wrong, where ("file, line 3"), and what to do."""

    what: str
    where: str
    remedy: str = "repair the line"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"

    def error(self) -> MechlabError:
        """The fault as an error, for a reader that was not told to skip corrupt rows."""
        return MechlabError(self.what, self.where, f"{self.remedy} or pass --skip-corrupt")


Content: TypeAlias = str | Chat | Fault
Wanted: TypeAlias = Callable[[int], bool]


def file_rows(
    files: tuple[Path, ...], column: str, wanted: Wanted, start: int = 0
) -> Iterator[tuple[int, Content]]:
    """(number, content) of the wanted rows of ``files`` in order, from number ``start`` on.

    A row is a paragraph of a ``.txt``, a line that is not blank of a ``.jsonl``, a row of a
    ``.parquet``. Raises MechlabError for a file that cannot be read or lacks the column.
    """

    def asked(number: int) -> bool:
        return number >= start and wanted(number)

    number = 0
    for file in files:
        try:
            if file.suffix == ".parquet":
                number = yield from _parquet_rows(file, column, asked, start, number)
            else:
                number = yield from _text_rows(file, column, asked, number)
        except OSError as error:
            raise MechlabError(
                "corpus cannot be read", f"{file}: {error.strerror or error}", "check --data"
            ) from None


def dataset_rows(
    dataset: Any, column: str, name: str, wanted: Wanted, start: int = 0
) -> Iterator[tuple[int, Content]]:
    """(number, content) of the wanted rows of a ``Dataset`` or ``IterableDataset``.

    Raises MechlabError where there is no such column, and for whatever a stream raises.
    """
    if dataset.column_names is not None and column not in dataset.column_names:
        raise MechlabError(f"corpus has no text column {column!r}", name, near(column, dataset.column_names))
    if hasattr(dataset, "__len__"):
        table = dataset.select_columns([column]).with_format("arrow")
        for first in range(start, len(table), _TABLE_ROWS):
            yield from _arrow_rows(table[first : first + _TABLE_ROWS][column], first, name, column, wanted)
        return
    rows = iter(dataset.skip(start) if start else dataset)
    for number in itertools.count(start):
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # streams raise many unrelated types
            raise MechlabError(
                "corpus stopped in mid-stream", f"{name}, row {number}: {error}", "run again to resume"
            ) from error
        if wanted(number):
            yield number, _content(row.get(column), list(row), column, f"{name}, row {number}")


def _text_rows(
    file: Path, column: str, wanted: Wanted, number: int
) -> Generator[tuple[int, Content], None, int]:
    """Rows of a text file whose first has ``number``; returns the number after its last."""
    # Broken bytes become lone surrogates, which no valid text holds.
    # Some editors put a byte order mark first; it is no part of the text.
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as handle:
        lines = enumerate(handle, 1)
        rows = _paragraphs(lines) if file.suffix == ".txt" else (row for row in lines if row[1].strip())
        for at, text in rows:
            if wanted(number):
                content: Content = _broken_bytes(text, file, at) or text
                if content is text and file.suffix == ".jsonl":
                    content = _json_row(text, column, f"{file}, line {at}")
                yield number, content
            number += 1
    return number


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """(number of the first line, text) of every run of lines that are not blank."""
    for filled, run in itertools.groupby(lines, lambda line: bool(line[1].strip())):
        if filled:
            at, first = next(run)
            yield at, first + "".join(line for _, line in run)


def _broken_bytes(text: str, file: Path, at: int) -> Fault | None:
    """The fault of text that starts in line ``at`` and was not UTF-8 on disk."""
    start = _surrogate(text)
    if start is None:
        return None
    line = text[:start].rpartition("\n")[2]
    at += text[:start].count("\n")
    return Fault(
        "corpus is not UTF-8", f"{file}, line {at}, byte {len(line.encode())}", "convert it to UTF-8"
    )


def _surrogate(text: str) -> int | None:
    """Index of the first character that no valid text holds."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _json_row(line: str, column: str, where: str) -> Content:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return Fault("corpus row is not JSON", where)
    if not isinstance(row, dict):
        return Fault(f"corpus has no text column {column!r}", where, 'write rows as {"text": "..."}')
    return _content(row.get(column), list(row), column, where)


def _content(value: Any, columns: list[str], column: str, where: str) -> Content:
    """Text or chat as it is; anything else as a fault."""
    if isinstance(value, str):
        texts = [value]
    elif isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    ):
        texts = [turn[key] for turn in value for key in ("role", "content")]
    else:
        advice = "put text there" if column in columns else near(column, columns)
        return Fault(f"corpus has no text column {column!r}", where, advice)
    if any(_surrogate(text) is not None for text in texts):
        return Fault("corpus row is not valid text", where)
    content: str | Chat = value
    return content


def _parquet_rows(
    file: Path, column: str, wanted: Wanted, start: int, number: int
) -> Generator[tuple[int, Content], None, int]:
    """Rows of one file whose first has ``number``; returns the number after its last."""
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        try:
            table = stack.enter_context(pyarrow.parquet.ParquetFile(file))
        except (pyarrow.ArrowInvalid, OSError):
            raise MechlabError("corpus is not a parquet file", file, "check --data") from None
        names = table.schema_arrow.names
        if column not in names:
            raise MechlabError(f"corpus has no text column {column!r}", file, near(column, names))
        base, end = number, number + int(table.metadata.num_rows)
        groups = list(range(table.metadata.num_row_groups))
        while groups and number + table.metadata.row_group(groups[0]).num_rows <= start:
            number += table.metadata.row_group(groups.pop(0)).num_rows
        batches = table.iter_batches(columns=[column], row_groups=groups, batch_size=_TABLE_ROWS)
        while groups:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except (pyarrow.ArrowException, OSError) as error:
                raise MechlabError("corpus cannot be read", f"{file}: {error}", "check --data") from None
            yield from _arrow_rows(batch.column(0), number, str(file), column, wanted, base)
            number += len(batch)
    return end


def _arrow_rows(
    values: Any, first: int, name: str, column: str, wanted: Wanted, base: int = 0
) -> Iterator[tuple[int, Content]]:
    """Wanted cells of an Arrow array whose first is row ``first``; named from row ``base`` on."""
    for number, value in enumerate(values, first):
        if wanted(number):
            where = f"{name}, row {number - base}"
            try:
                content = _content(value.as_py(), [column], column, where)
            except UnicodeDecodeError:
                content = Fault("corpus is not UTF-8", where, "convert it to UTF-8")
            yield number, content
