"""Where nodes and edges of a circuit stand."""

from __future__ import annotations

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
