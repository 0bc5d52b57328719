"""One circuit drawn as SVG: for files, papers and notebooks.

The drawing is that of a run's page (``drawing``): layers as rows, stroke width by |score|, negative edges
dashed. Pointing at an edge or node shows its name and value; heads with a known class carry its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mechlab.circuits.circuit import Circuit
from mechlab.dashboards.drawing import Drawing, DrawnNode, draw
from mechlab.dashboards.templates import environment

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


def draw_circuit(circuit: Circuit) -> Drawing:
    """The circuit laid out."""
    return draw([(edge.source, edge.reader, float(edge.score or 0.0)) for edge in circuit.edges])


def circuit_svg(circuit: Circuit, classes: Mapping[str, str] | None = None) -> str:
    """The circuit as an SVG file. ``classes``: node → class, where known."""
    drawing = draw_circuit(circuit)
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
            circuit=circuit,
            ablation=circuit.ablation.kind,
            drawing=drawing,
            legend=legend,
            colours=colours,
            node_class=node_class,
            height=drawing.height + _LEGEND * len(legend) + 4,
        )
    )
    return _NO_XML.sub("\ufffd", text)
