"""Where the nodes and edges of a circuit stand on the page.

Layers go upwards: "embed" at the bottom, each layer's heads with its MLP above them,
"logits" on top. Node names are those of ``mechlab.circuits.graph``: "a2.h1", "m3", and
for readers "a2.h1.q". A name of another form gets a place in a row of its own, so
nothing is left out of the drawing silently; a graph of other nodes says where they belong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

SHOWN = 400
"""Most edges drawn, the strongest first; the page says when there are more."""
_ROW = 54
_MARGIN = 84
_SPAN = 900
"""Width that the columns share, as far as each stays between these bounds."""
_COLUMN = (62, 132)
_NODE = (52, 26)
_HEAD, _MLP = re.compile(r"a(\d+)\.h(\d+)"), re.compile(r"m(\d+)")


@dataclass(frozen=True)
class DrawnNode:
    """A node: centre in pixels, and text."""

    name: str
    text: str
    x: float
    y: float


@dataclass(frozen=True)
class DrawnEdge:
    """An edge: SVG path, stroke width in pixels, and both ends' node names."""

    source: str
    reader: str
    start: str
    end: str
    score: float
    path: str
    width: float


@dataclass(frozen=True)
class Drawing:
    """A circuit laid out.

    Attributes:
        width, height: in pixels.
        labels: text and height of every row.
        edges: weakest first, so that the strongest lie on top.
        omitted: edges too weak to be drawn.
    """

    width: int
    height: int
    labels: tuple[tuple[str, float], ...]
    nodes: tuple[DrawnNode, ...]
    edges: tuple[DrawnEdge, ...]
    omitted: int
    node_width: int = _NODE[0]
    node_height: int = _NODE[1]


@dataclass(frozen=True)
class Place:
    """Where a node belongs.

    Attributes:
        row: rows stand above one another in the order of these pairs (layer, part of the layer).
        column: place within the row, from 0.
        text, label: what is written on the node, and beside its row.
    """

    row: tuple[int, int]
    column: int
    text: str
    label: str


def draw(
    given: Collection[tuple[str, str, float]],
    places: Mapping[str, Place] | None = None,
    *,
    most: int = SHOWN,
) -> Drawing:
    """Lay out edges: rows by depth, heads by number, stroke width by |score|.

    Args:
        given: (source, reader, score) of every edge.
        places: where every node belongs; by the names of heads and MLPs when None.
        most: edges drawn, the strongest.
    """
    strongest = sorted(given, key=lambda edge: -abs(edge[2]))[:most]
    names = {name for source, reader, _ in strongest for name in (source, node_of(reader))}
    here = {name: _place(name, names) if places is None else places[name] for name in sorted(names)}
    rows = sorted({place.row for place in here.values()})
    columns = 1 + max((place.column for place in here.values()), default=0)
    column = min(max(_SPAN / columns, _COLUMN[0]), _COLUMN[1])
    width = round(_MARGIN + column * columns + 16)
    alone = {row for row in rows if row not in {place.row for place in here.values() if place.column > 0}}
    height = _ROW * max(len(rows), 1) + 12
    nodes: dict[str, DrawnNode] = {}
    for name, place in here.items():
        y = height - 6 - _ROW * (rows.index(place.row) + 0.5)
        # A row of one (an MLP, the input, the output) stands in the middle, unless it is a row of heads.
        middle = place.row in alone and not name.startswith("a")
        x = _MARGIN + column * (columns / 2 if middle else place.column + 0.5)
        nodes[name] = DrawnNode(name, place.text, x, y)
    top = max((abs(score) for *_, score in strongest if math.isfinite(score)), default=0.0) or 1.0
    edges = [
        _edge(source, reader, score, nodes[source], nodes[node_of(reader)], abs(score) / top)
        for source, reader, score in reversed(strongest)
    ]
    beside = {place.row: place.label for place in here.values()}
    labels = tuple((beside[row], height - 6 - _ROW * (i + 0.5)) for i, row in enumerate(rows))
    return Drawing(
        width=width,
        height=height,
        labels=labels,
        nodes=tuple(nodes.values()),
        edges=tuple(edges),
        omitted=len(given) - len(strongest),
    )


def node_of(reader: str) -> str:
    """The node a reader belongs to: a head's query, key and value end at the head."""
    return re.sub(r"\.[qkv]$", "", reader)


def _place(name: str, names: set[str]) -> Place:
    head = _HEAD.fullmatch(name)
    if head:
        return Place((int(head[1]), 0), int(head[2]), f"{head[1]}.{head[2]}", f"heads {head[1]}")
    mlp = _MLP.fullmatch(name)
    if mlp:
        return Place((int(mlp[1]), 1), 0, f"mlp {mlp[1]}", f"mlp {mlp[1]}")
    if name == "embed":
        return Place((-1, 0), 0, name, "input")
    if name == "logits":
        return Place((1_000_000, 0), 0, name, "output")
    known = ("embed", "logits")
    others = sorted(
        each for each in names if each not in known and not _HEAD.fullmatch(each) and not _MLP.fullmatch(each)
    )
    return Place((-2, 0), others.index(name), name, "other")


def _edge(
    source: str, reader: str, score: float, start: DrawnNode, end: DrawnNode, share: float
) -> DrawnEdge:
    """A curve that leaves the top of its source and enters the bottom of its reader."""
    half = _NODE[1] / 2
    y0, y1 = start.y - half, end.y + half
    bend = max(20.0, abs(y0 - y1) * 0.45)
    # An edge straight up past other rows would run through their nodes: swing it aside, by three quarters
    # of this, between a node in the middle and those to its sides.
    straight = abs(start.x - end.x) < _NODE[0] and abs(y0 - y1) > _ROW
    aside = min(40 + 0.04 * abs(y0 - y1), 54) * (1 if score >= 0 else -1) if straight else 0.0
    path = (
        f"M{start.x:g} {y0:g}C{start.x + aside:g} {y0 - bend:g} "
        f"{end.x + aside:g} {y1 + bend:g} {end.x:g} {y1:g}"
    )
    width = round(0.75 + 4.25 * share, 2) if math.isfinite(share) else 0.75
    return DrawnEdge(source, reader, start.name, end.name, score, path, width)
