"""Score a circuit: on the prompts, and under the ablation and metric, that it was found with, or on others.

Another ablation, metric, model (of the same shape) or set of prompts is allowed and is named in the
result, since one circuit's faithfulness may lie anywhere from below 0 to far above 1 over such
choices (Miller et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab import scores as scoring
from mechlab.circuits.ablation import Ablation, make_ablation, require_apart
from mechlab.circuits.circuit import Circuit, task_fingerprint
from mechlab.circuits.evaluate import random_circuits
from mechlab.circuits.evaluation.completeness import circuit_nodes, completeness
from mechlab.circuits.evaluation.curve import size_curves
from mechlab.circuits.evaluation.minimality import minimality
from mechlab.circuits.evaluation.ratios import mean_of_ratios, ratio_of_means
from mechlab.circuits.evaluation.record import Evaluation, Means
from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import metric_named
from mechlab.circuits.runs import BATCH_SIZE, paired_runs
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject
from mechlab.scores import Score

_AGREEMENT = "negative_kl"


def evaluate_mask(
    forward: DecomposedForward,
    task: Task,
    mask: Bool[Tensor, "n_sources n_readers"],
    scores: Float[Tensor, "n_sources n_readers"],
    *,
    metric: str,
    ablation: Ablation,
    model: str = "",
    controls: int = 20,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Faithfulness both ways, KL and CPR/CMD of a circuit that is not an artifact (yet).

    Args:
        scores: of all edges, for CPR and CMD.
        model: fingerprint to record.
        controls: random circuits of equal size for the nulls.

    Raises MechlabError for an unknown metric, or fewer than no controls.
    """
    require_controls(controls)
    graph = Graph(forward.shape)
    mask = mask.cpu() & graph.real
    masks = torch.cat([mask[None], random_circuits(graph, int(mask.sum()), controls, seed)])
    names = tuple(dict.fromkeys((metric, "logit_difference", _AGREEMENT)))
    per_prompt = _run(forward, task, masks, names, ablation, batch_size)
    means = {
        name: Means(float(values[0].mean()), float(whole.mean()), float(empty.mean()))
        for name, (values, whole, empty) in per_prompt.items()
    }
    values, whole, empty = per_prompt[metric]
    faithful = ratio_of_means(values[0], whole, empty, seed=seed)
    ratios, undefined = mean_of_ratios(values[0], whole, empty, seed=seed)
    kl = -per_prompt[_AGREEMENT][0]
    cpr, cmd = size_curves(
        forward, task, scores, metric=metric, ablation=ablation, seed=seed, batch_size=batch_size
    )
    if controls > 0:
        gap = float((whole - empty).double().sum())
        kept = (values[1:] - empty).double().sum(1).numpy() / gap
        faithful = replace(faithful, null=_mean("faithfulness of random circuits", kept, seed))
    null = _mean("KL of random circuits", kl[1:].double().mean(1).numpy(), seed) if controls > 0 else None
    return Evaluation(
        task=task.name,
        metric=metric,
        ablation=ablation.kind,
        model=model,
        prompts=task_fingerprint(task),
        differences=(),
        n_edges=int(mask.sum()),
        means=means,
        faithfulness=faithful,
        ratios=ratios,
        undefined=undefined,
        kl=replace(_mean("KL divergence", kl[0].double().numpy(), seed), null=null),
        cpr=cpr,
        cmd=cmd,
    )


def evaluate_circuit(
    subject: Subject,
    circuit: Circuit,
    task: Task,
    *,
    ablation: str | None = None,
    reference: Task | None = None,
    metric: str | None = None,
    knockouts: bool = True,
    classes: Mapping[str, Sequence[str]] | None = None,
    controls: int = 20,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a circuit on prompts of a task; every difference from how it was found is named.

    Args:
        ablation: kind; the circuit's own, with its constants, when None or equal.
        reference: prompts for the constants of another kind that needs them; shares none with ``task``.
        metric: the circuit's own when None.
        knockouts: measure completeness and minimality too.
        classes: of heads, knocked out together (see ``completeness``).
        controls: random circuits, random sets and random edges of the nulls.
        progress: called with (parts done, parts).

    Raises MechlabError for a model of another shape, an unknown metric or ablation, and what
    ``make_ablation`` refuses.
    """
    forward = DecomposedForward(subject.module)
    if forward.shape != circuit.shape:
        raise MechlabError("circuit belongs to a model of another shape", circuit.shape, "load its model")
    name = metric or circuit.metric
    metric_named(name)
    if ablation in (None, circuit.ablation.kind):
        made = circuit.ablation
    else:
        assert ablation is not None
        made = make_ablation(forward, ablation, reference, batch_size=batch_size)
        if reference is not None and made.constant is not None:
            require_apart(reference, task)
    report = progress or (lambda done, wanted: None)
    parts = 3 if knockouts else 1
    found = evaluate_mask(
        forward,
        task,
        circuit.mask,
        circuit.scores,
        metric=name,
        ablation=made,
        model=subject.fingerprint,
        controls=controls,
        seed=seed,
        batch_size=batch_size,
    )
    found = replace(found, differences=differences(circuit, found))
    report(1, parts)
    if not knockouts:
        return found
    if circuit_nodes(circuit.graph, circuit.mask):
        complete = completeness(
            forward,
            task,
            circuit.mask,
            classes=classes,
            subsets=max(controls, 1),
            metric=name,
            ablation=made,
            seed=seed,
            batch_size=batch_size,
        )
        found = replace(found, completeness=complete)
    report(2, parts)
    minimal = minimality(
        forward,
        task,
        circuit.mask,
        controls=2 * controls,
        metric=name,
        ablation=made,
        seed=seed,
        batch_size=batch_size,
    )
    report(3, parts)
    return replace(found, minimality=minimal)


def _run(
    forward: DecomposedForward,
    task: Task,
    masks: Bool[Tensor, "circuit n_sources n_readers"],
    metrics: Sequence[str],
    ablation: Ablation,
    batch_size: int,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """``run_circuits`` for several metrics of the same logits."""
    found: dict[str, list[Tensor]] = {name: [] for name in metrics}
    none = masks.new_zeros(1, *masks.shape[1:])
    for pair in paired_runs(forward, task, metric_named(metrics[0]), batch_size):
        masked = Masked(forward, pair.clean, ablation.values(pair), pair.task.positions["end"])
        # Of all edges ablated by resampling, the corrupt run is the exact outcome.
        empty = pair.corrupt.logits if ablation.kind == "resample" else masked.logits(none)[0]
        ends = ([len(masks), len(masks) + 1], torch.stack([pair.clean.logits, empty]))
        # Metrics of half-precision logits are in single precision.
        dtype = torch.promote_types(empty.dtype, torch.float32)
        here = {name: empty.new_empty(len(masks) + 2, len(pair.task), dtype=dtype) for name in metrics}
        for rows, logits in chain(masked.runs(masks), [ends]):
            for name, values in here.items():
                measure = metric_named(name)
                values[rows] = torch.stack([measure(each, pair.task, pair.clean.logits) for each in logits])
        for name, values in here.items():
            found[name].append(values.cpu())
    joined = {name: torch.cat(rows, 1) for name, rows in found.items()}
    return {name: (values[:-2], values[-2], values[-1]) for name, values in joined.items()}


def require_controls(controls: int) -> None:
    """MechlabError for a number of random circuits that is none."""
    if controls < 0:
        raise MechlabError("number of controls must be at least 0", controls)


def differences(circuit: Circuit, scored: Evaluation) -> tuple[str, ...]:
    """In words, how an evaluation differs from the conditions its circuit was found under."""
    named = []
    if scored.ablation != circuit.ablation.kind:
        named.append(f"scored under {scored.ablation}, found under {circuit.ablation.kind}")
    if scored.metric != circuit.metric:
        named.append(f"scored with {scored.metric}, found with {circuit.metric}")
    if scored.task != circuit.task:
        named.append(f"scored on {scored.task}, found on {circuit.task}")
    elif scored.prompts == circuit.selection:
        named.append("scored on the prompts it was chosen on")
    elif scored.prompts != circuit.held_out:
        named.append("scored on other prompts than those held out when it was found")
    if scored.model != circuit.model:
        named.append("scored on another model than it was found in")
    if circuit.ablation.constant is not None and scored.ablation == circuit.ablation.kind:
        of = [] if scored.model == circuit.model else ["model"]
        of += [] if scored.task == circuit.task else ["task"]
        if of:
            named.append(f"constants of the ablation are those of the {' and '.join(of)} it was found with")
    return tuple(named)


def _mean(name: str, values: Float[np.ndarray, "unit"], seed: int) -> Score:
    return scoring.score(name, np.stack([values, np.ones_like(values)], 1), scoring.mean, seed=seed)
