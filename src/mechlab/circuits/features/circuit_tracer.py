"""Attribution graphs as JSON that graph viewers read: circuit-tracer's own and Neuronpedia's.

One object {metadata, qParams, nodes, links}. A node is named by what it is, "LAYER_FEATURE_POSITION"
(feature −1: error), "E_TOKEN_POSITION" (embedding) or "L+1_TOKEN_POSITION" (output, with L layers).
Viewers find a feature's own file by ``feature_number``. A node's ``influence`` there is the share of all
influence that it and the nodes of more influence make up together, so that a threshold of 0.8 keeps those
below 0.8; computed from the graph that is written.

What the format has no place for stands beside it, under keys that viewers pass over ("mechlab"), so that
a graph that was written here is read back exactly. A graph of another tool is read without it: sites are
MLP outputs, values of outputs and constants unknown, and the weights of outputs their probabilities.

Source: the files that github.com/decoderesearch/circuit-tracer writes (schema version 1), and
Neuronpedia's graph-schema.json (version 1.0.0).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mechlab.circuits.features.graph import FeatureGraph, FeatureNode
from mechlab.circuits.features.influence import influence
from mechlab.errors import MechlabError
from mechlab.files import disk_errors, write_atomic
from mechlab.models.subject import Subject

_KINDS = {
    "embedding": "embedding",
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "logit": "logit",
}
_ERROR = -1


def feature_number(layer: int, feature: int) -> int:
    """The number by which viewers know a feature of a layer: Cantor's pairing of the two."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def circuit_tracer_graph(
    graph: FeatureGraph,
    subject: Subject,
    *,
    slug: str = "graph",
    labels: Mapping[tuple[int, int], str] | None = None,
    node_threshold: float | None = None,
) -> dict[str, Any]:
    """A graph as viewers' JSON.

    Args:
        subject: says what tokens are; its name stands for the dictionaries ("scan").
        slug: name of the graph in a viewer's list and in addresses.
        labels: (layer, feature) → words for it, such as its explanation.
        node_threshold: of the pruning, where the graph was pruned (0.8 in ``prune``).

    Raises MechlabError for a graph that is not of one prompt: a node without position, an output that is
    no token, a missing embedding, or two nodes of one name.
    """
    names = [_name(node, graph) for node in graph.nodes]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise MechlabError("two nodes have one name", twice[0], "export sites of one kind")
    tokens = {
        int(node.position or 0): int(node.index or 0) for node in graph.nodes if node.kind == "embedding"
    }
    if set(tokens) != set(range(len(tokens))) or not tokens:
        raise MechlabError("graph lacks embeddings", sorted(tokens), "keep every token of the prompt")
    prompt = [subject.token_text(tokens[place]) for place in range(len(tokens))]
    reach = _cumulative(graph)
    first = next((place for place, node in enumerate(graph.nodes) if node.kind == "logit"), None)
    nodes = [
        _node(node, name, subject, share, place == first, labels or {})
        for place, (node, name, share) in enumerate(zip(graph.nodes, names, reach, strict=True))
    ]
    sources, readers = graph.sources.tolist(), graph.readers.tolist()
    links = [
        {
            "source": names[sources[row]],
            "target": names[readers[column]],
            "weight": float(graph.scores[row, column]),
        }
        for row, column in graph.scores.nonzero().tolist()
    ]
    return {
        "metadata": {
            "slug": slug,
            "scan": subject.name,
            "transcoder_list": [],
            "prompt_tokens": prompt,
            "prompt": "".join(prompt),
            "node_threshold": node_threshold,
            "schema_version": 1,
            "info": {"generator": {"name": "mechlab"}},
            "mechlab": {"sources": [names[n] for n in sources], "readers": [names[n] for n in readers]},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": links,
    }


def write_circuit_tracer_graph(
    graph: FeatureGraph,
    subject: Subject,
    path: Path | str,
    *,
    labels: Mapping[tuple[int, int], str] | None = None,
    node_threshold: float | None = None,
) -> None:
    """Write a graph for viewers; its slug is the file's name. Arguments and errors as there."""
    path = Path(path)
    content = circuit_tracer_graph(
        graph, subject, slug=path.stem, labels=labels, node_threshold=node_threshold
    )
    with disk_errors(path):
        write_atomic(path, json.dumps(content, ensure_ascii=True, allow_nan=False) + "\n")


def read_circuit_tracer_graph(path: Path | str) -> FeatureGraph:
    """The graph in a viewers' file, of this tool or another. MechlabError when it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        ids = [str(node["node_id"]) for node in content["nodes"]]
        nodes = [_read(node) for node in content["nodes"]]
        links = [
            (str(each["source"]), str(each["target"]), float(each["weight"])) for each in content["links"]
        ]
        order = content["metadata"].get("mechlab", {})
        # In the order in which they act; within a layer as they stand in the file, errors last.
        acting = sorted(range(len(nodes)), key=lambda at: (nodes[at].layer, nodes[at].kind == "error"))
        ids, nodes = [ids[at] for at in acting], [nodes[at] for at in acting]
        place = {name: at for at, name in enumerate(ids)}
        kinds = dict(zip(ids, (node.kind for node in nodes), strict=True))
        sources = order.get("sources", [name for name in ids if kinds[name] != "logit"])
        readers = order.get("readers", [name for name in ids if kinds[name] in ("feature", "logit")])
        rows = {name: at for at, name in enumerate(sources)}
        columns = {name: at for at, name in enumerate(readers)}
        scores = torch.zeros(len(sources), len(readers))
        for source, target, weight in links:
            scores[rows[source], columns[target]] = weight
        found = FeatureGraph(
            tuple(nodes),
            torch.tensor([place[name] for name in sources], dtype=torch.long),
            torch.tensor([place[name] for name in readers], dtype=torch.long),
            scores,
        )
    except OSError as error:
        raise MechlabError("file cannot be read", path, error.strerror or "check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise MechlabError(
            "file holds no attribution graph", path, f"{type(error).__name__}: {error}"
        ) from None
    if len(place) != len(ids) or not bool(torch.isfinite(scores).all()):
        raise MechlabError("file holds no attribution graph", path, "a node comes twice, or a weight is none")
    return found


def _name(node: FeatureNode, graph: FeatureGraph) -> str:
    if node.position is None or (node.kind != "error" and node.index is None):
        raise MechlabError("graph is not of one prompt", node.name, "export what attribution_graph gives")
    if node.kind == "embedding":
        return f"E_{node.index}_{node.position}"
    if node.kind == "logit":
        return f"{node.layer + 1}_{node.index}_{node.position}"
    return f"{node.layer}_{_ERROR if node.kind == 'error' else node.index}_{node.position}"


def _cumulative(graph: FeatureGraph) -> list[float | None]:
    """Of each node that writes, the share of influence of it and all of more; None for outputs."""
    found = torch.where(graph.of_kind("logit"), 0, influence(graph)).double()
    order = found.argsort(descending=True, stable=True)
    share = torch.zeros_like(found)
    share[order] = found[order].cumsum(0) / found.sum().clamp_min(1e-30)
    return [
        None if node.kind == "logit" else each for node, each in zip(graph.nodes, share.tolist(), strict=True)
    ]


def _node(
    node: FeatureNode,
    name: str,
    subject: Subject,
    share: float | None,
    first: bool,
    labels: Mapping[tuple[int, int], str],
) -> dict[str, Any]:
    index, position = int(node.index or 0), int(node.position or 0)
    feature, words, layer = index, "", str(node.layer)
    if node.kind == "embedding":
        feature, words, layer = position, f'Token "{subject.token_text(index)}"', "E"
    elif node.kind == "error":
        feature, words = _ERROR, f"Error of layer {node.layer}"
    elif node.kind == "feature":
        feature, words = feature_number(node.layer, index), labels.get((node.layer, index), "")
    else:
        weight = node.score or 0.0
        layer, words = str(node.layer + 1), f'Output "{subject.token_text(index)}" (p={weight:.3f})'
    kept = {"site": node.site, "value": node.value, "constant": node.constant, "score": node.score}
    head, _, tail = name.rpartition("_")
    return {
        "node_id": name,
        "jsNodeId": f"{'L_' + head.partition('_')[2] if node.kind == 'logit' else head}-{tail}",
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": _KINDS[node.kind],
        "token_prob": float(node.score or 0.0) if node.kind == "logit" else 0.0,
        "is_target_logit": first,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "clerp": words,
        "influence": share,
        "activation": node.value if node.kind == "feature" else None,
        "mechlab": {key: value for key, value in kept.items() if value is not None},
    }


def _read(fields: dict[str, Any]) -> FeatureNode:
    kinds = {name: kind for kind, name in _KINDS.items()}
    kind, position = kinds[fields["feature_type"]], int(fields["ctx_idx"])
    named, kept = str(fields["node_id"]).split("_"), fields.get("mechlab") or {}
    layer = -1 if kind == "embedding" else int(fields["layer"]) - (kind == "logit")
    sites = {"embedding": "embed", "logit": "logits"}
    value, score = fields.get("activation"), fields.get("token_prob") if kind == "logit" else None
    numbers = {"value": value if kind == "feature" else None, "score": score} | kept
    for name in ("value", "constant", "score"):
        number = numbers.get(name)
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{name} of {fields['node_id']} is {number}")
    return FeatureNode(
        kind,
        str(kept.get("site", sites.get(kind, f"blocks.{layer}.hook_mlp_out"))),
        layer,
        position,
        None if kind == "error" else int(named[1]),
        *(
            None if numbers.get(name) is None else float(numbers[name])
            for name in ("value", "constant", "score")
        ),
    )
