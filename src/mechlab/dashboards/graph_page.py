"""A graph of features as one HTML file that asks the network for nothing: the circuit view alone."""

from __future__ import annotations

from mechlab.circuits.features.graph import FeatureGraph
from mechlab.dashboards.circuit_block import graph_block
from mechlab.dashboards.site import page_text, script_json
from mechlab.models.subject import Subject


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
    head = {"title": prompt, "views": ["circuit"], "facts": {"model": subject.name}, "shards": []}
    blocks = {"site": script_json(head), "circuit": script_json(block)}
    # Half of a pair of surrogates, which a prompt may hold, can be stored in no file.
    return "".join(page_text(prompt, blocks.items())).encode("utf-8", "replace").decode("utf-8")
