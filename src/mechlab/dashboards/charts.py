"""The charts of a site as plotly figures, for notebooks and papers; ``save_figure`` writes them to files.

Readable without colour: series differ by dash and marker, controls are hollow. A circuit is drawn by
``circuit_figure``, a sweep of patches by ``Sweep.figure``, learning curves by ``Curves.figure``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mechlab.artifacts import Artifact
from mechlab.circuits.circuit import Circuit
from mechlab.dashboards.run_block import training_history
from mechlab.errors import MechlabError, near
from mechlab.features.index import FeatureIndex
from mechlab.features.logits import LogitEffects
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.features.statistics import Statistics
from mechlab.features.vocabulary import Vocabulary
from mechlab.scores import Score

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_INK, _CONTROL = "#1f5fa8", "#8a4b08"
_CURVES = {"loss": "training loss", "fve": "variance explained", "l0": "L0", "dead": "dead latents"}


def activation_histogram(statistics: Statistics, feature: int) -> Figure:
    """How strongly a feature is active where it is: tokens by activation, on a log scale.

    Raises MechlabError for a feature that does not exist.
    """
    figure = _new(f"Feature {feature}", "activation", "tokens")
    edges = statistics.edges(feature)
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2, y=statistics.histogram[feature], width=np.diff(edges),
        marker={"color": _INK, "line": {"width": 0.5, "color": "white"}},
    )  # fmt: skip
    return figure.update_yaxes(type="log")


def density_against_score(index: FeatureIndex, scores: Scorecard, scorer: str = "detection") -> Figure:
    """Every scored feature: the share of tokens on which it is active, and how well it is explained.

    Raises MechlabError when no feature has such a score.
    """
    found = scores.of(scorer)
    if not found:
        known = {each.scorer for each in scores}
        raise MechlabError("no feature has this score", scorer, near(scorer, known))
    features = np.array(list(found), int)
    figure = _new(f"{len(found):,} features", "share of tokens on which it is active", scorer)
    figure.add_scatter(
        x=index.density[features], y=[each.score.value for each in found.values()], mode="markers",
        marker={"symbol": "circle-open", "size": 6, "color": _INK, "opacity": 0.6},
        text=[f"feature {feature}" for feature in features.tolist()],
    )  # fmt: skip
    figure.update_xaxes(type="log")
    chance = next((each.score.chance for each in found.values() if each.score.chance is not None), None)
    if chance is not None:
        figure.add_hline(chance, line={"dash": "dot", "color": _CONTROL}, annotation_text="chance")
    return figure


def score_intervals(scores: Sequence[Score], names: Sequence[str] | None = None) -> Figure:
    """Scores with their intervals, one a line, each with its control as a hollow diamond.

    Args:
        names: what to call them; by default their own names.

    Raises MechlabError for names of another number.
    """
    labels = [each.name for each in scores] if names is None else list(names)
    if len(labels) != len(scores):
        raise MechlabError(
            "names and scores differ in number", f"{len(labels)} and {len(scores)}", "one each"
        )
    figure = _new("", "score, 95 % interval", "")
    nulls = [(label, each.null) for label, each in zip(labels, scores, strict=True) if each.null is not None]
    for name, pairs, colour, symbol in (
        ("score", list(zip(labels, scores, strict=True)), _INK, "circle"),
        ("control", nulls, _CONTROL, "diamond-open"),
    ):
        if pairs:
            shown = [each for _, each in pairs]
            figure.add_scatter(
                x=[each.value for each in shown], y=[label for label, _ in pairs], name=name, mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 10},
                error_x={
                    "array": [each.high - each.value for each in shown],
                    "arrayminus": [each.value - each.low for each in shown],
                    "color": colour,
                },
            )  # fmt: skip
    return figure.update_layout(showlegend=bool(nulls)).update_yaxes(autorange="reversed", type="category")


def logit_bars(effects: LogitEffects, direction: int, vocabulary: Vocabulary) -> Figure:
    """The tokens that a direction raises most and those that it lowers most.

    Args:
        direction: its row in ``effects``.
    """
    words = [
        *effects.words(direction, vocabulary),
        *effects.words(direction, vocabulary, suppressed=True)[::-1],
    ]
    values = [
        *effects.promoted_value[direction].tolist(),
        *effects.suppressed_value[direction].tolist()[::-1],
    ]
    figure = _new("", "effect on the logit, per unit of activation", "")
    figure.add_bar(
        x=values, y=list(range(len(values))), orientation="h",
        marker={"color": [_INK if value > 0 else _CONTROL for value in values],
                "pattern": {"shape": ["" if value > 0 else "/" for value in values]}},
    )  # fmt: skip
    # By place: two tokens may have one text.
    figure.update_yaxes(
        autorange="reversed", tickvals=list(range(len(values))), ticktext=[repr(word) for word in words]
    )
    return figure


def faithfulness_curve(circuit: Circuit) -> Figure:
    """Faithfulness by number of edges, by score and by |score|, with the circuit's own size marked."""
    found = circuit.evaluation
    title = f"{circuit.task} by {circuit.method}"
    figure = _new(title, "edges before the clean-up", "faithfulness")
    for curve, name, dash, symbol in (
        (found.cpr, "by score (CPR)", "solid", "circle"),
        (found.cmd, "by |score| (CMD)", "dash", "diamond-open"),
    ):
        points = [point for point in curve.points if point.n_top > 0]
        figure.add_scatter(
            x=[point.n_top for point in points], y=[point.faithfulness for point in points],
            name=f"{name} {curve.area.value:.3f}", mode="lines+markers",
            line={"dash": dash, "color": _INK}, marker={"symbol": symbol, "size": 8},
        )  # fmt: skip
    figure.add_hline(1.0, line={"dash": "dot", "color": "gray", "width": 1})
    own = circuit.faithfulness
    figure.add_scatter(
        x=[circuit.n_top], y=[own.value], name="this circuit", mode="markers",
        marker={"symbol": "star", "size": 13, "color": _CONTROL},
        error_y={"array": [own.high - own.value], "arrayminus": [own.value - own.low], "color": _CONTROL},
    )  # fmt: skip
    return figure.update_xaxes(type="log")


def training_curves(dictionary: Artifact) -> Figure:
    """What a dictionary's trainer logged: loss, variance explained, L0 and dead latents, a panel each.

    Args:
        dictionary: as ``load_sae(…).artifact``.

    Raises MechlabError where there is no log, as of converted dictionaries.
    """
    from plotly.subplots import make_subplots

    history = training_history(dictionary)
    drawn = {name: label for name, label in _CURVES.items() if name in history}
    if not drawn:
        raise MechlabError("dictionary has no training log", dictionary.path, "train it with sae train")
    rows = (len(drawn) + 1) // 2
    figure: Figure = make_subplots(rows, 2, subplot_titles=list(drawn.values()))
    for place, name in enumerate(drawn):
        figure.add_scatter(
            x=np.array(history["step"]) * history.get("batch", 1), y=history[name], mode="lines",
            line={"color": _INK}, row=place // 2 + 1, col=place % 2 + 1,
        )  # fmt: skip
    xlabel = "rows trained on" if "batch" in history else "step"
    figure.update_xaxes(title=xlabel, row=rows)
    return figure.update_layout(template="plotly_white", showlegend=False, height=260 * rows)


def _new(title: str, xlabel: str, ylabel: str) -> Any:
    """An empty figure in black on white."""
    from plotly.graph_objects import Figure

    layout = {"template": "plotly_white", "xaxis_title": xlabel, "yaxis_title": ylabel}
    return Figure(layout=layout | ({"title": title} if title else {}))
