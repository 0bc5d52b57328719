"""Find a circuit: rank edges or search, choose a size, judge the circuit on new prompts.

1. Score every edge on the selection prompts (``attribution``), or search on them (``search``).
2. Of scores, for a grid of sizes n, take the n edges of largest |score|, drop those that can make no
   difference, and measure the faithfulness of the rest on the selection prompts. The circuit is the
   smallest that reaches a target, or that of a given size or threshold. A search chooses for itself.
3. Report faithfulness, KL and CPR/CMD on held-out prompts next to random connected circuits of
   at least as many edges, and patch the highest-ranked heads exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.ablation import Ablation, make_ablation, require_apart
from mechlab.circuits.attribution import METHODS, edge_scores, gradient_points
from mechlab.circuits.circuit import Circuit, SizePoint, task_fingerprint
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.evaluation.judge import evaluate_mask
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.patching import head_patching
from mechlab.circuits.runs import BATCH_SIZE
from mechlab.circuits.search.acdc import acdc
from mechlab.circuits.search.found import Found, clean_up
from mechlab.circuits.search.prune import edges_above, top_edges
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject

SEARCHES = ("acdc",)
TARGET = 0.9
Progress = Callable[[int, int], None]


def size_grid(n_edges: int, points: int = 20) -> tuple[int, ...]:
    """Circuit sizes to try: geometric from 1 to all edges."""
    ratios = torch.linspace(0, 1, points, dtype=torch.float64)
    return tuple(sorted({round(n_edges ** float(ratio)) for ratio in ratios}))


def find_circuit(
    subject: Subject,
    task_train: Task,
    task_test: Task,
    *,
    method: str = "eap-ig",
    ablation: str = "resample",
    reference: Task | None = None,
    target: float | None = None,
    top: int | None = None,
    threshold: float | None = None,
    steps: int = 5,
    metric: str | None = None,
    sizes: tuple[int, ...] | None = None,
    checked: int = 20,
    controls: int = 20,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Circuit:
    """Find the circuit of a task and judge it on held-out prompts.

    Args:
        task_train: selection prompts: edges are ranked and the size is chosen on these.
        task_test: held-out prompts; must share none with the selection prompts.
        method: an attribution method (``mechlab.circuits.attribution``; ``steps`` counts gradient
            points) or a search ("acdc").
        ablation: what edges outside the circuit carry; see ``mechlab.circuits.ablation``.
        reference: prompts for the constants of the ablations that have some; shares none with the others.
        target: faithfulness the circuit must reach on the selection prompts, above 0 and at most
            1; 0.9 when neither it nor ``top`` nor ``threshold`` is given. Not for searches.
        top: take this many edges by |score|. Not for searches.
        threshold: take every edge of at least this |score|; for "acdc" its τ. In the metric's units.
        metric: see ``mechlab.circuits.metrics``; by the task when None.
        sizes: numbers of edges to try; all edges are always tried last.
        checked: how many heads and MLPs to patch exactly.
        controls: how many random circuits make up the null.
        progress: called with (steps done, steps).

    Raises MechlabError for bad settings, prompts in two sets, or a model that does not do the
    task (its mean metric is no higher on clean prompts than under the ablation of all edges).
    """
    _check(task_train, task_test, target)
    _check_choice(method, target, top, threshold)
    name = metric or default_metric(task_train)
    metric_named(name)
    forward = DecomposedForward(subject.module)
    made = make_ablation(forward, ablation, reference, batch_size=batch_size)
    if made.constant is not None and reference is not None:
        require_apart(reference, task_train)
        require_apart(reference, task_test)
    empty, gap = _gap(subject, forward, task_train, name, made, batch_size)
    search = _Search(forward, task_train, name, made, seed, batch_size, empty, gap)
    report = progress or (lambda done, wanted: None)
    steps_of_search = 1

    def searching(done: int, wanted: int) -> None:
        nonlocal steps_of_search
        steps_of_search = wanted
        report(done, wanted + 3)

    settings: dict[str, Any]
    if method in SEARCHES:
        assert threshold is not None
        settings = {"threshold": threshold}
        found, curve = search.acdc(threshold, searching)
    else:
        if target is None and top is None and threshold is None:
            target = TARGET
        settings = {"steps": steps, "target": target, "top": top, "threshold": threshold}
        found, curve = search.rank(method, steps, target, top, threshold, sizes, searching)
    report(steps_of_search + 1, steps_of_search + 3)
    fingerprint = subject.fingerprint
    evaluation = evaluate_mask(
        forward,
        task_test,
        found.mask,
        found.scores,
        metric=name,
        ablation=made,
        model=fingerprint,
        controls=controls,
        seed=seed,
        batch_size=batch_size,
    )
    report(steps_of_search + 2, steps_of_search + 3)
    heads = head_patching(
        subject,
        task_test,
        scores=found.scores,
        method=method,
        top=checked,
        metric=name,
        batch_size=batch_size,
    )
    report(steps_of_search + 3, steps_of_search + 3)
    return Circuit(
        shape=forward.shape,
        mask=found.mask,
        scores=found.scores,
        task=task_train.name,
        metric=name,
        method=method,
        settings=settings,
        ablation=made,
        seed=seed,
        model=fingerprint,
        selection=task_fingerprint(task_train),
        held_out=task_fingerprint(task_test),
        n_top=found.n_top,
        calls=found.calls,
        rows=found.rows,
        seconds=found.seconds,
        record=found.record,
        curve=curve,
        evaluation=evaluation,
        heads=heads,
    )


@dataclass(frozen=True)
class _Search:
    """What every way of searching needs: the selection prompts and how circuits are run on them."""

    forward: DecomposedForward
    task: Task
    metric: str
    ablation: Ablation
    seed: int
    batch_size: int
    empty: Float[Tensor, "n"]
    gap: float

    def rank(
        self,
        method: str,
        steps: int,
        target: float | None,
        top: int | None,
        threshold: float | None,
        sizes: tuple[int, ...] | None,
        progress: Progress,
    ) -> tuple[Found, tuple[SizePoint, ...]]:
        """Score all edges and choose a size."""
        started = time.monotonic()
        graph = Graph(self.forward.shape)
        scores = edge_scores(
            self.forward,
            self.task,
            method=method,
            steps=steps,
            metric=self.metric,
            batch_size=self.batch_size,
        )
        progress(1, 1)
        wanted = top
        if threshold is not None:
            wanted = int(edges_above(graph, scores, threshold).sum())
        tried = {min(max(n, 1), graph.n_edges) for n in sizes or size_grid(graph.n_edges)} | {graph.n_edges}
        tried |= set() if wanted is None else {min(wanted, graph.n_edges)}
        masks = torch.stack(
            [clean_up(graph, top_edges(graph, scores, n), self.ablation.kind) for n in sorted(tried)]
        )
        curve = tuple(
            SizePoint(n, int(mask.sum()), value)
            for n, mask, value in zip(sorted(tried), masks, self._faithfulness(masks), strict=True)
        )
        if wanted is None:
            assert target is not None
            # All edges give exactly 1 but for rounding, so the last size always qualifies.
            kept = (i for i, point in enumerate(curve) if point.faithfulness >= target)
            chosen = next(kept, len(curve) - 1)
        else:
            chosen = sorted(tried).index(min(wanted, graph.n_edges))
        mask, point, seconds = masks[chosen], curve[chosen], time.monotonic() - started
        calls = 2 + len(gradient_points(method, steps))
        return Found(method, mask, scores, point.n_top, calls, len(masks), seconds, {}), curve

    def acdc(self, threshold: float, progress: Progress) -> tuple[Found, tuple[SizePoint, ...]]:
        """ACDC at one threshold; its curve is the one point."""
        found = acdc(
            self.forward,
            self.task,
            threshold,
            metric=self.metric,
            ablation=self.ablation,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=progress,
        )
        return found, (SizePoint(found.n_top, found.n_edges, self._faithfulness(found.mask[None])[0]),)

    def _faithfulness(self, masks: Bool[Tensor, "circuit n_sources n_readers"]) -> list[float]:
        values, _, _ = run_circuits(
            self.forward,
            self.task,
            masks,
            metric=self.metric,
            ablation=self.ablation,
            batch_size=self.batch_size,
        )
        kept: list[float] = ((values - self.empty).mean(1) / self.gap).tolist()
        return kept


def require_task(subject: Subject, task: Task, *, metric: str | None = None) -> None:
    """MechlabError unless a circuit of this task can be sought in this model.

    Costs two forwards of the prompts. The model must have a decomposed forward and must do
    the task: its mean metric is higher on clean than on corrupt prompts.
    """
    forward, name = DecomposedForward(subject.module), metric or default_metric(task)
    _gap(subject, forward, task, name, Ablation("resample"), BATCH_SIZE)


def _gap(
    subject: Subject, forward: DecomposedForward, task: Task, metric: str, ablation: Ablation, batch_size: int
) -> tuple[Float[Tensor, "n"], float]:
    """The metric of every prompt with all edges ablated, and how much higher the model's mean is."""
    none = torch.zeros(0, forward.shape.n_sources, forward.shape.n_readers, dtype=torch.bool)
    _, whole, empty = run_circuits(
        forward, task, none, metric=metric, ablation=ablation, batch_size=batch_size
    )
    gap = float((whole - empty).mean())
    if not gap > 0:  # also when it is not a number
        less = "corrupt" if ablation.kind == "resample" else f"{ablation.kind}-ablated"
        raise MechlabError(
            f"model {subject.name} does not do the task {task.name}: mean {metric}, clean minus {less}",
            f"{gap:.3g}",
            "choose another --task or model",
        )
    return empty, gap


def _check(task_train: Task, task_test: Task, target: float | None) -> None:
    if target is not None and not 0 < target <= 1:
        raise MechlabError("target faithfulness must be above 0 and at most 1", target)
    if task_train.name != task_test.name:
        raise MechlabError(
            "selection and held-out prompts are of different tasks",
            f"{task_train.name} and {task_test.name}",
            "make both with the same name",
        )
    selection, held_out = ({*task.prompts, *task.corrupt_prompts} for task in (task_train, task_test))
    shared = selection & held_out
    if shared:
        raise MechlabError(
            "prompts are in both the selection and the held-out set",
            f"{len(shared)}, such as {min(shared)!r}",
            "make them with different splits",
        )


def _check_choice(method: str, target: float | None, top: int | None, threshold: float | None) -> None:
    if method not in (*METHODS, *SEARCHES):
        raise MechlabError("unknown method", method, near(method, (*METHODS, *SEARCHES)))
    given = [n for n, v in (("target", target), ("top", top), ("threshold", threshold)) if v is not None]
    if method in SEARCHES and given != ["threshold"]:
        raise MechlabError(f"{method} takes a threshold and nothing else", ", ".join(given) or "none given")
    if len(given) > 1:
        raise MechlabError("size of the circuit is given twice", " and ".join(given), "give one of them")
    if top is not None and top < 1:
        raise MechlabError("a circuit needs at least one edge", top)
