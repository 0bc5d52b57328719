"""Minimality: does every edge and node of a circuit matter?

The importance of a part p is what the circuit loses without it, as a share of the gap:

    (m̄(C) − m̄(C \\ p)) / (m̄(M) − m̄(∅))

Wang et al. (2022) ask for a part whose loss is large next to some knock-out; here the knock-out is the
empty one. What is large is decided after Shi et al. (2024, *Hypothesis testing the circuit hypothesis
in LLMs*): a random edge that the circuit lacks is added with a random path through it, from "embed" to the
logits, and is then removed alone. An edge of the circuit matters when its |importance| is above
that of 95 % of such edges. Redundant parts (an OR of two paths) look unimportant one at a
time; completeness is the test that sees those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mechlab import scores
from mechlab.circuits.ablation import Ablation
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.evaluation.completeness import circuit_nodes
from mechlab.circuits.graph import Graph
from mechlab.circuits.runs import BATCH_SIZE
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward
from mechlab.scores import Score

_QUANTILE = 0.95


@dataclass(frozen=True)
class Importance:
    """What the circuit loses without one part, with an interval over prompts."""

    part: str
    score: Score


@dataclass(frozen=True)
class Minimality:
    """Importance of every part of a circuit.

    Attributes:
        edges, nodes: largest first. Edges are named "source → reader".
        null: mean |importance| of edges added at random, with an interval over edges.
        threshold: 95 % of those are at most this.
        matter: share of the circuit's edges whose |importance| is above the threshold.
    """

    edges: tuple[Importance, ...]
    nodes: tuple[Importance, ...]
    null: Score
    threshold: float
    matter: float


def minimality(
    forward: DecomposedForward,
    task: Task,
    mask: Bool[Tensor, "n_sources n_readers"],
    *,
    controls: int = 40,
    metric: str | None = None,
    ablation: Ablation | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Minimality:
    """Remove every edge and every node of a circuit in turn, and random edges added to it.

    Costs one circuit per edge and node, and two per control. A circuit that holds all edges of
    the model leaves none to add: the threshold is then NaN and so is ``matter``.
    Raises MechlabError for an unknown metric.
    """
    graph = Graph(forward.shape)
    mask = mask.cpu() & graph.real
    edges, nodes = mask.nonzero().tolist(), circuit_nodes(graph, mask)
    without = mask.repeat(len(edges) + len(nodes), 1, 1)
    for one, (row, column) in zip(without, edges, strict=False):
        one[row, column] = False
    for one, row in zip(without[len(edges) :], nodes, strict=True):
        one[row] = False  # what nobody reads may as well compute
    larger, smaller = _added(graph, mask, controls, seed)
    values, whole, empty = run_circuits(
        forward,
        task,
        torch.cat([mask[None], without, larger, smaller]),
        metric=metric,
        ablation=ablation,
        batch_size=batch_size,
    )
    found, gap = values.double().numpy(), (whole - empty).double().numpy()
    lost = found[0] - found[1 : 1 + len(without)]
    names = [f"{graph.sources[row]} → {graph.readers[column]}" for row, column in edges]
    names += [graph.sources[row] for row in nodes]
    parts = [
        Importance(name, scores.score("importance", np.stack([each, gap], 1), scores.mean, seed=seed))
        for name, each in zip(names, lost, strict=True)
    ]
    added = found[1 + len(without) :].reshape(2, len(larger), found.shape[1])
    null = np.abs((added[0] - added[1]).sum(1) / gap.sum())
    threshold = float(np.quantile(null, _QUANTILE)) if len(null) else float("nan")
    above = [abs(part.score.value) > threshold for part in parts[: len(edges)]]
    return Minimality(
        edges=_largest_first(parts[: len(edges)]),
        nodes=_largest_first(parts[len(edges) :]),
        null=scores.score(
            "importance of random edges", np.stack([null, np.ones_like(null)], 1), scores.mean, seed=seed
        ),
        threshold=threshold,
        matter=float(np.mean(above)) if above and len(null) else float("nan"),
    )


def _largest_first(parts: list[Importance]) -> tuple[Importance, ...]:
    return tuple(sorted(parts, key=lambda part: -abs(part.score.value)))


def _added(
    graph: Graph, mask: Bool[Tensor, "n_sources n_readers"], controls: int, seed: int
) -> tuple[Bool[Tensor, "control n_sources n_readers"], Bool[Tensor, "control n_sources n_readers"]]:
    """The circuit with a random path each through an edge it lacks, and the same without that edge."""
    generator = torch.Generator().manual_seed(seed)
    missing = (graph.real & ~mask).nonzero()
    if len(missing) == 0:
        controls = 0
    larger = mask.repeat(controls, 1, 1)
    drawn = missing[torch.randint(max(len(missing), 1), (controls,), generator=generator)]
    for one, (row, column) in zip(larger, drawn.tolist(), strict=True):
        one |= _path_through(graph, row, column, generator)
    smaller = larger.clone()
    smaller[torch.arange(controls), drawn[:, 0], drawn[:, 1]] = False
    return larger, smaller


def _path_through(
    graph: Graph, row: int, column: int, generator: torch.Generator
) -> Bool[Tensor, "n_sources n_readers"]:
    """A random path from "embed" to the logits through an edge: at each step every way on is as likely."""

    def draw(choices: Tensor) -> int:
        places = choices.nonzero().flatten()
        return int(places[torch.randint(len(places), (1,), generator=generator)])

    path = torch.zeros_like(graph.real)
    path[row, column] = True
    source, reader = row, column
    while source > 0:
        into = draw(graph.feeds[:, source])
        source = draw(graph.real[:, into])
        path[source, into] = True
    while reader < graph.shape.n_readers - 1:
        out = draw(graph.feeds[reader])
        reader = draw(graph.real[out])
        path[out, reader] = True
    return path
