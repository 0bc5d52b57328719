"""Circuit discovery against circuits that are known: every method on every model, edges and nodes.

Models are compiled from programs (``mechlab.models.compiled``), or trained to hold a circuit by
interchange interventions (``mechlab.circuits.causal.imposed``). A compiled model has three truths, which
are kept apart: edges needed when a removed edge carries another input's value ("resample"), edges needed
when it carries nothing ("zero"), edges that the weights connect ("weights"). A method that ablates one
way is not to blame for what only the other way needs: ACDC with resampling scores .200 and .600 against
the truth of zero ablation (Conmy et al. 2023, pessimistic area), because no more of it can matter. Its
1.000 with zero ablation is circular, as that truth is an exact zero ablation too; it checks the
implementation, not the method.

Prompts are one token shorter than a model's longest. At full length a head of ``reverse`` that counts
tokens carries the same without its input as with it, and two of ten edges idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.bench.circuits import without_each
from mechlab.bench.measure import Progress
from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution import NodeScores, edge_scores, edges_of_nodes
from mechlab.circuits.causal.imposed import imposed_task, load_imposed
from mechlab.circuits.causal.imposed import truth as imposed_truth
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.evaluation.roc import edge_roc, node_roc
from mechlab.circuits.graph import Graph
from mechlab.circuits.search.acdc import acdc_scores
from mechlab.circuits.search.learned import edge_pruning, subnetwork_probing
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.compiled import compiled_subject, compiled_task, truth
from mechlab.models.forward import DecomposedForward, Run
from mechlab.models.subject import resolve_device

COMPILED = ("reverse", "proportion", "induction", "sort", "gates")
MODELS = (*COMPILED, "imposed")
TRUTHS = ("resample", "zero", "weights")
ATTRIBUTION = ("eap", "eap-corrupt", "eap-mean", "eap-ig", "eap-ig-activations", "atp", "atp*", "hisp")
THRESHOLDS = tuple(10.0**exponent for exponent in np.arange(-5, 0.5, 0.5).tolist())
SPARSITIES = (0.5, 0.75, 0.9)
# Pessimistic areas under the curve of edges, published for ACDC against the truth of zero ablation.
PUBLISHED = {"reverse": 0.2, "proportion": 0.6}
EXACT_FOR = ("reverse", "proportion", "induction")
_NULLS = 200


class Counted(DecomposedForward):
    """A decomposed forward that counts its runs."""

    calls = 0

    def run(self, *args: Any, **settings: Any) -> Run:
        """A run, whole or in part, of one batch or of many circuits together."""
        self.calls += 1
        return super().run(*args, **settings)


@dataclass(frozen=True)
class Known:
    """A model with its prompts and what is true of it.

    Attributes:
        distance: the metric of agreement with the model, for searches.
        truths: by kind.
    """

    forward: Counted
    task: Task
    distance: str
    truths: dict[str, Bool[Tensor, "n_sources n_readers"]]


Scorer = Callable[[Known, Ablation, int], Float[Tensor, "n_sources n_readers"]]


def known_model(name: str, *, prompts: int, seed: int, device: str) -> Known:
    """A model of ``MODELS``."""
    if name == "imposed":
        subject = load_imposed()
        forward = Counted(subject.module.to(resolve_device(device)))
        task = imposed_task(n=prompts, seed=seed)
        return Known(forward, task, "negative_kl", {"resample": imposed_truth(Graph(forward.shape))})
    module: Any = compiled_subject(name, device=device).module
    truths = {kind: truth(module, kind) for kind in TRUTHS}
    lengths = module.program.lengths
    task = compiled_task(module, prompts, seed, length=lengths[-2] if len(lengths) > 1 else lengths[-1])
    return Known(Counted(module), task, "negative_l2", truths)


def exact_effects(known: Known, ablation: Ablation, seed: int) -> Float[Tensor, "n_sources n_readers"]:
    """What each edge's removal alone does to the outputs, mean over prompts."""
    graph = Graph(known.forward.shape)
    edges = graph.real.nonzero()
    values, whole, _ = run_circuits(
        known.forward, known.task, without_each(graph, edges), metric=known.distance, ablation=ablation
    )
    scores = torch.zeros(graph.real.shape)
    scores[edges[:, 0], edges[:, 1]] = (whole - values).mean(1)
    return scores


def _attribution(method: str) -> Scorer:
    return lambda known, ablation, seed: edge_scores(
        known.forward, known.task, method=method, metric="logit_difference", ablation=ablation
    )


def _acdc(known: Known, ablation: Ablation, seed: int) -> Tensor:
    return acdc_scores(known.forward, known.task, THRESHOLDS, metric=known.distance, ablation=ablation)[0]


def _probing(known: Known, ablation: Ablation, seed: int) -> Tensor:
    return subnetwork_probing(
        known.forward, known.task, metric=known.distance, ablation=ablation, seed=seed
    ).scores


def _node_probing(known: Known, ablation: Ablation, seed: int) -> Tensor:
    """Edge scores from gates on nodes, by the rule of all methods of nodes.

    A gate closes what its node writes. Left at that, edges into a closed node would rank with the best.
    """
    found = subnetwork_probing(
        known.forward, known.task, level="node", metric=known.distance, ablation=ablation, seed=seed
    )
    graph, gates = Graph(known.forward.shape), found.scores[:, -1]
    readers = torch.ones(graph.shape.n_readers)
    for node in graph.nodes:
        if node.source is not None:
            readers[list(node.readers)] = gates[node.source]
    return edges_of_nodes(graph, NodeScores(gates, readers))


def _pruning(known: Known, ablation: Ablation, seed: int) -> Tensor:
    """How open a gate is, a mean over sparsities: at a single one a circuit that is larger ranks badly."""
    runs = [
        edge_pruning(
            known.forward, known.task, target=target, metric=known.distance, ablation=ablation, seed=seed
        ).scores
        for target in SPARSITIES
    ]
    return torch.stack(runs).mean(0)


# Method → scores of edges, of which the size counts. All but "ifr" ablate, one way or the other.
SCORERS: dict[str, Scorer] = {
    **{name: _attribution(name) for name in (*ATTRIBUTION, "ifr")},
    "single edges": exact_effects,
    "acdc": _acdc,
    "subnetwork probing": _probing,
    "subnetwork probing, nodes": _node_probing,
    "edge pruning": _pruning,
}


def against_truth(
    name: str,
    *,
    prompts: int = 64,
    seed: int = 0,
    device: str = "cpu",
    wanted: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every method on one model.

    Args:
        wanted: names of methods; all when None.

    Returns the sizes of model and truths; ``methods``: for each, ablation, seconds, calls of the model
    and, by truth, areas under the curves of edges and nodes; ``random``: the null, mean area over
    draws of random scores with its standard error.
    """
    known = known_model(name, prompts=prompts, seed=seed, device=device)
    graph = Graph(known.forward.shape)
    jobs = [
        (method, kind)
        for method in SCORERS
        if wanted is None or method in wanted
        for kind in (("none",) if method == "ifr" else ("resample", "zero"))
    ]
    rows = []
    for done, (method, kind) in enumerate(jobs):
        if progress:
            progress(name, done, len(jobs), {})
        known.forward.calls, started = 0, time.perf_counter()
        scores = SCORERS[method](known, Ablation("resample" if kind == "none" else kind), seed).abs()
        seconds = time.perf_counter() - started
        areas = {each: _areas(graph, scores, mask) for each, mask in known.truths.items()}
        rows.append(
            {"method": method, "ablation": kind, "seconds": seconds, "calls": known.forward.calls, **areas}
        )
    if progress:
        progress(name, len(jobs), len(jobs), {})
    return {
        "edges": graph.n_edges,
        "prompts": len(known.task),
        "truths": {kind: int(mask.sum()) for kind, mask in known.truths.items()},
        "methods": rows,
        "random": {kind: _chance(graph, mask, seed) for kind, mask in known.truths.items()},
    }


def _areas(graph: Graph, scores: Tensor, mask: Tensor) -> dict[str, float | None]:
    edges = edge_roc(graph, scores, mask)
    found: dict[str, float | None] = {"edge": edges.auc, "edge_pessimistic": edges.pessimistic}
    try:
        nodes = node_roc(graph, scores, mask)
    except MechlabError:  # every node is in the circuit
        return found | {"node": None, "node_pessimistic": None}
    return found | {"node": nodes.auc, "node_pessimistic": nodes.pessimistic}


def _chance(graph: Graph, mask: Tensor, seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    draws = [
        edge_roc(graph, torch.rand(graph.real.shape, generator=generator), mask).auc for _ in range(_NULLS)
    ]
    return {"edge": float(np.mean(draws)), "error": float(np.std(draws, ddof=1) / len(draws) ** 0.5)}


def circular(method: str, ablation: str, kind: str) -> bool:
    """Whether the truth is what the method itself computes."""
    return method in ("acdc", "single edges") and ablation == kind and kind in ("zero", "resample")


def truth_goals(models: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What is expected of the methods: name, value, and whether it is met."""
    goals: list[dict[str, Any]] = []

    def goal(name: str, value: float, met: bool) -> None:
        goals.append({"name": f"{name}: {value:.3f}", "value": value, "met": met})

    for name, found in models.items():
        rows = {(row["method"], row["ablation"]): row for row in found["methods"]}

        def area(method: str, ablation: str, kind: str, which: str = "edge", rows: Any = rows) -> float:
            return float(rows[method, ablation][kind][which])

        for kind, null in found["random"].items():
            at_chance = abs(null["edge"] - 0.5) <= 3 * null["error"]
            goal(f"{name}, random scores, {kind} truth: chance within 3 errors", null["edge"], at_chance)
        for method in ("eap", "eap-ig", "acdc"):
            if name in EXACT_FOR and (method, "resample") in rows:
                value = area(method, "resample", "resample")
                goal(f"{name}, {method}, resample truth: edge AUROC 1.000", value, value > 0.9995)
            elif name == "imposed" and method != "eap" and (method, "resample") in rows:
                value = area(method, "resample", "resample")
                goal(f"{name}, {method}, resample truth: edge AUROC >= 0.95", value, value >= 0.95)
        if name in PUBLISHED and ("acdc", "zero") in rows:
            value = area("acdc", "resample", "zero", "edge_pessimistic")
            title = f"{name}, acdc by resampling, zero truth: published {PUBLISHED[name]:.3f}, pessimistic"
            goal(title, value, abs(value - PUBLISHED[name]) < 5e-4)
            value = area("acdc", "zero", "zero", "edge_pessimistic")
            goal(f"{name}, acdc by zero ablation, zero truth: 1.000 (circular)", value, value > 0.9995)
    return goals
