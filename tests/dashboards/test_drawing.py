"""Where nodes and edges of a circuit stand."""

from __future__ import annotations

import re

import numpy as np

from mechlab.dashboards.drawing import SHOWN, draw


def test_layers_go_upwards_and_weak_edges_come_first():
    edges = (
        ("embed", "a0.h1.q", 0.5),
        ("a0.h1", "m1", -0.25),
        ("m1", "logits", 1.0),
        ("embed", "a1.h0.v", 0.1),
    )
    drawing = draw(edges)
    height = {node.name: node.y for node in drawing.nodes}
    assert height["embed"] > height["a0.h1"] > height["a1.h0"] > height["m1"] > height["logits"]
    assert [edge.score for edge in drawing.edges] == [0.1, -0.25, 0.5, 1.0]
    assert drawing.edges[-1].width > drawing.edges[0].width
    assert set(height) == {"embed", "a0.h1", "a1.h0", "m1", "logits"}
    assert all(0 < node.x < drawing.width and 0 < node.y < drawing.height for node in drawing.nodes)
    places = [(node.x, node.y) for node in drawing.nodes]
    assert len(set(places)) == len(places)


def test_what_is_left_out_is_told_and_strange_names_are_kept():
    edges = tuple((f"a0.h{n}", "strange", 1.0 + n) for n in range(SHOWN + 5))
    drawing = draw(edges)
    assert drawing.omitted == 5
    assert min(edge.score for edge in drawing.edges) == 6.0
    assert "strange" in {node.name for node in drawing.nodes}


def test_edges_straight_up_run_between_the_nodes():
    """None of four heads is crossed by what passes their row, where it would seem to end."""
    heads = [(f"a{layer}.h{head}", "logits", 0.1) for layer in (1, 2) for head in range(4)]
    straight = [("m0", "m1", 0.1), ("m0", "m2", 1.0), ("embed", "logits", 0.9), ("embed", "m2", 0.8)]
    drawing = draw([*heads, *straight])
    for edge in drawing.edges:
        if (edge.source, edge.reader) not in {pair[:2] for pair in straight}:
            continue
        x, y = np.array(re.findall(r"-?[\d.]+", edge.path), float).reshape(4, 2).T
        t = np.linspace(0, 1, 200)
        weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
        for node in drawing.nodes:
            if node.name.startswith("a"):
                across = abs(x @ weights - node.x) < drawing.node_width / 2
                along = abs(y @ weights - node.y) < drawing.node_height / 2
                assert not (across & along).any(), (edge.source, edge.reader, node.name)
