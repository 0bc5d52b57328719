"""ACDC: go through the edges from the logits backwards and remove each one that is not missed.

For the readers in reverse order of execution, and for each of their sources, the edge is removed if
that worsens the mean metric by less than τ; what counts is the metric of the circuit as it is by
then, not that of the whole model (Conmy et al. 2023, *Towards automated circuit discovery for
mechanistic interpretability*, algorithm 1). So the outcome depends on the order, which can be
chosen here. As published the change is signed: an edge whose removal *improves* the metric goes too,
however much it matters; ``signed=False`` compares the size of the change. An edge into a node from
which the logits can no longer be reached is removed untested: its removal changes nothing.

The outcome is that of testing one edge at a time, but

* earlier layers are whole while a reader is tested, so the run starts at its layer (``Masked``), and
* the next edges are tested ahead in one batch, each on the circuit that remains if the tests before
  it end as predicted. Results count up to and including the first that was predicted wrongly. An
  edge is predicted to end like the one before it, or as a ``guess`` says.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.circuit import task_fingerprint
from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import metric_named
from mechlab.circuits.runs import BATCH_SIZE, paired_runs
from mechlab.circuits.search.found import Found, clean_up
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.files import write_atomic
from mechlab.models.forward import DecomposedForward

ORDERS = ("reverse", "forward", "random")
_SAVE_SECONDS = 5.0
_ROUNDING, _SOME = 1e-5, 64
# Elements of the stream over all tests of a batch. Wrong predictions cost a CPU time, and its calls are
# cheap: measured on the bundled model, one test at a time is fastest from 16 prompts on. A GPU has room
# for many tests (its figure is not measured).
_ELEMENTS = {"cpu": 1 << 15}
_ELEMENTS_ELSEWHERE, _MOST_AHEAD = 1 << 25, 64


@dataclass(frozen=True)
class _Decision:
    """What became of an edge; ``value`` is the metric without it, None when it went untested."""

    removed: bool
    value: float | None


def edge_order(graph: Graph, order: str = "reverse", seed: int = 0) -> Int[Tensor, "edge 2"]:
    """All edges (row, column) in an order that ACDC may test them in: later stages first.

    Args:
        order: of the readers within a stage and of the sources of a reader: "reverse" (last first,
            as published), "forward", or "random" by ``seed``. Heads of a layer are parallel, so
            every order of theirs is a reverse topological one.

    Raises MechlabError for an unknown order.
    """
    if order not in ORDERS:
        raise MechlabError("unknown order of edges", order, near(order, ORDERS))
    generator = torch.Generator().manual_seed(seed)

    def arranged(first: int, stop: int) -> list[int]:
        if order == "random":
            return (first + torch.randperm(stop - first, generator=generator)).tolist()
        return list(range(first, stop)) if order == "forward" else list(range(stop - 1, first - 1, -1))

    edges = [
        (source, reader)
        for stage in reversed(graph.shape.stages)
        for reader in arranged(stage.readers.start, stage.readers.stop)
        for source in arranged(0, stage.upstream)
    ]
    return torch.tensor(edges)


def acdc(
    forward: DecomposedForward,
    task: Task,
    threshold: float,
    *,
    metric: str = "negative_kl",
    ablation: Ablation | None = None,
    signed: bool = True,
    order: str = "reverse",
    seed: int = 0,
    ahead: int | None = None,
    guess: Bool[Tensor, "n_sources n_readers"] | None = None,
    batch_size: int = BATCH_SIZE,
    checkpoint: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """The circuit that ACDC leaves at a threshold.

    Args:
        threshold: τ, in the metric's units; a worsening of the mean over prompts.
        metric: larger is better; see ``mechlab.circuits.metrics``.
        ablation: what removed edges carry; the corrupt run's values when None.
        signed, order, seed: see the module and ``edge_order``.
        ahead: most edges tested in one batch, by size and device when None. Changes the time, not
            the circuit, but for edges whose change is within rounding of τ (at τ = 0 those that
            change nothing): a run in a batch may differ from a run alone in its last bits.
        guess: edges expected to stay, such as the circuit of a nearby threshold. Likewise.
        checkpoint: a file that holds the decisions so far, written every few seconds; a call with
            the same settings goes on from it.
        progress: called with (edges decided, edges).

    Returns:
        ``scores`` are worsenings at the time of the test, 0 where none was needed. ``record`` holds
        the settings and ``removed``: one [source row, reader column, metric after] per removed edge
        in the order they fell, the metric None for those untested.

    Raises MechlabError for an unknown metric or order, a threshold that is not a number, ``ahead``
    below 1, or a checkpoint of another job.
    """
    started = time.monotonic()
    if math.isnan(threshold):
        raise MechlabError("threshold is not a number", threshold)
    if ahead is not None and ahead < 1:
        raise MechlabError("edges tested in one batch must be at least 1", ahead)
    search = _Search(forward, task, metric, ablation, batch_size)
    search.settings |= {"threshold": threshold, "signed": signed, "order": order, "seed": seed}
    search.edges = edge_order(search.graph, order, seed).tolist()
    search.remove_if = lambda worse: (worse if signed else abs(worse)) < threshold
    store = None if checkpoint is None else Path(checkpoint)
    if store is not None and store.exists():
        search.resume(store)
    ahead = ahead or search.ahead()
    saved, width = time.monotonic(), ahead
    while search.at < len(search.edges):
        used, tried = search.advance(width, guess)
        width = min(ahead, max(1, 2 * used)) if tried else ahead
        if progress is not None:
            progress(search.at, len(search.edges))
        if store is not None and time.monotonic() - saved >= _SAVE_SECONDS:
            search.save(store)
            saved = time.monotonic()
    if store is not None:
        search.save(store)
    return search.found(time.monotonic() - started)


def acdc_scores(
    forward: DecomposedForward,
    task: Task,
    thresholds: Sequence[float],
    *,
    checkpoints: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> tuple[Float[Tensor, "n_sources n_readers"], tuple[Found, ...]]:
    """ACDC at every threshold: the largest τ at which an edge still stays, and the runs by falling τ.

    Edges that stay at none score 0. Circuits of different τ need not be nested; the score makes
    them so, which is how ACDC's ROC curves are drawn (Conmy et al. 2023, section 4). Each run is
    guided by the circuit before it.

    Args:
        thresholds: above 0, any order.
        checkpoints: a folder for one checkpoint per threshold.
        progress: called with (thresholds done, thresholds).
        settings: of ``acdc``.

    Raises MechlabError when a threshold is not above 0, and what ``acdc`` raises.
    """
    wanted = sorted({float(threshold) for threshold in thresholds}, reverse=True)
    if not wanted or not all(threshold > 0 for threshold in wanted):
        raise MechlabError("thresholds must be above 0", list(thresholds))
    graph = Graph(forward.shape)
    scores = torch.zeros(graph.real.shape)
    runs: list[Found] = []
    for threshold in wanted:
        store = None if checkpoints is None else Path(checkpoints) / f"{threshold!r}.json"
        if store is not None:
            store.parent.mkdir(parents=True, exist_ok=True)
        guess = runs[-1].mask if runs else None
        run = acdc(forward, task, threshold, guess=guess, checkpoint=store, **settings)
        scores = torch.where(run.mask & (scores == 0), threshold, scores)
        runs.append(run)
        if progress is not None:
            progress(len(runs), len(wanted))
    return scores, tuple(runs)


class _Search:
    """The state of one search: the edges present, and the decisions behind it."""

    edges: list[list[int]]
    remove_if: Callable[[float], bool]

    def __init__(
        self, forward: DecomposedForward, task: Task, metric: str, ablation: Ablation | None, batch_size: int
    ) -> None:
        self.graph = Graph(forward.shape)
        self.batches = []
        total, gap = 0.0, torch.zeros(self.graph.shape.n_sources, dtype=torch.float64)
        for pair in paired_runs(forward, task, metric_named(metric), batch_size):
            other = pair.corrupt.sources if ablation is None else ablation.values(pair)
            self.batches.append((pair, Masked(forward, pair.clean, other, pair.task.positions["end"])))
            total += float(pair.clean.metric.double().sum())
            gap += (pair.clean.sources - other).float().square().mean((2, 3)).sum(1).double().cpu()
        self.n = len(task)
        self.kind = "resample" if ablation is None else ablation.kind
        self.settings: dict[str, Any] = {
            "metric": metric,
            "ablation": self.kind,
            "prompts": task_fingerprint(task),
        }
        self.start = self.current = total / self.n
        # Tells models and ablations apart, up to rounding: some logits, what each removed source changes.
        some = self.batches[0][0].clean.logits.flatten()[:_SOME].double().cpu()
        self.trace = [(some / some.abs().max()).tolist(), (gap / gap.max().clamp(min=1e-30)).tolist()]
        self.present = self.graph.real.clone()
        self.decisions: list[_Decision] = []
        self.calls = self.rows = 0

    @property
    def at(self) -> int:
        return len(self.decisions)

    def ahead(self) -> int:
        """How many tests fill the device without waste."""
        stream = self.batches[0][0].clean.streams[0]
        room = _ELEMENTS.get(stream.device.type, _ELEMENTS_ELSEWHERE)
        return min(max(room // stream.numel(), 1), _MOST_AHEAD)

    def advance(self, width: int, guess: Tensor | None) -> tuple[int, int]:
        """Test up to ``width`` edges ahead; how many of the tests counted, and how many were made."""
        trials = self._ahead(width, guess)
        values = self._values([trial for _, trial in trials])
        used = 0
        for (place, trial), value in zip(trials, values, strict=True):
            self._skip_idle()
            if place != self.at or not torch.equal(trial, _without(self.present, self.edges[place])):
                break
            self._decide(_Decision(self.remove_if(self.current - value), value))
            used += 1
        self._skip_idle()
        return used, len(trials)

    def _ahead(self, width: int, guess: Tensor | None) -> list[tuple[int, Tensor]]:
        """The next tests (place in the order, circuit without the edge) if predictions come true."""
        trials: list[tuple[int, Tensor]] = []
        present, place = self.present.clone(), self.at
        tested = (decision for decision in reversed(self.decisions) if decision.value is not None)
        last = next(tested, None)
        while place < len(self.edges) and len(trials) < width:
            row, column = self.edges[place]
            removed = True
            if self._matters(present, column):
                trials.append((place, _without(present, self.edges[place])))
                removed = (last is None or last.removed) if guess is None else not bool(guess[row, column])
            if removed:
                present[row, column] = False
            place += 1
        return trials

    def _matters(self, present: Tensor, column: int) -> bool:
        """Whether the logits can be reached from a reader.

        Nodes after it are settled, so that one edge out of its node is as good as a path.
        """
        return column == self.graph.shape.n_readers - 1 or bool(present[self.graph.feeds[column]].any())

    def _skip_idle(self) -> None:
        while self.at < len(self.edges) and not self._matters(self.present, self.edges[self.at][1]):
            self._decide(_Decision(True, None))

    def _decide(self, decision: _Decision) -> None:
        if decision.removed:
            row, column = self.edges[self.at]
            self.present[row, column] = False
            self.current = self.current if decision.value is None else decision.value
        self.decisions.append(decision)

    def _values(self, trials: list[Tensor]) -> list[float]:
        """Mean metric of circuits."""
        if not trials:
            return []
        masks = torch.stack(trials)
        total = torch.zeros(len(masks), dtype=torch.float64)
        for pair, masked in self.batches:
            total += masked.metric(masks, pair).double().sum(1).cpu()
        self.calls += 1
        self.rows += len(masks)
        return (total / self.n).tolist()

    def save(self, path: Path) -> None:
        decisions = [asdict(decision) for decision in self.decisions]
        state = {"settings": self.settings, "trace": self.trace, "decisions": decisions}
        write_atomic(path, json.dumps(state | {"calls": self.calls, "rows": self.rows}))

    def resume(self, path: Path) -> None:
        """Repeat the decisions in a file."""
        try:
            state = json.loads(path.read_text())
            decisions = [_Decision(**decision) for decision in state["decisions"]]
            alike = [*map(len, state["trace"])] == [*map(len, self.trace)] and np.allclose(
                np.concatenate(state["trace"]), np.concatenate(self.trace), rtol=0, atol=_ROUNDING
            )
            self.calls, self.rows = int(state["calls"]), int(state["rows"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MechlabError("checkpoint cannot be read", path, "delete it to start anew") from error
        if not alike or state["settings"] != self.settings:
            raise MechlabError(
                "checkpoint belongs to another model, task or setting", path, "delete it to start anew"
            )
        for decision in decisions:
            self._decide(decision)

    def found(self, seconds: float) -> Found:
        scores = torch.zeros(self.present.shape)
        removed = []
        current = self.start
        for (row, column), decision in zip(self.edges, self.decisions, strict=True):
            if decision.value is not None:
                scores[row, column] = current - decision.value
            if decision.removed:
                removed.append([row, column, decision.value])
                current = current if decision.value is None else decision.value
        record = self.settings | {"start": self.start, "end": self.current, "removed": removed}
        mask = clean_up(self.graph, self.present, self.kind)
        n_top = int(self.present.sum())
        return Found("acdc", mask, scores, n_top, self.calls, self.rows, seconds, record)


def _without(mask: Tensor, edge: list[int]) -> Tensor:
    mask = mask.clone()
    mask[edge[0], edge[1]] = False
    return mask
