"""Templates of this room, and how they write numbers."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mechlab.scores import Score


def interval(score: Score) -> str:
    """Value and interval as text."""
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _shown(value: Any) -> str:
    """A number as people read it: thousands apart, three decimals unless very small or large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


@cache
def environment() -> Environment:
    """Templates of this room, with everything escaped that comes from data."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(shown=_shown, interval=interval)
    return made
