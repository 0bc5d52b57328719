"""``mechlab circuit eval | compare``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.cli.score_table import Cell, score_table
from mechlab.errors import MechlabError
from mechlab.settings import Settings

if TYPE_CHECKING:
    from mechlab.circuits.evaluation.record import Evaluation

_SHOWN = 8


class CircuitEvalConfig(Settings):
    """Score a circuit: faithfulness, completeness, minimality, CPR/CMD, KL, beside random circuits.

    By default as it was found, on the held-out prompts; what differs from that is named in the result.

    Example: mechlab circuit eval runs/ioi --ablation zero
    """

    circuit: tyro.conf.Positional[Path] = Path("runs/circuit")
    """Directory of the circuit."""
    model: str | None = None
    """The model to score it in; the one it was found in by default."""
    task: str | None = None
    """Task to score it on; its own by default."""
    split: str = "test"
    """Prompts to use: test (held out), validation (chosen on) or train."""
    ablation: str | None = None
    """What edges outside carry; its own by default."""
    metric: str | None = None
    """How the task is read; its own by default."""
    prompts: int | None = None
    """Prompt pairs; as many as it was judged on by default."""
    controls: int = 20
    """Random circuits, random sets of nodes and random edges to compare with."""
    stability: int = 0
    """Find it again on so many resamples of its selection prompts, and compare."""
    knockouts: bool = True
    """Measure completeness and minimality, which run a circuit per edge and more."""
    seed: int | None = None
    """Decides prompts, controls and resamples; its own by default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str | None = None
    """Floating type of the model: float32, bfloat16 or float16."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code."""


class CircuitCompareConfig(Settings):
    """What two circuits of one model share.

    Example: mechlab circuit compare runs/ioi runs/ioi-acdc
    """

    left: tyro.conf.Positional[Path] = Path("runs/left")
    """Directory of the first circuit."""
    right: tyro.conf.Positional[Path] = Path("runs/right")
    """Directory of the second."""
    seed: int = 0
    """Decides the random circuits."""


def evaluate(words: list[str], program: str) -> Outcome:
    """Score a circuit."""
    config = parse(CircuitEvalConfig, words, program)

    from mechlab.circuits.ablation import WITHOUT_REFERENCE
    from mechlab.circuits.circuit import Circuit, node_classes
    from mechlab.circuits.evaluation.judge import evaluate_circuit
    from mechlab.circuits.find import find_again
    from mechlab.cli.prompts import prompts_for
    from mechlab.models.subject import load_model

    if config.stability != 0 and config.stability < 2:
        raise MechlabError("stability needs at least two circuits", config.stability, "raise --stability")
    circuit = Circuit.load(config.circuit)
    subject = load_model(
        config.model or circuit.settings.get("model", "fable"), dtype=config.dtype, device=config.device,
        revision=config.revision, trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    seed = circuit.seed if config.seed is None else config.seed
    own = circuit.settings.get("prompts", circuit.faithfulness.n)
    n = own if config.prompts is None else config.prompts

    def task(split: str) -> Any:
        return prompts_for(subject, config.task or circuit.task, n=n, seed=seed, split=split)

    needs = config.ablation not in (None, circuit.ablation.kind, *WITHOUT_REFERENCE)
    if config.split == "train" and (config.ablation or circuit.ablation.kind) not in WITHOUT_REFERENCE:
        raise MechlabError(
            "constants of the ablation come from the train split", config.split, "score another"
        )
    classes: dict[str, list[str]] = {}
    for node, name in node_classes(circuit).items():
        classes.setdefault(name, []).append(node)
    with Reporter() as reporter:
        found = evaluate_circuit(
            subject,
            circuit,
            task(config.split),
            ablation=config.ablation,
            reference=task("train") if needs else None,
            metric=config.metric,
            knockouts=config.knockouts,
            classes=classes,
            controls=config.controls,
            seed=seed,
            progress=lambda done, total: reporter("evaluate", done, total, {}),
        )
        stable = None
        if config.stability:
            stable = find_again(
                subject,
                circuit,
                prompts_for(subject, circuit.task, n=own, seed=circuit.seed, split="validation"),
                times=config.stability,
                seed=seed,
                progress=lambda done, total: reporter("stability", done, total, {}),
            )
    rows = _rows(found)
    payload = {"circuit": str(config.circuit), **found.to_dict()}
    if stable is not None:
        rows.append(("Jaccard index over resampled prompts", stable))
        payload["stability"] = stable.to_dict()
    lines = [f"note: {each}" for each in found.differences]
    lines += [f"{found.task}, {found.n_edges} edges, {found.ablation} ablation, {found.metric}"]
    return Outcome(payload, "\n".join([*lines, score_table(rows), *_parts(found)]))


def compare(words: list[str], program: str) -> Outcome:
    """Compare two circuits."""
    config = parse(CircuitCompareConfig, words, program)

    from mechlab.circuits.circuit import Circuit
    from mechlab.circuits.compare import compare as compared
    from mechlab.circuits.evaluation.record import plain

    found = compared(Circuit.load(config.left), Circuit.load(config.right), seed=config.seed)
    rows: list[tuple[str, Cell]] = [
        ("Jaccard index of edges", found.jaccard),
        ("the same of random circuits", found.null),
        ("Jaccard index of nodes", found.nodes),
        ("shared edges", found.shared),
        (f"only in {config.left}", len(found.left)),
        (f"only in {config.right}", len(found.right)),
    ]
    rows += [
        (f"layer {each.layer}: shared, left, right", f"{each.shared}, {each.left}, {each.right}")
        for each in found.layers
    ]
    lines = [f"differ in {each}" for each in found.differences]
    lines.append(score_table(rows))
    for path, edges in ((config.left, found.left), (config.right, found.right)):
        shown = ", ".join(f"{edge.source} → {edge.reader}" for edge in edges[:_SHOWN])
        if shown:
            lines.append(f"only in {path}: {shown}{', …' if len(edges) > _SHOWN else ''}")
    return Outcome(
        {"left": str(config.left), "right": str(config.right), **plain(_named(found))}, "\n".join(lines)
    )


def _named(found: Any) -> Mapping[str, Any]:
    """A comparison with the sides' edges under names of their own."""
    fields = dict(vars(found))
    return fields | {"only_left": fields.pop("left"), "only_right": fields.pop("right")}


def _rows(found: Evaluation) -> list[tuple[str, Cell]]:
    rows: list[tuple[str, Cell]] = [
        ("faithfulness (ratio of means)", found.faithfulness),
        ("faithfulness (mean of ratios)", found.ratios),
        ("prompts without a ratio", found.undefined),
        ("KL from the model (nats)", found.kl),
    ]
    for name, means in found.means.items():
        rows.append((f"{name}: circuit, model, none", ", ".join(f"{v:.3f}" for v in vars(means).values())))
    rows += [("CPR", found.cpr.area), ("CMD", found.cmd.area)]
    if found.completeness is not None:
        rows.append(("incompleteness, random sets", found.completeness.mean))
        worst = [each for each in found.completeness.knockouts if each.way != "random"]
        rows += [
            (f"incompleteness, {each.way} {each.name if each.way == 'class' else len(each.nodes)}",
             each.incompleteness)
            for each in worst
        ]  # fmt: skip
    if found.minimality is not None:
        rows.append(("|importance| of random added edges", found.minimality.null))
        rows.append(("95 % of them are at most", found.minimality.threshold))
        rows.append(("share of edges above that", found.minimality.matter))
    return rows


def _parts(found: Evaluation) -> list[str]:
    """The most important edges and nodes, on a line each."""
    if found.minimality is None:
        return []
    sides = (("edges", found.minimality.edges), ("nodes", found.minimality.nodes))
    return [
        f"{name} missed most: " + ", ".join(f"{e.part} {e.score.value:+.2f}" for e in parts[:_SHOWN])
        for name, parts in sides
        if parts
    ]
