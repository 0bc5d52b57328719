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
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.ablation import Ablation, make_ablation, require_apart
from mechlab.circuits.attribution import METHODS, gradient_points
from mechlab.circuits.circuit import Circuit, SizePoint, task_fingerprint
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.evaluation.judge import evaluate_mask, require_controls
from mechlab.circuits.evaluation.stability import resampled, stability
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.patching import head_patching
from mechlab.circuits.runs import BATCH_SIZE
from mechlab.circuits.search.found import Found, clean_up
from mechlab.circuits.search.prune import edges_above, top_edges
from mechlab.circuits.search.sought import SEARCHES, Progress, Sought, asked
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Shape
from mechlab.models.subject import Subject
from mechlab.scores import Score

# Largest, and flat, at the clean run: a gradient there is rounding, and so is a ranking by it.
AGREEMENT = ("negative_kl", "negative_l2")
_FLAT = "use eap-ig, or a metric of the task"


def size_grid(n_edges: int, points: int = 20) -> tuple[int, ...]:
    """Circuit sizes to try: geometric from 1 to all edges."""
    ratios = torch.linspace(0, 1, points, dtype=torch.float64)
    return tuple(sorted({round(n_edges ** float(ratio)) for ratio in ratios}))


def passes(method: str, steps: int, shape: Shape, ablation: str = "resample") -> int:
    """How often an attribution method runs a batch through the model, forward and backward.

    All but "ifr" run both prompts. A gradient takes a forward as well as a backward, unless it is
    taken on one of those runs (under resample ablation); "eap-ig-activations" takes them for every source,
    "atp*" a backward for every layer that it holds.
    """
    if method == "ifr":
        return 1
    ends = (0.0, 1.0) if ablation == "resample" and method != "act-grad" else ()
    forwards = sum(point not in ends for point in gradient_points(method, steps))
    backwards = shape.n_layers if method == "atp*" else len(gradient_points(method, steps))
    return 2 + (forwards + backwards) * (shape.n_sources if method == "eap-ig-activations" else 1)


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
    steps: int | None = None,
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
        method: an attribution method (``mechlab.circuits.attribution``) or a search
            (``mechlab.circuits.search``): "acdc", "path", "edge-pruning", "subnetwork-probing".
        ablation: what edges outside the circuit carry; see ``mechlab.circuits.ablation``.
        reference: prompts for the constants of the ablations that have some; shares none with the others.
        target: faithfulness the circuit must reach on the selection prompts, above 0 and at most
            1; 0.9 when neither it nor ``top`` nor ``threshold`` is given. Not for searches.
        top: take this many edges by |score|. Of searches, edge pruning needs it.
        threshold: take every edge of at least this |score|; for "acdc" its τ, for "path" the least
            effect as a share of the gap, for "subnetwork-probing" the penalty of all edges open.
        steps: gradient points of integrated gradients (5), training steps of learned masks (300).
        metric: see ``mechlab.circuits.metrics``; by the task when None.
        sizes: numbers of edges to try; all edges are always tried last.
        checked: how many heads and MLPs to patch exactly.
        controls: how many random circuits make up the null.
        progress: called with (steps done, steps).

    Raises MechlabError for bad settings, prompts in two sets, a gradient on the clean run of a metric that
    is flat there (agreement with the model), or a model that does not do the
    task (its mean metric is no higher on clean prompts than under the ablation of all edges).
    """
    _check(task_train, task_test)
    settings = asked(method, target, top, threshold, steps)
    require_controls(controls)
    name = metric or default_metric(task_train)
    metric_named(name)
    if name in AGREEMENT and method in METHODS and METHODS[method].gradient.startswith("clean run"):
        raise MechlabError(f"{name} is flat on the clean run, where {method} takes its gradient", None, _FLAT)
    forward = DecomposedForward(subject.module)
    made = make_ablation(forward, ablation, reference, batch_size=batch_size)
    if made.constant is not None and reference is not None:
        require_apart(reference, task_train)
        require_apart(reference, task_test)
    empty, gap = _gap(subject, forward, task_train, name, made, batch_size)
    sought = Sought(forward, task_train, name, made, settings["steps"], seed, batch_size)
    report = progress or (lambda done, wanted: None)
    steps_of_search = 1

    def searching(done: int, wanted: int) -> None:
        nonlocal steps_of_search
        steps_of_search = wanted
        report(done, wanted + 3)

    if method in SEARCHES:
        found = sought.search(method, float(settings[SEARCHES[method]]), searching)
        kept = _faithfulness(sought, found.mask[None], empty, gap)[0]
        curve: tuple[SizePoint, ...] = (SizePoint(found.n_top, found.n_edges, kept),)
    else:
        started = time.monotonic()
        scores = sought.scores(method)
        searching(1, 1)
        masks, tried, wanted = _sizes(forward, scores, ablation, sizes, top, threshold)
        curve = tuple(
            SizePoint(n, int(mask.sum()), value)
            for n, mask, value in zip(tried, masks, _faithfulness(sought, masks, empty, gap), strict=True)
        )
        chosen = _smallest(curve, settings["target"]) if wanted is None else tried.index(wanted)
        calls = passes(method, settings["steps"] or 1, forward.shape, ablation)
        seconds = time.monotonic() - started
        found = Found(method, masks[chosen], scores, tried[chosen], calls, len(masks), seconds, {})
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


def find_again(
    subject: Subject,
    circuit: Circuit,
    task: Task,
    *,
    times: int = 10,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Score:
    """How stable a circuit is: it is found again on resampled prompts, and the circuits are compared.

    Args:
        task: the selection prompts; drawn again with replacement every time.
        times: how many circuits to find, in the same way: edges of the same number for attribution
            methods, the same threshold for searches.
        progress: called with (circuits found, times).

    Returns:
        The mean pairwise Jaccard index (see ``mechlab.circuits.evaluation.stability``).

    Raises MechlabError for fewer than two times.
    """
    forward, method, settings = DecomposedForward(subject.module), circuit.method, circuit.settings
    sought = Sought(
        forward, task, circuit.metric, circuit.ablation, settings["steps"], circuit.seed, batch_size
    )
    masks = []
    for each in resampled(task, times, seed):
        again = replace(sought, task=each)
        if method in SEARCHES:
            masks.append(again.search(method, float(settings[SEARCHES[method]])).mask)
        else:
            chosen = top_edges(circuit.graph, again.scores(method), circuit.n_top)
            masks.append(clean_up(circuit.graph, chosen, circuit.ablation.kind))
        if progress is not None:
            progress(len(masks), times)
    none = torch.zeros(0, *circuit.mask.shape, dtype=torch.bool)
    return stability(circuit.graph, torch.stack(masks) if masks else none, seed=seed)


def _faithfulness(
    sought: Sought, masks: Bool[Tensor, "circuit n_sources n_readers"], empty: Float[Tensor, "n"], gap: float
) -> list[float]:
    values, _, _ = run_circuits(
        sought.forward,
        sought.task,
        masks,
        metric=sought.metric,
        ablation=sought.ablation,
        batch_size=sought.batch_size,
    )
    kept: list[float] = ((values - empty).mean(1) / gap).tolist()
    return kept


def _sizes(
    forward: DecomposedForward,
    scores: Float[Tensor, "n_sources n_readers"],
    ablation: str,
    sizes: tuple[int, ...] | None,
    top: int | None,
    threshold: float | None,
) -> tuple[Bool[Tensor, "circuit n_sources n_readers"], list[int], int | None]:
    """Circuits of every size tried, the sizes, and the size that is wanted, where one is."""
    graph = Graph(forward.shape)
    wanted = top if threshold is None else int(edges_above(graph, scores, threshold).sum())
    wanted = None if wanted is None else min(wanted, graph.n_edges)
    tried = {min(max(n, 1), graph.n_edges) for n in sizes or size_grid(graph.n_edges)} | {graph.n_edges}
    tried |= set() if wanted is None else {wanted}
    masks = [clean_up(graph, top_edges(graph, scores, n), ablation) for n in sorted(tried)]
    return torch.stack(masks), sorted(tried), wanted


def _smallest(curve: tuple[SizePoint, ...], target: float) -> int:
    # All edges give exactly 1 but for rounding, so the last size always qualifies.
    kept = (i for i, point in enumerate(curve) if point.faithfulness >= target)
    return next(kept, len(curve) - 1)


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


def _check(task_train: Task, task_test: Task) -> None:
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
