"""One circuit drawn as SVG, alone or on a page that asks the network for nothing.

The drawing is that of a run's page (``drawing``): layers as rows, stroke width by |score|, negative edges
dashed. Pointing at an edge or node shows its name and value; heads with a known class carry its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from mechlab.circuits.circuit import Circuit
from mechlab.dashboards.drawing import CircuitRecord, DrawnNode, HeadRecord, draw
from mechlab.dashboards.templates import environment, interval
from mechlab.scores import Score

_COLOURS = ("#dbeafe", "#fde68a", "#bbf7d0", "#fecaca", "#e9d5ff", "#fed7aa", "#a5f3fc", "#e5e7eb")
_LEGEND = 22
# Control characters and halves of pairs, which no escape lets into XML.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class _Class:
    """A class of heads: its colour, and where its entry of the legend stands."""

    name: str
    colour: str
    y: int


def circuit_record(circuit: Circuit) -> CircuitRecord:
    """What is drawn of a circuit."""
    return CircuitRecord(
        task=circuit.task,
        method=circuit.method,
        n_edges=circuit.n_edges,
        faithfulness=circuit.faithfulness,
        edges=tuple((edge.source, edge.reader, float(edge.score or 0.0)) for edge in circuit.edges),
        heads=tuple(HeadRecord(e.node, e.attribution, e.noising) for e in circuit.heads.effects),
    )


def circuit_svg(circuit: Circuit, classes: Mapping[str, str] | None = None) -> str:
    """The circuit as an SVG file. ``classes``: node → class, where known."""
    record = circuit_record(circuit)
    drawing = draw(CircuitRecord(record.task, record.method, record.n_edges, edges=record.edges))
    known = classes or {}
    names = sorted({known[node.name] for node in drawing.nodes if node.name in known})
    legend = [
        _Class(name, _COLOURS[i % len(_COLOURS)], drawing.height + 14 + _LEGEND * i)
        for i, name in enumerate(names)
    ]
    colours = {each.name: each.colour for each in legend}

    def node_class(node: DrawnNode) -> str:
        return known.get(node.name, "")

    text = (
        environment()
        .get_template("circuit_svg.html")
        .render(
            circuit=record,
            ablation=circuit.ablation.kind,
            drawing=drawing,
            legend=legend,
            colours=colours,
            node_class=node_class,
            height=drawing.height + _LEGEND * len(legend) + 4,
        )
    )
    return _NO_XML.sub("\ufffd", text)


def circuit_page(circuit: Circuit, classes: Mapping[str, str] | None = None) -> str:
    """The circuit as one HTML file: facts, drawing, and a table of its edges."""
    found = circuit.evaluation
    results = (
        _result(found.faithfulness),
        _result(found.ratios, f"undefined on {found.undefined} prompts"),
        _result(found.kl),
        _result(found.cpr.area),
        _result(found.cmd.area),
    )
    facts = {
        "task": circuit.task,
        "method": circuit.method,
        "settings": ", ".join(f"{k} {v}" for k, v in circuit.settings.items() if v is not None),
        "ablation": circuit.ablation.kind,
        "metric": circuit.metric,
        "edges": f"{circuit.n_edges} of {circuit.graph.n_edges} ({circuit.n_top} before the clean-up)",
        "model": circuit.model,
    }
    edges = sorted(circuit.edges, key=lambda edge: -abs(edge.score or 0.0))
    text = (
        environment()
        .get_template("circuit.html")
        .render(
            title=f"{circuit.task} by {circuit.method}",
            facts=facts,
            results=results,
            svg=Markup(circuit_svg(circuit, classes)),  # already escaped by its own template
            edges=edges,
        )
    )
    return _NO_XML.sub("\ufffd", text)


def _result(score: Score, note: str = "") -> dict[str, float | str]:
    """A score as a line of the table; its control goes into the note."""
    notes = [note] if score.null is None else [f"control {interval(score.null)}", note]
    return {
        "name": score.name,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "note": "; ".join(each for each in notes if each),
    }
