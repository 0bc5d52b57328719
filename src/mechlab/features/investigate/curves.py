"""Accuracy by turn, of several conditions side by side, with intervals, as a table, figure and artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.errors import MechlabError, near
from mechlab.files import write_atomic
from mechlab.scores import Score, mean, score

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

KIND = "investigation"
_FILE = "curves.json"

# Markers tell conditions apart without colour.
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")


@dataclass(frozen=True, eq=False)
class Curves:
    """Results of quizzes: condition → value of every unit after every turn, turn 0 before the first.

    Attributes:
        unit: what the rows are, the independent units that intervals are over ("rule", "seed").
        values: condition → metric → ``[unit, turn]``, rows of all conditions in the same order; NaN
            where there is no result, which counts in no mean.
        chance: metric → what guessing gives.
        queries: queries asked per turn.
        about: what was investigated; plain JSON values.
    """

    unit: str
    values: Mapping[str, Mapping[str, Float[np.ndarray, "unit turn"]]]
    chance: Mapping[str, float]
    queries: float
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """Number of turns, the quiz before the first not counted."""
        return int(next(iter(next(iter(self.values.values())).values())).shape[1]) - 1

    def at(self, condition: str, metric: str = "quiz") -> Float[np.ndarray, "unit turn"]:
        """The values of one condition. MechlabError when there is no such condition or metric."""
        for what, name, known in (
            ("condition", condition, self.values),
            ("metric", metric, self.values.get(condition, {})),
        ):
            if name not in known:
                raise MechlabError(f"no such {what}", name, near(name, known))
        return self.values[condition][metric]

    def score(self, condition: str, turn: int, metric: str = "quiz") -> Score:
        """Mean over units after a turn; its null is the student that guesses, where that was run."""
        null = None
        if condition != "chance" and "chance" in self.values:
            null = self.score("chance", turn, metric)
        rows = _rows(self.at(condition, metric)[:, turn])
        return score(f"{condition} {metric}", rows, mean, null=null, chance=self.chance.get(metric))

    def difference(self, left: str, right: str, turn: int, metric: str = "quiz") -> Score:
        """Mean over units of left minus right, paired: the same unit, the same quiz."""
        rows = _rows(self.at(left, metric)[:, turn] - self.at(right, metric)[:, turn])
        return score(f"{left} - {right} {metric}", rows, mean, chance=0.0)

    def table(self, turns: Sequence[int] = (0, 1, 2, 5, 8, 12), metric: str = "quiz") -> list[dict[str, Any]]:
        """One row per condition and turn; plain JSON values."""
        shown = [turn for turn in turns if turn <= self.turns]
        return [
            {"condition": condition, "turn": turn, **self.score(condition, turn, metric).to_dict()}
            for condition in self.values
            for turn in shown
        ]

    def figure(self, metric: str = "quiz") -> Figure:
        """A plotly figure of the curves with their intervals as bands."""
        from plotly.colors import qualitative
        from plotly.graph_objects import Figure, Scatter

        figure = Figure()
        turns = list(range(self.turns + 1))
        for number, condition in enumerate(self.values):
            scores = [self.score(condition, turn, metric) for turn in turns]
            colour = qualitative.Safe[number % len(qualitative.Safe)]
            around = [each.low for each in scores] + [each.high for each in reversed(scores)]
            if np.isfinite(around).all():
                figure.add_trace(
                    Scatter(
                        x=turns + turns[::-1], y=around, fill="toself", fillcolor=colour, opacity=0.2,
                        line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=condition,
                    )
                )  # fmt: skip
            line = {"color": colour, "dash": "dot" if condition in ("chance", "oracle") else "solid"}
            symbol = _SYMBOLS[number % len(_SYMBOLS)]
            figure.add_trace(
                Scatter(x=turns, y=[each.value for each in scores], name=condition, mode="lines+markers",
                        line=line, marker={"symbol": symbol, "size": 8}, legendgroup=condition)
            )  # fmt: skip
        figure.update_layout(
            xaxis_title=f"turn ({self.queries:g} queries each)",
            yaxis_title=f"{metric} accuracy, mean over {len(next(iter(self.values.values()))[metric])} "
            f"{self.unit}s with 95 % intervals",
            template="plotly_white",
        )
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a value that is not a number becomes None."""
        return {
            "unit": self.unit,
            "values": {
                condition: {name: _plain(table) for name, table in metrics.items()}
                for condition, metrics in self.values.items()
            },
            "chance": dict(self.chance),
            "queries": self.queries,
            "about": dict(self.about),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Curves:
        """The inverse of ``to_dict``."""
        values = {
            condition: {name: np.array(table, np.float64) for name, table in metrics.items()}
            for condition, metrics in fields["values"].items()
        }
        return cls(fields["unit"], values, fields["chance"], fields["queries"], fields["about"])


def _rows(values: Float[np.ndarray, "unit"]) -> Float[np.ndarray, "unit 2"]:
    known = ~np.isnan(values)
    return np.stack([np.where(known, values, 0.0), known.astype(np.float64)], axis=1)


def _plain(table: Float[np.ndarray, "unit turn"]) -> list[list[float | None]]:
    return [[None if np.isnan(each) else float(each) for each in row] for row in table]


def save_curves(
    curves: Curves,
    path: Path | str,
    *,
    config: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, str],
    overwrite: bool = False,
) -> Artifact:
    """Write curves as an artifact of kind "investigation".

    Args:
        config: settings of the investigation.
        inputs: role → fingerprint of what was investigated.

    Raises MechlabError as ``mechlab.artifacts.writing`` does.
    """
    with writing(path, KIND, config=config, seed=seed, inputs=inputs, overwrite=overwrite) as writer:
        if writer.finished is not None:
            return writer.finished
        write_atomic(writer.work / _FILE, json.dumps(curves.to_dict()) + "\n")
        last = {name: curves.score(name, curves.turns).to_dict() for name in curves.values}
        return writer.commit([_FILE], {"last turn": last})


def load_curves(path: Path | str) -> Curves:
    """Read curves back. MechlabError when ``path`` holds none."""
    return Curves.from_dict(json.loads(open_artifact(path, KIND).file(_FILE).read_text(encoding="utf-8")))
