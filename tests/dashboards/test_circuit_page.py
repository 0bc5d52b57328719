"""A circuit as SVG, as a plotly figure, and as the block of a page of its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.circuit import Circuit
from mechlab.circuits.evaluation.curve import Curve
from mechlab.circuits.evaluation.record import Evaluation
from mechlab.circuits.graph import Graph
from mechlab.circuits.patching import HeadPatching
from mechlab.dashboards.circuit_figure import circuit_figure
from mechlab.dashboards.circuit_page import circuit_page
from mechlab.dashboards.circuit_svg import circuit_svg
from mechlab.models.forward import Shape
from mechlab.scores import Score

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert('&')</script>"


@pytest.fixture
def circuit() -> Circuit:
    """Four edges of a two-layer model, one of them negative."""
    shape = Shape(2, 2, 2, parallel=False)
    graph = Graph(shape)
    mask = graph.mask([("embed", "a0.h1.q"), ("a0.h1", "m1"), ("m1", "logits"), ("embed", "logits")])
    scores = torch.where(mask, 1.0, 0.0)
    scores[graph.source("a0.h1"), graph.reader("m1")] = -4.0
    score, curve = Score("faithfulness", 0.9, 0.8, 1.0, 12), Curve((), Score("CPR", 0.8, 0.7, 0.9, 12))
    evaluation = Evaluation(
        task="ioi", metric="logit_difference", ablation="zero", model="m", prompts="p", differences=(),
        n_edges=4, means={}, faithfulness=score, ratios=score, undefined=0, kl=score, cpr=curve, cmd=curve,
    )  # fmt: skip
    return Circuit(
        shape=shape, mask=mask, scores=scores, task="ioi", metric="logit_difference", method="eap",
        settings={"top": 4}, ablation=Ablation("zero"), seed=0, model="m", selection="s", held_out="p",
        n_top=4, calls=1, rows=1, seconds=0.1, record={}, curve=(), evaluation=evaluation,
        heads=HeadPatching((), 1.0, 0.0, "eap"),
    )  # fmt: skip


def test_the_drawing_holds_every_edge_with_its_value(circuit) -> None:
    root = ElementTree.fromstring(circuit_svg(circuit, {"a0.h1": "name mover"}))
    paths = root.findall(f"{SVG}path")
    titles = [path.find(f"{SVG}title").text for path in paths]
    assert sorted(titles) == sorted(
        ["a0.h1 → m1: -4.000", "embed → a0.h1.q: 1.000", "m1 → logits: 1.000", "embed → logits: 1.000"]
    )
    widths = {title: float(path.get("stroke-width")) for title, path in zip(titles, paths, strict=True)}
    assert widths["a0.h1 → m1: -4.000"] == max(widths.values()) > widths["m1 → logits: 1.000"]
    assert paths[titles.index("a0.h1 → m1: -4.000")].get("class") == "edge negative"
    nodes = [group.find(f"{SVG}title").text for group in root.findall(f"{SVG}g")]
    assert set(nodes) == {"embed", "a0.h1, name mover", "m1", "logits"}
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert texts.count("name mover") == 2  # at the head, and in the legend
    assert "0.900" in root.find(f"{SVG}title").text


def test_a_page_holds_every_edge_and_class(circuit) -> None:
    page = circuit_page(circuit, {"a0.h1": "name mover"})
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    block = json.loads(re.search(r'id="b-circuit">(.*?)</script>', page)[1])
    edges = block["edges"]
    assert {*zip(edges["source"], edges["reader"], edges["score"], strict=True)} == {
        (edge.source, edge.reader, edge.score) for edge in circuit.edges
    }
    assert {node["name"]: node["class"] for node in block["nodes"] if "class" in node} == {
        "a0.h1": "name mover"
    }


def test_strings_from_data_are_never_markup(circuit) -> None:
    nasty = replace(circuit, task=NASTY, method=NASTY, settings={"model": NASTY})
    for text, escaped in (
        (circuit_page(nasty, {"m1": NASTY}), "\\u003cscript\\u003e"),
        (circuit_svg(nasty, {"m1": NASTY}), "&lt;script&gt;"),
    ):
        assert NASTY not in text
        assert escaped in text
    ElementTree.fromstring(circuit_svg(nasty, {"m1": NASTY}))


def test_characters_that_xml_forbids(circuit) -> None:
    odd = "head\x00\x1b\ud800 \uffff"
    svg = circuit_svg(replace(circuit, task=odd), {"m1": odd})
    ElementTree.fromstring(svg.encode())
    assert circuit_page(replace(circuit, task=odd)).encode()


def test_a_circuit_without_edges(circuit) -> None:
    empty = replace(circuit, mask=torch.zeros_like(circuit.mask))
    assert "The circuit has no edges." in circuit_svg(empty)
    ElementTree.fromstring(circuit_svg(empty))


def test_a_plotly_figure_shows_every_edge_and_class(circuit: Circuit) -> None:
    figure = circuit_figure(circuit, {"a0.h1": "name mover"})
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == circuit.n_edges
    assert {trace.line.dash for trace in lines} == {"solid", "dash"}  # one edge is negative
    middles, nodes = figure.data[-2:]
    assert sorted(text.split(":")[0] for text in middles.hovertext) == sorted(
        f"{edge.source} → {edge.reader}" for edge in circuit.edges
    )
    assert set(nodes.hovertext) == {"embed", "a0.h1: name mover", "m1", "logits"}
