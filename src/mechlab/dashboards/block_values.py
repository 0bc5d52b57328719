"""Numbers and scores as the blocks of a site hold them."""

from __future__ import annotations

import math
from typing import Any

from mechlab.scores import Score


def short(value: float | int | None, digits: int = 4) -> float | int | None:
    """A number with few significant digits; None when there is none, or it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


def score_value(score: Score, name: str | None = None, note: str = "") -> dict[str, Any]:
    """A score with its interval, n, chance and control."""
    return {
        "name": name or score.name,
        "value": short(score.value),
        "low": short(score.low),
        "high": short(score.high),
        "n": int(score.n),
        "chance": short(score.chance),
        "null": None if score.null is None else score_value(score.null),
        **({"note": note} if note else {}),
    }
