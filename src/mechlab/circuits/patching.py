"""Exact activation patching of heads and MLPs, next to what attribution predicts for them.

Noising puts a node's output of the corrupt run into the clean run, denoising the reverse
(Meng et al. 2022; Heimersheim & Nanda 2024, *How to use and interpret activation patching*).
Both effects are positive when the node supports the metric:

    noising   = m(clean) − m(clean with the node corrupt)
    denoising = m(corrupt with the node clean) − m(corrupt)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.attribution import edge_scores, node_scores
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import Metric, default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, End, PairedRun, paired_runs
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Stage
from mechlab.models.subject import Subject
from mechlab.scores import rank_correlation


@dataclass(frozen=True)
class NodeEffect:
    """One node's exact effects and its attribution, means over prompts in the metric's units."""

    node: str
    noising: float
    denoising: float
    attribution: float


@dataclass(frozen=True)
class HeadPatching:
    """Exact patching of the nodes that attribution ranks highest.

    Attributes:
        effects: one row per node, by falling |attribution|.
        clean, corrupt: mean metric of the two runs; their gap is the scale of the effects.
        method: the attribution method compared with.
    """

    effects: tuple[NodeEffect, ...]
    clean: float
    corrupt: float
    method: str

    def rank_correlation(self, effect: str = "noising") -> float:
        """Spearman's correlation between attribution and an exact effect; NaN below three nodes."""
        if effect not in ("noising", "denoising"):
            raise MechlabError("unknown effect", effect, "use noising or denoising")
        pairs = np.array([(row.attribution, getattr(row, effect)) for row in self.effects], dtype=np.float64)
        return rank_correlation(*pairs.T) if len(pairs) > 2 else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> HeadPatching:
        """The inverse of ``to_dict``."""
        effects = tuple(NodeEffect(**row) for row in fields["effects"])
        return cls(effects, fields["clean"], fields["corrupt"], fields["method"])


def head_patching(
    subject: Subject,
    task: Task,
    *,
    scores: Float[Tensor, "n_sources n_readers"] | None = None,
    method: str = "eap-ig",
    top: int | None = None,
    metric: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> HeadPatching:
    """Patch the ``top`` heads and MLPs by |attribution| exactly, in both directions.

    Args:
        scores: edge scores to take the attribution from; made with ``method`` when None.
        top: how many nodes; all when None.

    Raises MechlabError for an unknown method or metric.
    """
    forward = DecomposedForward(subject.module)
    if scores is None:
        scores = edge_scores(forward, task, method=method, metric=metric, batch_size=batch_size)
    attribution = node_scores(scores)
    ranked = attribution[1:].abs().argsort(descending=True, stable=True) + 1
    nodes = ranked[:top].tolist()
    noising, denoising, clean, corrupt = patch_nodes(
        forward, task, nodes, metric=metric_named(metric or default_metric(task)), batch_size=batch_size
    )
    names = Graph(forward.shape).sources
    effects = tuple(
        NodeEffect(names[node], float(out), float(into), float(attribution[node]))
        for node, out, into in zip(nodes, noising.mean(1), denoising.mean(1), strict=True)
    )
    return HeadPatching(effects, float(clean.mean()), float(corrupt.mean()), method)


def patch_nodes(
    forward: DecomposedForward,
    task: Task,
    nodes: Sequence[int],
    *,
    metric: Metric,
    batch_size: int = BATCH_SIZE,
) -> tuple[Float[Tensor, "node n"], Float[Tensor, "node n"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Exact effects per prompt: (noising, denoising, clean metric, corrupt metric).

    Args:
        nodes: rows of the graph, "embed" (0) excepted.

    The nodes of a layer are patched in one batch, from that layer on. Raises MechlabError for
    a row that is no head or MLP.
    """
    wrong = [node for node in nodes if not 0 < node < forward.shape.n_sources]
    if wrong:
        raise MechlabError("no head or MLP at row", wrong[0], f"rows are 1 … {forward.shape.n_sources - 1}")
    noising, denoising, clean, corrupt = [], [], [], []
    for pair in paired_runs(forward, task, metric, batch_size):
        noised = _patched(forward, pair, pair.clean, pair.corrupt, nodes)
        denoised = _patched(forward, pair, pair.corrupt, pair.clean, nodes)
        noising.append(pair.clean.metric - noised)
        denoising.append(denoised - pair.corrupt.metric)
        clean.append(pair.clean.metric)
        corrupt.append(pair.corrupt.metric)
    return (
        torch.cat(noising, 1).cpu(),
        torch.cat(denoising, 1).cpu(),
        torch.cat(clean).cpu(),
        torch.cat(corrupt).cpu(),
    )


def _patched(
    forward: DecomposedForward, pair: PairedRun, base: End, other: End, nodes: Sequence[int]
) -> Float[Tensor, "node batch"]:
    """The metric of the base run with each node's output in turn taken from the other run."""
    n, per_layer = len(pair.task), forward.shape.n_heads + 1
    found = base.metric.new_empty(len(nodes), n)
    for layer in range(forward.shape.n_layers):
        here = [place for place, node in enumerate(nodes) if (node - 1) // per_layer == layer]
        if not here:
            continue

        def write(stage: Stage, outputs: Tensor, here: list[int] = here) -> Tensor:
            outputs = outputs.clone()
            for copy, place in enumerate(here):
                row = nodes[place] - stage.writes.start
                if 0 <= row < len(outputs):
                    outputs[row, copy * n : (copy + 1) * n] = other.sources[nodes[place]]
            return outputs

        with torch.no_grad():
            x = base.streams[layer].repeat(len(here), 1, 1)
            x = forward.run(x=x, start=layer, stop=layer + 1, write=write).x
            ends = pair.task.positions["end"]
            positions = ends.repeat(len(here), *[1] * (ends.ndim - 1))
            logits = forward.run(x=x, start=layer + 1, positions=positions).logits
        assert logits is not None
        for place, block in zip(here, logits.view(len(here), n, *logits.shape[1:]), strict=True):
            found[place] = pair.metric(block)
    return found
