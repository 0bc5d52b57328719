"""Path search: from the logits back, which sources act on the readers of what is found already.

Path patching (Wang et al. 2022, *Interpretability in the wild*; Goldowsky-Dill et al. 2023,
*Localizing model behavior with path patching*) changes what one source sends to one reader and looks
at the metric. The search starts with the logits as the only reader, keeps the sources whose path has
a large enough effect, takes their own inputs as the next readers, and goes on in reverse order of
execution, so that everything after a reader is settled when its turn comes.

    effect[s, r] = m(clean) − m(clean, but r sees s as it is in the corrupt run)

    full    the change in r acts on everything after it (every path through the edge s → r)
    direct  the change in r acts on later nodes along edges found before only: exactly the paths
            s → r → … → logits inside the circuit

Effects are means over prompts, compared by size with a share of the gap m(clean) − m(corrupt), so
that edges which work against the metric are found as well. One edge at a time is changed: where
another takes over (self-repair, an OR of inputs), its effect is understated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, PairedRun, paired_runs
from mechlab.circuits.search.found import Found
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.forward import DecomposedForward

PATHS = ("full", "direct")


def path_search(
    forward: DecomposedForward,
    task: Task,
    *,
    share: float = 0.02,
    paths: str = "full",
    most: int | None = None,
    metric: str | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """The circuit of all paths whose effect reaches a share of the gap between both runs.

    Args:
        share: least |effect| as a share of |m(clean) − m(corrupt)|, above 0.
        paths: one of ``PATHS``; see the module.
        most: keep at most so many sources per reader, those of largest effect.
        metric: by the task when None; minus a divergence has no gap worth sharing out, but works.
        progress: called with (readers passed, readers of the model).

    Returns:
        ``scores`` are effects in the metric's units, 0 for edges that were never tested because
        their reader is not in the circuit. ``record["steps"]`` has one entry per reader tested:
        its name and its kept [source name, effect] by falling |effect|, and ``best_left``, the
        largest |effect| not kept.

    Raises MechlabError for a share not above 0, ``most`` below 1, an unknown kind of path or metric, or
    a metric that is the same in both runs.
    """
    started = time.monotonic()
    if not share > 0:
        raise MechlabError("share of the gap must be above 0", share)
    if most is not None and most < 1:
        raise MechlabError("most sources per reader must be at least 1", most)
    if paths not in PATHS:
        raise MechlabError("unknown kind of path", paths, near(paths, PATHS))
    name = metric or default_metric(task)
    graph = Graph(forward.shape)
    pairs = list(paired_runs(forward, task, metric_named(name), batch_size))
    gap = sum(float((pair.clean.metric - pair.corrupt.metric).double().sum()) for pair in pairs) / len(task)
    if not abs(gap) > 0:  # also when it is not a number
        raise MechlabError(f"mean {name} is the same in both runs", task.name, "choose another metric")
    run = _Full(forward, pairs) if paths == "full" else _Direct(forward, pairs)

    mask, scores = torch.zeros_like(graph.real), torch.zeros(graph.real.shape)
    steps: list[dict[str, Any]] = []
    calls = rows = passed = 0
    for stage in reversed(graph.shape.stages):
        for reader in range(stage.readers.start, stage.readers.stop):
            passed += 1
            if reader == graph.shape.n_readers - 1 or bool(mask[graph.feeds[reader]].any()):
                effects = run.effects(mask, reader, stage.upstream)
                calls, rows = calls + 1, rows + stage.upstream
                scores[: stage.upstream, reader] = effects
                sizes = effects.abs()
                order = sizes.argsort(descending=True, stable=True)
                kept = order[sizes[order] >= share * abs(gap)][:most].tolist()
                mask[kept, reader] = True
                steps.append(
                    {
                        "reader": graph.readers[reader],
                        "kept": [[graph.sources[row], float(effects[row])] for row in kept],
                        "best_left": max(
                            (abs(float(effects[row])) for row in order[len(kept) :]), default=0.0
                        ),
                    }
                )
            if progress is not None:
                progress(passed, graph.shape.n_readers)
    record = {"metric": name, "ablation": "resample", "share": share, "paths": paths, "most": most}
    return Found(
        "path_search",
        graph.connected(mask),
        scores,
        int(mask.sum()),
        calls,
        rows,
        time.monotonic() - started,
        record | {"gap": gap, "steps": steps},
    )


class _Full:
    """Effects that run on through the whole model: the clean run with one edge corrupt."""

    def __init__(self, forward: DecomposedForward, pairs: list[PairedRun]) -> None:
        self.graph, self.pairs = Graph(forward.shape), pairs
        self.n = sum(len(pair.task) for pair in pairs)
        self.masked = [self._masked(forward, pair) for pair in pairs]

    def _masked(self, forward: DecomposedForward, pair: PairedRun) -> Masked:
        return Masked(forward, pair.clean, pair.corrupt.sources, pair.task.positions["end"])

    def _circuits(
        self, found: Bool[Tensor, "n_sources n_readers"], reader: int, upstream: int
    ) -> Bool[Tensor, "circuit n_sources n_readers"]:
        masks = self.graph.real.repeat(upstream, 1, 1)
        masks[torch.arange(upstream), torch.arange(upstream), reader] = False
        return masks

    def effects(
        self, found: Bool[Tensor, "n_sources n_readers"], reader: int, upstream: int
    ) -> Float[Tensor, "upstream"]:
        """Mean effect of the edge from every source into a reader."""
        masks = self._circuits(found, reader, upstream)
        total = torch.zeros(upstream, dtype=torch.float64)
        for pair, masked in zip(self.pairs, self.masked, strict=True):
            total += (pair.clean.metric - masked.metric(masks, pair)).double().sum(1).cpu()
        return (total / self.n).float()


class _Direct(_Full):
    """Effects inside the circuit: the corrupt run in which all else is held at its clean value."""

    def _masked(self, forward: DecomposedForward, pair: PairedRun) -> Masked:
        return Masked(forward, pair.corrupt, pair.clean.sources, pair.task.positions["end"])

    def _circuits(
        self, found: Bool[Tensor, "n_sources n_readers"], reader: int, upstream: int
    ) -> Bool[Tensor, "circuit n_sources n_readers"]:
        """The source's own past is corrupt; after it, only what the reader passes on."""
        shape, real = self.graph.shape, self.graph.real
        changed = torch.zeros(shape.n_sources, dtype=torch.bool) | self.graph.feeds[reader]
        for stage in shape.stages:
            if stage.kind in ("attention", "mlp"):
                touched = (found[:, stage.readers] & changed[:, None]).any(0)
                changed |= (self.graph.feeds[stage.readers] & touched[:, None]).any(0)
        masks = (found & changed[:, None]).repeat(upstream, 1, 1)
        written = {
            row: stage for stage in shape.stages for row in range(stage.writes.start, stage.writes.stop)
        }
        for source in range(upstream):
            past = torch.zeros(shape.n_readers, dtype=torch.bool)
            past[self.graph.feeds[:, source]] = True
            masks[source] |= real & past
            masks[source, :, : written[source].readers.start] |= real[:, : written[source].readers.start]
            masks[source, source, reader] = True
        return masks
