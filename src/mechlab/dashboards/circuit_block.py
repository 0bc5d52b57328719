"""A circuit, or a graph of features, as the block that the circuit view draws.

The view shows the circuit of every size: the strongest edges by |score|, cleaned up as the search does
it. So the block holds the strongest edges of the whole model, each with the size from which on it counts,
besides the edges of the circuit that was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.circuit import Circuit, node_classes, task_fingerprint
from mechlab.circuits.features.graph import FeatureGraph
from mechlab.circuits.search.found import joining_sizes
from mechlab.dashboards.block_values import score_value, short
from mechlab.dashboards.circuit_heads import node_panels
from mechlab.dashboards.drawing import SHOWN, Drawing, Place, draw
from mechlab.data.tasks import Task
from mechlab.models.subject import Subject

_UNITS = {"embedding": "input", "feature": "feature", "error": "what a dictionary misses", "logit": "output"}


def circuit_block(
    circuit: Circuit,
    subject: Subject | None = None,
    prompts: Task | None = None,
    *,
    classes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The block "circuit".

    Args:
        subject, prompts: to show what nodes do (attention patterns, direct logit attribution, contexts);
            without both, the page shows only what the circuit records of them.
        classes: node → class, where known; those of the circuit when None.

    Raises MechlabError for a model without a decomposed forward.
    """
    edges = _edges(circuit)
    drawing = draw([each[:3] for each in edges], most=len(edges))
    named = node_classes(circuit) if classes is None else classes
    nodes: dict[str, dict[str, Any]] = {name: {"class": said} for name, said in named.items()}
    for effect in circuit.heads.effects:
        nodes.setdefault(effect.node, {}).update(
            attribution=short(effect.attribution),
            noising=short(effect.noising),
            denoising=short(effect.denoising),
        )
    block = drawn_edges(
        drawing, nodes, {each[:2]: {"joins": each[3], "found": int(each[4])} for each in edges}
    )
    found = circuit.evaluation
    block |= {
        "title": f"{circuit.task} by {circuit.method}",
        "facts": _facts(circuit),
        "scores": [
            score_value(found.faithfulness, "faithfulness"),
            score_value(
                found.ratios,
                "mean of ratios",
                f"undefined on {found.undefined} prompts" if found.undefined else "",
            ),
            score_value(found.kl, "KL from the model, nats"),
            score_value(found.cpr.area, "CPR", "area under faithfulness over sizes: the larger the better"),
            score_value(found.cmd.area, "CMD", "area between faithfulness and 1: the smaller the better"),
        ],
        "size": {
            "found": circuit.n_edges,
            "top": circuit.n_top,
            "all": circuit.graph.n_edges,
            "most": min(SHOWN, int((circuit.scores != 0).sum())),
            "missing": circuit.n_edges - sum(each[4] for each in edges),
        },
        "curves": _curves(circuit),
        "patching": circuit.heads.method,
    }
    if subject is not None and prompts is not None:
        panels = node_panels(subject, prompts, [node["name"] for node in block["nodes"]])
        block["strings"], block["prompts"] = panels.strings, panels.prompts
        for node in block["nodes"]:
            node |= panels.nodes.get(node["name"], {})
        same = task_fingerprint(prompts) == circuit.held_out
        block["of"] = f"{len(prompts)} {'held-out ' if same else ''}prompts of {prompts.name}"
    return block


def graph_block(
    graph: FeatureGraph,
    title: str,
    facts: Mapping[str, str] | None = None,
    *,
    subject: Subject | None = None,
) -> dict[str, Any]:
    """The block "circuit" of a graph whose nodes are features, tokens, errors and outputs.

    A feature of the site that the page is about leads to its page there.

    Args:
        title: heading; facts: name → what is shown beside it.
        subject: says what tokens are.
    """
    edges = sorted(graph.edges(), key=lambda edge: -abs(edge.score or 0.0))
    triples = [(edge.source, edge.reader, edge.score or 0.0) for edge in edges]
    drawing = draw(triples, _places(graph, subject))
    nodes: dict[str, dict[str, Any]] = {}
    for node in graph.nodes:
        known = {"attribution": short(node.score), "activation": short(node.value)}
        nodes[node.name] = {name: value for name, value in known.items() if value is not None}
        nodes[node.name]["kind"] = _UNITS[node.kind]
        if subject is not None and node.index is not None and node.kind in ("embedding", "logit"):
            nodes[node.name]["kind"] += f" “{subject.token_text(node.index)}”"
        if node.kind == "feature":
            nodes[node.name] |= {"site": node.site, "feature": node.index}
    ranks = {edge[:2]: {"joins": rank, "found": 1} for rank, edge in enumerate(triples, start=1)}
    return drawn_edges(drawing, nodes, ranks) | {
        "title": title,
        "facts": [[name, value] for name, value in (facts or {}).items()],
        "scores": [],
        "size": {
            "found": len(edges),
            "top": len(edges),
            "all": len(edges),
            "most": len(drawing.edges),
            "missing": drawing.omitted,
        },
        "curves": [],
    }


def _edges(circuit: Circuit) -> list[tuple[str, str, float, int | None, bool]]:
    """(source, reader, score, size from which on it counts, in the circuit): the strongest of the model
    and those of the circuit.
    """
    graph, scores = circuit.graph, circuit.scores.cpu()
    strongest = _strongest(graph.real, scores)
    sizes = joining_sizes(graph, strongest, circuit.ablation.kind)
    joins = dict(zip(strongest, sizes, strict=True))
    own = _strongest(circuit.mask.cpu(), scores, zeros=True)
    # An edge that never joins a path is in no circuit of these sizes.
    kept = {pair for pair in strongest if joins[pair] is not None} | set(own)
    return [
        (graph.sources[row], graph.readers[column], float(scores[row, column]), joins.get((row, column)),
         bool(circuit.mask[row, column]))
        for row, column in sorted(kept, key=lambda pair: (-abs(float(scores[pair])), pair))
    ]  # fmt: skip


def _strongest(
    mask: Bool[Tensor, "n_sources n_readers"],
    scores: Float[Tensor, "n_sources n_readers"],
    *,
    zeros: bool = False,
) -> list[tuple[int, int]]:
    """Row and column of the edges of largest |score|, as many as are drawn; ties as searches break them."""
    edges = mask.nonzero()
    found = scores[edges[:, 0], edges[:, 1]].abs()
    order = found.argsort(descending=True, stable=True)[:SHOWN]
    return [(row, column) for row, column in edges[order].tolist() if zeros or scores[row, column] != 0]


def drawn_edges(
    drawing: Drawing,
    nodes: Mapping[str, Mapping[str, Any]],
    rows: Mapping[tuple[str, str], Mapping[str, Any]],
) -> dict[str, Any]:
    """A drawing as a block: nodes and edges with their places, edges in columns, the strongest first.

    Args:
        nodes: name → what else the block says of a node.
        rows: (source, reader) → what else it says of an edge, the same of each.
    """
    edges = drawing.edges[::-1]
    numbers = {node.name: number for number, node in enumerate(drawing.nodes)}
    more = [rows[edge.source, edge.reader] for edge in edges]
    return {
        "width": drawing.width,
        "height": drawing.height,
        "box": [drawing.node_width, drawing.node_height],
        "labels": [[text, y] for text, y in drawing.labels],
        "nodes": [
            {"name": node.name, "text": node.text, "x": round(node.x, 1), "y": round(node.y, 1),
             **nodes.get(node.name, {})}
            for node in drawing.nodes
        ],
        "edges": {
            "source": [edge.source for edge in edges],
            "reader": [edge.reader for edge in edges],
            "from": [numbers[edge.start] for edge in edges],
            "to": [numbers[edge.end] for edge in edges],
            "score": [short(edge.score) for edge in edges],
            "path": [edge.path for edge in edges],
            "width": [edge.width for edge in edges],
            **{name: [row[name] for row in more] for name in (more[0] if more else ())},
        },
    }  # fmt: skip


def _facts(circuit: Circuit) -> list[list[str]]:
    settings = ", ".join(f"{name} {value}" for name, value in circuit.settings.items() if value is not None)
    return [
        ["task", circuit.task],
        ["method", f"{circuit.method} ({settings})" if settings else circuit.method],
        ["metric", circuit.metric.replace("_", " ")],
        ["ablation", circuit.ablation.kind],
        ["edges", f"{circuit.n_edges:,} of {circuit.graph.n_edges:,}, {circuit.n_top:,} before the clean-up"],
        ["search", f"{circuit.rows:,} circuits run in {circuit.seconds:.1f} s"],
        ["model", circuit.model[:16]],
    ]


def _curves(circuit: Circuit) -> list[dict[str, Any]]:
    """Faithfulness by size: on prompts that the search saw, and on held-out ones."""
    selection = [[point.n_top, point.n_edges, short(point.faithfulness)] for point in circuit.curve]
    held = [
        [point.n_top, point.n_edges, short(point.faithfulness)] for point in circuit.evaluation.cmd.points
    ]
    curves = (("held-out prompts", held), ("prompts it was chosen on", selection))
    return [{"name": name, "points": points} for name, points in curves if points]


def _places(graph: FeatureGraph, subject: Subject | None) -> dict[str, Place]:
    """Rows by layer and site, from left to right by position in the prompt."""
    sites: dict[tuple[int, str], list[str]] = {}
    parts: dict[int, dict[str, int]] = {}
    found = {}
    for node in sorted(graph.nodes, key=lambda node: (node.position or 0, node.kind, node.index or 0)):
        row = sites.setdefault((node.layer, node.site), [])
        part = parts.setdefault(node.layer, {}).setdefault(node.site, len(parts.get(node.layer, {})))
        # The node's full name is said where it is pointed at; here there is room for little.
        short_site = node.site.removeprefix("blocks.").replace("hook_", "").replace("resid_", "")
        label = {"embed": "input", "logits": "output"}.get(node.site, short_site)
        text = {"feature": f"f{node.index}", "embedding": "input", "logit": "output"}.get(
            node.kind, node.kind
        )
        if node.kind in ("embedding", "logit") and subject is not None and node.index is not None:
            text = subject.token_text(node.index).strip() or text
        found[node.name] = Place((node.layer, part), len(row), text, label)
        row.append(node.name)
    return found
