"""A circuit, or a graph of features, as one HTML file that asks the network for nothing: the circuit view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechlab.circuits.circuit import Circuit
from mechlab.circuits.features.graph import FeatureGraph
from mechlab.dashboards.circuit_block import circuit_block, graph_block
from mechlab.dashboards.site import page_text, script_json
from mechlab.models.subject import Subject


def circuit_page(circuit: Circuit, classes: Mapping[str, str] | None = None) -> str:
    """The page of a circuit.

    Args:
        classes: node → class, where known; those of the circuit when None.
    """
    block = circuit_block(circuit, classes=classes)
    return _page(f"Circuit of {circuit.task}", {}, block)


def graph_page(graph: FeatureGraph, subject: Subject, prompt: str) -> str:
    """The page of a graph of one prompt.

    Args:
        subject: the model, which says what tokens are.
    """
    facts = {
        "prompt": prompt,
        "nodes": f"{len(graph.nodes):,}",
        "edges": f"{int((graph.scores != 0).sum()):,}",
    }
    block = graph_block(graph, "Attribution graph", facts, subject=subject)
    return _page(prompt, {"model": subject.name}, block)


def _page(title: str, facts: Mapping[str, str], block: Mapping[str, Any]) -> str:
    head = {"title": title, "views": ["circuit"], "facts": facts, "shards": []}
    blocks = {"site": script_json(head), "circuit": script_json(block)}
    # Half of a pair of surrogates, which a title may hold, can be stored in no file.
    return "".join(page_text(title, blocks.items())).encode("utf-8", "replace").decode("utf-8")
