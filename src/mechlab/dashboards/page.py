"""One self-contained page for a run: opened from a file, it asks the network for nothing.

Layout of the file: the head carries a content-security policy that allows the page's own
script by its hash and nothing else; run facts and the circuit are plain HTML and SVG, so
they print and work without scripts; features are JSON, a light index of all of them for
the list and one block per feature that is parsed when the feature is opened. All token
strings are stored once, in a shared table. Strings from data reach the document through
template escaping or ``textContent``, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mechlab.dashboards.drawing import CircuitRecord, Drawing, draw
from mechlab.dashboards.site import script_json
from mechlab.dashboards.templates import environment, interval
from mechlab.errors import MechlabError
from mechlab.scores import Score

_ROOM = Path(__file__).parent


@dataclass(frozen=True)
class Result:
    """One line of the results table: a number with its interval, or a text."""

    name: str
    value: float | str
    low: float | None = None
    high: float | None = None
    note: str = ""

    @classmethod
    def of(cls, score: Score, name: str | None = None, note: str = "") -> Result:
        """A score as a line; its control goes into the note."""
        if score.null is not None:
            note = f"control {interval(score.null)}" + (f"; {note}" if note else "")
        return cls(name or score.name, score.value, score.low, score.high, note)


@dataclass(frozen=True)
class ContextRecord:
    """Tokens around a peak.

    Attributes:
        tokens: display strings.
        activations: one per token, ≥ 0.
        document: where they come from.
        centre: which token is the peak.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    document: int
    centre: int

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.activations) or not 0 <= self.centre < len(self.tokens):
            raise MechlabError(
                "context does not fit together",
                f"{len(self.tokens)} tokens, {len(self.activations)} activations, centre {self.centre}",
                "give one activation per token and a centre among them",
            )


@dataclass(frozen=True)
class FeatureRecord:
    """What the page shows of one feature.

    Attributes:
        index: its number in the dictionary.
        density: share of tokens on which it is active.
        maximum, mean: largest activation; mean over active tokens.
        histogram: active tokens per bin of equal width from 0 to ``maximum``.
        explanation: a sentence; empty when there is none.
        score: detection with its control, or None.
        unscored: why there is no score.
        contexts: strongest first.
    """

    index: int
    density: float
    maximum: float
    mean: float
    histogram: tuple[int, ...] = ()
    explanation: str = ""
    score: Score | None = None
    unscored: str = ""
    contexts: tuple[ContextRecord, ...] = ()


@dataclass(frozen=True)
class Page:
    """Everything on the page.

    Attributes:
        title: heading, and title of the browser's tab.
        model, site, tokens: what was studied, where, on how many tokens.
        command: the exact command that makes this run again.
        config, fingerprints: shown as tables, in the given order.
        results: the headline numbers.
        timings: stage → seconds.
        features: in any order; numbers must differ.
        circuit: None when the run had no task.
    """

    title: str
    model: str
    site: str
    tokens: int
    command: str
    config: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    results: tuple[Result, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    features: tuple[FeatureRecord, ...] = ()
    circuit: CircuitRecord | None = None


def render_page(page: Page) -> str:
    """The page as HTML text; equal pages give equal text.

    Raises MechlabError when two features have the same number.
    """
    numbers = [each.index for each in page.features]
    if len(set(numbers)) != len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise MechlabError("two features have the same number", twice, "give every feature once")
    table = _StringTable()
    blocks = [(int(each.index), script_json(_feature_block(each, table))) for each in page.features]
    rows = [_index_row(each, table) for each in page.features]
    script = (_ROOM / "page.js").read_text()
    drawing: Drawing | None = None if page.circuit is None else draw(page.circuit)
    text = (
        environment()
        .get_template("page.html")
        .render(
            page=page,
            style=Markup((_ROOM / "page.css").read_text()),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            index=script_json({"strings": table.strings, "rows": rows}),
            blocks=blocks,
            scored=sum(each.score is not None for each in page.features),
            drawing=drawing,
        )
    )
    # A token that is half a character may hold a lone surrogate, which no file can store.
    return text.encode("utf-8", "replace").decode("utf-8")


class _StringTable:
    """Numbers strings in order of first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    @property
    def strings(self) -> list[str]:
        return list(self._numbers)

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))


def _feature_block(feature: FeatureRecord, table: _StringTable) -> dict[str, Any]:
    return {
        "histogram": feature.histogram,
        "score": None if feature.score is None else _score_cells(feature.score),
        "unscored": feature.unscored,
        "contexts": [
            {
                "document": each.document,
                "centre": each.centre,
                "tokens": [table.number(token) for token in each.tokens],
                # Most tokens are inactive: (place, activation) of the others.
                "active": [[at, _number(a)] for at, a in enumerate(each.activations) if a > 0],
            }
            for each in feature.contexts
        ],
    }


def _index_row(feature: FeatureRecord, table: _StringTable) -> list[Any]:
    """Number, density, maximum, mean, explanation, score, peak tokens."""
    peaks = dict.fromkeys(table.number(each.tokens[each.centre]) for each in feature.contexts)
    return [
        int(feature.index),
        _number(feature.density),
        _number(feature.maximum),
        _number(feature.mean),
        feature.explanation,
        None if feature.score is None else _number(feature.score.value),
        list(peaks),
    ]


def _score_cells(score: Score) -> dict[str, Any]:
    cells = {"value": score.value, "low": score.low, "high": score.high}
    return {
        **{name: _number(value) for name, value in cells.items()},
        "n": int(score.n),
        "chance": None if score.chance is None else _number(score.chance),
        "null": None if score.null is None else _score_cells(score.null),
    }


def _number(value: float) -> float | None:
    """Four significant digits; None when not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
