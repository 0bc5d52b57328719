"""Completeness: does the circuit go on doing what the model does when parts of both are knocked out?

Wang et al. (2022, *Interpretability in the wild*, section 4.1): for a set K of the circuit's nodes,

    incompleteness(K) = |m̄(C \\ K) − m̄(M \\ K)|

Here it is a share of the gap m̄(M) − m̄(∅), so that 1 − faithfulness is that of the empty set. A node is
knocked out by cutting every edge out of it. Sets are drawn three ways: at random (of every
size alike: large sets leave little to compare), by class of head, and greedily, adding the node that
raises the incompleteness most. The greedy search sees the prompts of even number and is scored on
the others, as its maximum would otherwise be an overestimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab import scores
from mechlab.circuits.ablation import Ablation
from mechlab.circuits.evaluate import random_circuits, run_circuits
from mechlab.circuits.graph import Graph
from mechlab.circuits.runs import BATCH_SIZE
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward
from mechlab.scores import Score

RANDOM, BY_CLASS, GREEDY = "random", "class", "greedy"


@dataclass(frozen=True)
class Knockout:
    """One set of nodes knocked out of circuit and model.

    Attributes:
        way: how the set was chosen, "random", "class" or "greedy"; name: of the class, or its number.
        nodes: the set.
        circuit, model: mean metric of both without the nodes.
        incompleteness: their distance as a share of the gap.
    """

    way: str
    name: str
    nodes: tuple[str, ...]
    circuit: float
    model: float
    incompleteness: Score


@dataclass(frozen=True)
class Completeness:
    """Incompleteness of a circuit; 0 is complete.

    Attributes:
        mean: over the random sets, with an interval over prompts. The null is the same for
            random circuits of equal size, one for each set.
        knockouts: every set.
    """

    mean: Score
    knockouts: tuple[Knockout, ...]


def completeness(
    forward: DecomposedForward,
    task: Task,
    mask: Bool[Tensor, "n_sources n_readers"],
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    subsets: int = 20,
    greedy: int = 3,
    metric: str | None = None,
    ablation: Ablation | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Completeness:
    """How far circuit and model come apart under knock-outs.

    Args:
        classes: name → nodes of each class of heads; nodes outside the circuit are left out.
        subsets: how many random sets.
        greedy: how many nodes the greedy search adds; each costs two circuits per node left.

    Raises MechlabError for a circuit without heads or MLPs, no random set, or an unknown node or metric.
    """
    graph, mask = Graph(forward.shape), mask.cpu()
    nodes = circuit_nodes(graph, mask)
    if not nodes or subsets < 1:
        raise MechlabError(
            "nothing to knock out", f"{len(nodes)} nodes, {subsets} sets", "ask for at least 1"
        )
    ask = _Ask(forward, task, mask & graph.real, metric, ablation, batch_size)

    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, len(nodes) + 1, (subsets,), generator=generator).tolist()
    orders = [torch.randperm(len(nodes), generator=generator)[:size].tolist() for size in sizes]
    chosen = [[nodes[i] for i in sorted(order)] for order in orders]
    strangers = random_circuits(graph, int(mask.sum()), subsets, seed)
    off, gap, circuit, model = ask.distances(chosen)
    null = _mean_distance(
        "incompleteness of random circuits", ask.distances(chosen, strangers)[0], gap, seed, None
    )
    found = [
        _knockout(graph, RANDOM, str(i), chosen[i], off[i], gap, circuit[i], model[i], seed)
        for i in range(subsets)
    ]
    mean = _mean_distance("incompleteness", off, gap, seed, null)

    named = {
        name: [row for row in map(graph.source, members) if row in nodes]
        for name, members in (classes or {}).items()
    }
    named = {name: members for name, members in named.items() if members}
    if named:
        off, gap, circuit, model = ask.distances(list(named.values()))
        found += [
            _knockout(graph, BY_CLASS, name, members, off[i], gap, circuit[i], model[i], seed)
            for i, (name, members) in enumerate(named.items())
        ]
    found += _greedy(graph, ask, nodes, min(greedy, len(nodes)), seed)
    return Completeness(mean, tuple(found))


def circuit_nodes(graph: Graph, mask: Bool[Tensor, "n_sources n_readers"]) -> list[int]:
    """Rows of the heads and MLPs that a circuit has an edge out of."""
    rows: list[int] = (mask.cpu() & graph.real).any(1).nonzero().flatten().tolist()
    return [row for row in rows if row > 0]


@dataclass(frozen=True)
class _Ask:
    """Circuit and model with nodes knocked out, per prompt."""

    forward: DecomposedForward
    task: Task
    mask: Bool[Tensor, "n_sources n_readers"]
    metric: str | None
    ablation: Ablation | None
    batch_size: int

    def distances(
        self, sets: Sequence[Sequence[int]], circuits: Bool[Tensor, "set n_sources n_readers"] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(m(C\\K) − m(M\\K) ``[set, n]``, gap ``[n]``, mean m(C\\K) and m(M\\K) ``[set]``)."""
        real = Graph(self.forward.shape).real
        masks = torch.stack([self.mask] * len(sets) if circuits is None else list(circuits))
        masks = torch.cat([masks, real.expand(len(sets), -1, -1)])
        for i, rows in enumerate(sets):
            masks[i, list(rows)] = False
            masks[len(sets) + i, list(rows)] = False
        values, whole, empty = run_circuits(
            self.forward,
            self.task,
            masks,
            metric=self.metric,
            ablation=self.ablation,
            batch_size=self.batch_size,
        )
        circuit, model = values.double().numpy().reshape(2, len(sets), -1)
        gap = (whole - empty).double().numpy()
        return circuit - model, gap, circuit.mean(1), model.mean(1)


def _greedy(graph: Graph, ask: _Ask, nodes: list[int], steps: int, seed: int) -> list[Knockout]:
    found: list[Knockout] = []
    taken: list[int] = []
    for step in range(steps):
        candidates = [node for node in nodes if node not in taken]
        sets = [[*taken, node] for node in candidates]
        off, gap, circuit, model = ask.distances(sets)
        best = int(np.abs(off[:, ::2].sum(1)).argmax())
        taken = sets[best]
        # A single prompt leaves nothing to score on.
        rest = slice(1, None, 2) if off.shape[1] > 1 else slice(None)
        found.append(
            _knockout(
                graph, GREEDY, str(step), taken, off[best, rest], gap[rest], circuit[best], model[best], seed
            )
        )
    return found


def _knockout(
    graph: Graph,
    way: str,
    name: str,
    rows: Sequence[int],
    off: Float[np.ndarray, "n"],
    gap: Float[np.ndarray, "n"],
    circuit: float,
    model: float,
    seed: int,
) -> Knockout:
    score = _mean_distance("incompleteness", off[None], gap, seed, None)
    return Knockout(way, name, tuple(graph.sources[row] for row in rows), float(circuit), float(model), score)


def _mean_distance(
    name: str,
    off: Float[np.ndarray, "set n"],
    gap: Float[np.ndarray, "n"],
    seed: int,
    null: Score | None,
) -> Score:
    """Mean over sets of |Σ_prompts (m(C\\K) − m(M\\K))| / Σ_prompts gap."""

    def statistic(totals: Float[np.ndarray, "resample column"]) -> Float[np.ndarray, "resample"]:
        return scores.ratio(np.abs(totals[:, :-1]).mean(1), totals[:, -1])

    sums = np.concatenate([off.T, gap[:, None]], 1)
    return scores.score(name, sums, statistic, seed=seed, null=null)
