"""What two circuits of models of one shape share, and how the conditions they were found under differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mechlab import scores
from mechlab.circuits.circuit import Circuit
from mechlab.circuits.evaluate import random_circuits
from mechlab.circuits.evaluation.stability import jaccard
from mechlab.circuits.graph import Edge
from mechlab.errors import MechlabError
from mechlab.scores import Score

_CONTROLS = 20


@dataclass(frozen=True)
class LayerOverlap:
    """Edges into one layer's heads and MLP (or the logits): in both circuits, in one of them alone."""

    layer: str
    shared: int
    left: int
    right: int


@dataclass(frozen=True)
class Comparison:
    """Two circuits side by side.

    Attributes:
        jaccard: shared edges over all edges of both.
        null: the same for pairs of random connected circuits of the same sizes.
        shared: how many edges both have.
        left, right: edges of one alone, largest |score| first.
        layers: the same by layer of the reader.
        nodes: Jaccard index of the heads and MLPs that edges leave from.
        differences: in words, "ablation: zero, resample" and the like; empty where all is equal.
    """

    jaccard: float
    null: Score
    shared: int
    left: tuple[Edge, ...]
    right: tuple[Edge, ...]
    layers: tuple[LayerOverlap, ...]
    nodes: float
    differences: tuple[str, ...]


def compare(left: Circuit, right: Circuit, *, seed: int = 0) -> Comparison:
    """Compare two circuits edge by edge. MechlabError when their models differ in shape."""
    if left.shape != right.shape:
        raise MechlabError("circuits are of models of another shape", f"{left.shape} and {right.shape}")
    graph = left.graph
    both, alone = left.mask & right.mask, (left.mask & ~right.mask, right.mask & ~left.mask)
    ends = {stage.layer: stage for stage in graph.shape.stages if stage.kind in ("mlp", "logits")}
    layers, first = [], 0
    for layer, stage in sorted(ends.items()):
        columns = slice(first, stage.readers.stop)
        first = stage.readers.stop
        counts = [int(mask[:, columns].sum()) for mask in (both, *alone)]
        name = "logits" if stage.kind == "logits" else str(layer)
        layers.append(LayerOverlap(name, *counts))
    nodes = [set(circuit.mask[1:].any(1).nonzero().flatten().tolist()) for circuit in (left, right)]
    either = nodes[0] | nodes[1]
    return Comparison(
        jaccard=jaccard(left.mask, right.mask),
        null=_null(left, right, seed),
        shared=int(both.sum()),
        left=_strongest(graph.edges(alone[0], left.scores)),
        right=_strongest(graph.edges(alone[1], right.scores)),
        layers=tuple(layers),
        nodes=len(nodes[0] & nodes[1]) / len(either) if either else 1.0,
        differences=_differences(left, right),
    )


def _null(left: Circuit, right: Circuit, seed: int) -> Score:
    pairs = zip(
        random_circuits(left.graph, left.n_edges, _CONTROLS, seed),
        random_circuits(right.graph, right.n_edges, _CONTROLS, seed + 1),
        strict=True,
    )
    found = np.array([jaccard(one, other) for one, other in pairs])
    sums = np.stack([found, np.ones_like(found)], 1)
    return scores.score("Jaccard index of random circuits", sums, scores.mean, seed=seed)


def _strongest(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    return tuple(sorted(edges, key=lambda edge: -abs(edge.score or 0.0)))


def _differences(left: Circuit, right: Circuit) -> tuple[str, ...]:
    sides = {
        "task": (left.task, right.task),
        "method": (left.method, right.method),
        "ablation": (left.ablation.kind, right.ablation.kind),
        "metric": (left.metric, right.metric),
        "model": (left.model[:12], right.model[:12]),
        "selection prompts": (left.selection[:12], right.selection[:12]),
    }
    return tuple(f"{name}: {one}, {other}" for name, (one, other) in sides.items() if one != other)
