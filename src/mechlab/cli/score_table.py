"""Scores as a table: value, interval, control, number of units."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from mechlab.scores import Score

Cell = Score | float | int | str


def score_table(rows: Iterable[tuple[str, Cell]]) -> str:
    """One row per score or plain number."""
    table = Table()
    table.add_column("")
    for name in ("value", "95 % interval", "control", "units"):
        table.add_column(name, justify="right")
    for name, value in rows:
        if isinstance(value, Score):
            control = "" if value.null is None else _figure(value.null.value)
            interval = f"{_figure(value.low)}, {_figure(value.high)}"
            table.add_row(name, _figure(value.value), interval, control, f"{value.n:,}")
        else:
            table.add_row(name, _figure(value), "", "", "")
    return drawn(table)


def drawn(table: Table) -> str:
    """A table as lines of text."""
    console = Console(file=io.StringIO(), width=110)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def _figure(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if math.isfinite(value) else "undefined"
