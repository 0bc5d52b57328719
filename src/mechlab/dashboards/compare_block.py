"""Two dictionaries, two circuits, or both, side by side: the block that the compare view shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mechlab.circuits.circuit import Circuit, node_classes
from mechlab.circuits.compare import compare
from mechlab.dashboards.block_values import score_value, short
from mechlab.dashboards.circuit_block import drawn_edges
from mechlab.dashboards.compare_dictionaries import compare_dictionaries
from mechlab.dashboards.drawing import SHOWN, draw
from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.sae.dictionary import Dictionary
from mechlab.sae.evaluate import Evaluation

_BOTH, _LEFT, _RIGHT = range(3)


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two that are compared; what is None is not compared.

    Attributes:
        name: what it is called on the page.
        dictionary, circuit: what is compared.
        index, explanations, scores: of the dictionary's features.
        evaluation: of the dictionary on held-out documents.
        page: where its own site is, as a relative address ("../a/index.html"; "" for the page that
            compares); its features are linked there.
    """

    name: str
    dictionary: Dictionary | None = None
    circuit: Circuit | None = None
    index: FeatureIndex | None = None
    explanations: Explanations | None = None
    scores: Scorecard | None = None
    evaluation: Evaluation | None = None
    page: str | None = None


def compare_block(left: Side, right: Side, *, seed: int = 0) -> dict[str, Any]:
    """The block "compare": what both sides have is compared.

    Args:
        seed: of the random dictionaries and circuits that are the controls.

    Raises MechlabError when the sides have nothing in common, dictionaries differ in width, an index or
    explanations are of other features, circuits are of models of another shape, or a page's address is
    not relative.
    """
    for side in (left, right):
        # An address with a scheme could run something when it is followed.
        if side.page is not None and ":" in side.page:
            raise MechlabError("address of a page is not relative", side.page, 'such as "../a/index.html"')
    block: dict[str, Any] = {"names": [left.name, right.name]}
    if left.dictionary is not None and right.dictionary is not None:
        block["dictionaries"] = compare_dictionaries(left, right, seed=seed)
    if left.circuit is not None and right.circuit is not None:
        block["circuits"] = _circuits(left.circuit, right.circuit, seed)
    if len(block) == 1:
        raise MechlabError(
            "nothing to compare", f"{left.name} and {right.name}", "give two dictionaries or two circuits"
        )
    return block


def _circuits(left: Circuit, right: Circuit, seed: int) -> dict[str, Any]:
    found = compare(left, right, seed=seed)
    sides = (left, right)
    graph, masks = left.graph, [circuit.mask.cpu() for circuit in sides]
    scores = [circuit.scores.cpu() for circuit in sides]
    # Scores of two methods have no common scale: widths are shares of each side's largest.
    tops = [float((score.abs() * mask).max()) or 1.0 for score, mask in zip(scores, masks, strict=True)]
    edges, rows = [], {}
    for row, column in (masks[0] | masks[1]).nonzero().tolist():
        ends = graph.sources[row], graph.readers[column]
        have = [bool(mask[row, column]) for mask in masks]
        values = [float(score[row, column]) for score in scores]
        shares = [value / top if has else 0.0 for value, top, has in zip(values, tops, have, strict=True)]
        edges.append((*ends, max(shares, key=abs)))
        kind = _BOTH if all(have) else _LEFT if have[0] else _RIGHT
        rows[ends] = {"kind": kind, "left": short(values[0]), "right": short(values[1])}
    drawing = draw(edges)
    classes = [node_classes(circuit) for circuit in sides]
    named = {
        node.name: " / ".join(dict.fromkeys(each[node.name] for each in classes if node.name in each))
        for node in drawing.nodes
    }
    metrics = zip(_measured(left), _measured(right), strict=True)
    return {
        **drawn_edges(drawing, {name: {"class": said} for name, said in named.items() if said}, rows),
        "facts": [[name, one, other] for (name, one), (_, other) in zip(*map(_facts, sides), strict=True)],
        "differences": list(found.differences),
        "agreement": [
            {
                "name": "Jaccard index of edges",
                "value": short(found.jaccard),
                "null": score_value(found.null),
            },
            {"name": "Jaccard index of nodes", "value": short(found.nodes), "null": None},
        ],
        "metrics": [[one["name"], one, other] for one, other in metrics],
        "layers": [[each.layer, each.shared, each.left, each.right] for each in found.layers],
        "counts": [found.shared, len(found.left), len(found.right)],
        "missing": max(0, len(edges) - SHOWN),
    }


def _facts(circuit: Circuit) -> list[tuple[str, str]]:
    return [
        ("task", circuit.task),
        ("method", circuit.method),
        ("metric", circuit.metric),
        ("ablation", circuit.ablation.kind),
        ("edges", f"{circuit.n_edges:,} of {circuit.graph.n_edges:,}"),
        ("model", circuit.model[:16]),
    ]


def _measured(circuit: Circuit) -> list[dict[str, Any]]:
    found = circuit.evaluation
    return [
        score_value(found.faithfulness, "faithfulness"),
        score_value(found.ratios, "mean of ratios"),
        score_value(found.kl, "KL from the model, nats"),
        score_value(found.cpr.area, "CPR"),
        score_value(found.cmd.area, "CMD"),
    ]
