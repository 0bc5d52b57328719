"""The bundled model's circuit for indirect object identification, by ACDC and by EAP-IG at equal size.

Found on validation prompts, judged on test prompts, whose names are others.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.bench.measure import Progress
from mechlab.circuits.attribution import edge_scores
from mechlab.circuits.evaluate import faithfulness
from mechlab.circuits.evaluation.completeness import completeness
from mechlab.circuits.evaluation.minimality import minimality
from mechlab.circuits.evaluation.stability import jaccard
from mechlab.circuits.graph import Graph
from mechlab.circuits.search.acdc import acdc
from mechlab.circuits.search.classes import HeadClass, head_classes
from mechlab.circuits.search.prune import top_edges
from mechlab.data.tasks import make_task
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import load_model

_METRIC = "logit_difference"
MOST_EDGES = 0.15


def of_size(
    graph: Graph, scores: Float[Tensor, "n_sources n_readers"], n_edges: int
) -> Bool[Tensor, "n_sources n_readers"]:
    """The best edges, as few of them as leave ``n_edges`` on a path (or the next number that can be left)."""

    def connected(count: int) -> Tensor:
        return graph.connected(top_edges(graph, scores, count))

    sizes = range(graph.n_edges)
    return connected(bisect_left(sizes, n_edges, key=lambda count: int(connected(count).sum())))


def ioi_circuits(
    *,
    prompts: int = 64,
    held_out: int = 128,
    threshold: float = 0.05,
    subsets: int = 20,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Both circuits with all that they are judged by.

    Args:
        prompts, held_out: how many are searched on, and judged on.
        threshold: ACDC's, a worsening of the mean logit difference.
        subsets: random knock-outs of the completeness.

    Returns by method: edges, seconds, faithfulness (null: random circuits of equal size),
    incompleteness, minimality's share of edges that matter, and its heads by class; also the overlap of
    both circuits.
    """
    subject = load_model("fable", device=device)
    forward = DecomposedForward(subject.module)
    graph = Graph(forward.shape)
    task = make_task("ioi", subject.tokenizer, n=prompts, seed=seed, split="validation")
    test = make_task("ioi", subject.tokenizer, n=held_out, seed=seed, split="test")
    masks, seconds = {}, {}
    run = acdc(forward, task, threshold, metric=_METRIC)
    masks["acdc"], seconds["acdc"] = run.mask, run.seconds
    started = time.perf_counter()
    scores = edge_scores(forward, task, method="eap-ig", metric=_METRIC)
    masks["eap-ig"] = of_size(graph, scores, run.n_edges)
    seconds["eap-ig"] = time.perf_counter() - started
    classes = head_classes(subject, test, metric=_METRIC, seed=seed)
    found: dict[str, Any] = {}
    for done, (name, mask) in enumerate(masks.items()):
        if progress:
            progress("fable ioi", done, len(masks), {})
        loss = completeness(forward, test, mask, metric=_METRIC, subsets=subsets, greedy=2, seed=seed)
        parts = minimality(forward, test, mask, metric=_METRIC, seed=seed)
        worst = max(loss.knockouts, key=lambda each: each.incompleteness.value)
        found[name] = {
            "edges": int(mask.sum()),
            "share": float(mask.sum()) / graph.n_edges,
            "seconds": seconds[name],
            "faithfulness": faithfulness(forward, test, mask, metric=_METRIC, seed=seed).to_dict(),
            "incompleteness": loss.mean.to_dict(),
            "worst_knockout": {"nodes": worst.nodes, "incompleteness": worst.incompleteness.value},
            "matter": parts.matter,
            "classes": _classes([each.part for each in parts.nodes], classes),
        }
    if progress:
        progress("fable ioi", len(masks), len(masks), {})
    return {
        "prompts": len(task),
        "held_out": len(test),
        "model_edges": graph.n_edges,
        "jaccard": jaccard(masks["acdc"], masks["eap-ig"]),
        "circuits": found,
    }


def _classes(nodes: list[str], classes: tuple[HeadClass, ...]) -> dict[str, list[str]]:
    """The circuit's heads by what they do; those that are in no class last."""
    labels = {each.head: each.label or "no class" for each in classes}
    found: dict[str, list[str]] = {label: [] for label in [*labels.values(), "no class"]}
    found["no class"] = found.pop("no class")
    for node in nodes:
        if node.startswith("a"):
            found[labels.get(node, "no class")].append(node)
    return {label: heads for label, heads in found.items() if heads}


def ioi_goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What is expected of both circuits."""
    goals: list[dict[str, Any]] = []
    for name, each in found["circuits"].items():
        score, null = each["faithfulness"], each["faithfulness"]["null"]
        whole = score["low"] >= 0.9 and score["high"] <= 1.1
        text = f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
        for title, value, met in (
            (f"faithfulness {text} within 0.9 and 1.1", score["value"], whole),
            (f"{each['share']:.1%} of the edges, at most 15 %", each["share"], each["share"] <= MOST_EDGES),
            (f"random circuits {null['value']:.3f}, at most 0.2", null["value"], null["high"] <= 0.2),
        ):
            goals.append({"name": f"fable ioi, {name}: {title}", "value": value, "met": met})
    return goals
