"""A circuit as a plotly figure, laid out like its drawing, for notebooks and papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mechlab.circuits.circuit import Circuit
from mechlab.dashboards.circuit_svg import draw_circuit

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Blue supports the metric, orange opposes it; dashes say so without colour.
_SIGNS = ((True, "#2563eb", "solid"), (False, "#c2410c", "dash"))


def circuit_figure(circuit: Circuit, classes: Mapping[str, str] | None = None) -> Figure:
    """The circuit's strongest edges; hovering over the middle of one shows its score.

    Args:
        classes: node → class, such as "name mover", where known; the circuit's own when None.
    """
    from plotly import graph_objects as go

    drawing = draw_circuit(circuit)
    known = circuit.classes if classes is None else classes
    nodes = {node.name: node for node in drawing.nodes}
    figure = go.Figure()
    for positive, colour, dash in _SIGNS:
        for edge in drawing.edges:
            if (edge.score >= 0) == positive:
                ends = nodes[edge.start], nodes[edge.end]
                figure.add_scatter(
                    x=[end.x for end in ends], y=[-end.y for end in ends], mode="lines", hoverinfo="skip",
                    line={"width": edge.width, "color": colour, "dash": dash},
                )  # fmt: skip
    middles = [(nodes[edge.start], nodes[edge.end]) for edge in drawing.edges]
    figure.add_scatter(
        x=[(a.x + b.x) / 2 for a, b in middles], y=[-(a.y + b.y) / 2 for a, b in middles], mode="markers",
        marker={"size": 12, "opacity": 0}, hoverinfo="text",
        hovertext=[f"{edge.source} → {edge.reader}: {edge.score:.4g}" for edge in drawing.edges],
    )  # fmt: skip
    figure.add_scatter(
        x=[node.x for node in nodes.values()], y=[-node.y for node in nodes.values()], mode="markers+text",
        text=[node.text for node in nodes.values()], hoverinfo="text",
        hovertext=[": ".join(filter(None, (name, known.get(name)))) for name in nodes],
        marker={"size": 34, "symbol": "square", "color": "white", "line": {"width": 1.5, "color": "#1e3a8a"}},
    )  # fmt: skip
    figure.update_layout(
        title=f"{circuit.task} by {circuit.method}: {circuit.n_edges} edges", showlegend=False,
        width=drawing.width, height=drawing.height + 80, plot_bgcolor="white",
    )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure
