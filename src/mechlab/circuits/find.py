"""Find a circuit: rank edges, take the fewest that keep the behaviour, judge them on new prompts.

1. Score every edge on the selection prompts (``attribution``).
2. For a grid of sizes n, take the n edges of largest |score|, drop those on no path from
   "embed" to the logits, and measure the faithfulness of the rest on the selection prompts.
3. Keep the smallest size that reaches the target.
4. Report its faithfulness on held-out prompts next to random connected circuits of at least as
   many edges, and patch the highest-ranked heads exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.circuits.attribution import edge_scores
from mechlab.circuits.circuit import ABLATION, Circuit, SizePoint, task_fingerprint
from mechlab.circuits.evaluate import faithfulness, run_circuits
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.patching import head_patching
from mechlab.circuits.runs import BATCH_SIZE
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject

_PHASES = 4


def top_edges(
    graph: Graph, scores: Float[Tensor, "n_sources n_readers"], n: int
) -> Bool[Tensor, "n_sources n_readers"]:
    """The ``n`` edges of largest |score|; ties go to earlier sources, then earlier readers."""
    edges = graph.real.nonzero()
    order = scores[edges[:, 0], edges[:, 1]].abs().argsort(descending=True, stable=True)
    mask = torch.zeros_like(graph.real)
    rows, columns = edges[order[:n]].T
    mask[rows, columns] = True
    return mask


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
    steps: int = 5,
    target: float = 0.9,
    metric: str | None = None,
    sizes: tuple[int, ...] | None = None,
    checked: int = 20,
    controls: int = 20,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> Circuit:
    """Find the circuit of a task and judge it on held-out prompts.

    Args:
        task_train: selection prompts: edges are ranked and the size is chosen on these.
        task_test: held-out prompts; must share none with the selection prompts.
        method: see ``mechlab.circuits.attribution``; ``steps`` counts its gradient points.
        target: faithfulness the circuit must reach on the selection prompts, above 0 and at most 1.
        metric: see ``mechlab.circuits.metrics``; by the task when None.
        sizes: numbers of edges to try; all edges are always tried last.
        checked: how many heads and MLPs to patch exactly.
        controls: how many random circuits make up the null.
        progress: called with (phases done, phases).

    Raises MechlabError for bad settings, prompts in both sets, or a model that does not do the
    task (its mean metric is no higher on clean than on corrupt prompts).
    """
    _check(task_train, task_test, target)
    name = metric or default_metric(task_train)
    metric_named(name)
    report = progress or (lambda done, wanted: None)
    forward = DecomposedForward(subject.module)
    graph = Graph(forward.shape)

    empty, gap = _gap(subject, forward, task_train, name, batch_size)
    scores = edge_scores(forward, task_train, method=method, steps=steps, metric=name, batch_size=batch_size)
    report(1, _PHASES)
    tried = sorted(
        {min(max(n, 1), graph.n_edges) for n in sizes or size_grid(graph.n_edges)} | {graph.n_edges}
    )
    masks = torch.stack([graph.connected(top_edges(graph, scores, n)) for n in tried])
    values, _, _ = run_circuits(forward, task_train, masks, metric=name, batch_size=batch_size)
    kept = ((values - empty).mean(1) / gap).tolist()
    curve = tuple(
        SizePoint(n, int(mask.sum()), value) for n, mask, value in zip(tried, masks, kept, strict=True)
    )
    # All edges give exactly 1 but for rounding, so the last size always qualifies.
    chosen = next((i for i, value in enumerate(kept) if value >= target), len(kept) - 1)
    report(2, _PHASES)
    held_out = faithfulness(
        forward,
        task_test,
        masks[chosen],
        metric=name,
        controls=controls,
        seed=seed,
        batch_size=batch_size,
    )
    report(3, _PHASES)
    heads = head_patching(
        subject, task_test, scores=scores, method=method, top=checked, metric=name, batch_size=batch_size
    )
    report(4, _PHASES)
    return Circuit(
        shape=forward.shape,
        mask=masks[chosen],
        scores=scores,
        task=task_train.name,
        metric=name,
        method=method,
        steps=steps,
        ablation=ABLATION,
        target=target,
        seed=seed,
        model=subject.fingerprint,
        selection=task_fingerprint(task_train),
        held_out=task_fingerprint(task_test),
        n_top=tried[chosen],
        curve=curve,
        faithfulness=held_out,
        heads=heads,
    )


def require_task(subject: Subject, task: Task, *, metric: str | None = None) -> None:
    """MechlabError unless a circuit of this task can be sought in this model.

    Costs two forwards of the prompts. The model must have a decomposed forward and must do
    the task: its mean metric is higher on clean than on corrupt prompts.
    """
    _gap(subject, DecomposedForward(subject.module), task, metric or default_metric(task), BATCH_SIZE)


def _gap(
    subject: Subject, forward: DecomposedForward, task: Task, metric: str, batch_size: int
) -> tuple[Float[Tensor, "n"], float]:
    """The metric of every corrupt prompt, and how much higher its mean is on clean ones."""
    none = torch.zeros(0, forward.shape.n_sources, forward.shape.n_readers, dtype=torch.bool)
    _, whole, empty = run_circuits(forward, task, none, metric=metric, batch_size=batch_size)
    gap = float((whole - empty).mean())
    if not gap > 0:  # also when it is not a number
        raise MechlabError(
            f"model {subject.name} does not do the task {task.name}: mean {metric}, clean minus corrupt",
            f"{gap:.3g}",
            "choose another --task or model",
        )
    return empty, gap


def _check(task_train: Task, task_test: Task, target: float) -> None:
    if not 0 < target <= 1:
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
