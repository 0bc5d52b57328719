"""``mechlab circuit find | show``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_directory, require_file, write_file
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.cli.score_table import score_table
from mechlab.errors import MechlabError
from mechlab.settings import Settings

if TYPE_CHECKING:
    from mechlab.circuits.circuit import Circuit


class CircuitFindConfig(Settings):
    """Find the circuit of a task: rank edges or search, choose a size, judge it on held-out prompts.

    Example: mechlab circuit find --model fable --task ioi --method eap-ig --target 0.9 --out runs/ioi
    """

    model: str = "fable"
    """The model: "fable" (bundled), a directory in Hugging Face layout, or a hub name."""
    task: str = "ioi"
    """Task whose circuit to find (ioi, greater_than, induction, published_ioi, …)."""
    method: str = "eap-ig"
    """Ranking (eap, eap-ig, ifr, atp*, …) or search (acdc, path, edge-pruning, subnetwork-probing)."""
    ablation: str = "resample"
    """What edges outside carry: resample, zero, mean, mean-positional, mean-template or optimal."""
    metric: str | None = None
    """logit_difference, probability_difference, log_probability, negative_kl, …; by the task by default."""
    target: float | None = None
    """Take the smallest circuit with this faithfulness on the selection prompts; 0.9 by default."""
    top: int | None = None
    """Take this many edges instead."""
    threshold: float | None = None
    """Every edge of at least this score; τ of acdc, share of the gap (path), penalty (subnetwork-probing)."""
    steps: int | None = None
    """Gradient points of integrated gradients (5), or training steps of learned masks (300)."""
    prompts: int = 128
    """Prompt pairs to select on, and as many held-out ones to judge on."""
    controls: int = 20
    """Random circuits to compare with."""
    label_heads: bool = False
    """Find out what the heads do, by path patching and attention (ioi, induction)."""
    seed: int = 0
    """Decides prompts, controls and resamples."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str | None = None
    """Floating type of the model: float32, bfloat16 or float16."""
    revision: str | None = None
    """Revision of a hub model."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code."""
    out: Path = Path("runs/circuit")
    """Directory to make."""
    overwrite: bool = False
    """Replace what is at --out."""


class CircuitShowConfig(Settings):
    """Show a circuit: its edges as text, or a drawing (.svg, .html, .png, .pdf) or JSON file with --out.

    Example: mechlab circuit show runs/ioi --out ioi.svg
    """

    circuit: tyro.conf.Positional[Path] = Path("runs/circuit")
    """Directory of the circuit."""
    out: Path | None = None
    """File to write: .svg, .html, .json, .png or .pdf by its ending; the last two need a browser."""
    edges: int = 20
    """Edges to list, the strongest first."""


def find(words: list[str], program: str) -> Outcome:
    """Find a circuit."""
    config = parse(CircuitFindConfig, words, program)

    from mechlab.circuits.ablation import WITHOUT_REFERENCE
    from mechlab.circuits.find import find_circuit
    from mechlab.circuits.search.classes import head_classes, rules_for
    from mechlab.circuits.search.sought import asked
    from mechlab.cli.prompts import prompts_for
    from mechlab.models.subject import load_model

    subject = load_model(
        config.model, dtype=config.dtype, device=config.device, revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    settings = asked(config.method, config.target, config.top, config.threshold, config.steps)
    settings |= {"model": config.model, "prompts": config.prompts}
    if config.label_heads:
        settings["label_heads"] = True
    require_directory(config.out)
    there = None if config.overwrite else _there(config, settings, subject.fingerprint)
    if there is not None:
        return _outcome(there, config.out)
    splits = ("validation", "test", *(() if config.ablation in WITHOUT_REFERENCE else ("train",)))
    tasks = [
        prompts_for(subject, config.task, n=config.prompts, seed=config.seed, split=split) for split in splits
    ]
    if config.label_heads:
        rules_for(tasks[0])  # refuses a task without any
    with Reporter() as reporter:
        found = find_circuit(
            subject,
            tasks[0],
            tasks[1],
            reference=tasks[2] if len(tasks) > 2 else None,
            progress=lambda done, total: reporter("circuit", done, total, {}),
            **config.model_dump(
                include={
                    "method", "ablation", "metric", "target", "top", "threshold", "steps", "controls", "seed",
                }
            ),
        )  # fmt: skip
        if config.label_heads:
            reporter("classes of heads", 0, 0, {})
            labelled = head_classes(subject, tasks[1], metric=found.metric, seed=config.seed)
            found = replace(found, classes={each.head: each.label for each in labelled if each.label})
    found = replace(found, settings=settings)
    found.save(config.out, overwrite=config.overwrite)
    return _outcome(found, config.out)


def _there(config: CircuitFindConfig, settings: dict[str, Any], model: str) -> Circuit | None:
    """The circuit at --out when it is the one wanted. MechlabError when it is another: before the search."""
    from mechlab.artifacts import exists, refuse_foreign
    from mechlab.circuits.circuit import Circuit

    if not exists(config.out):
        refuse_foreign(config.out)
        return None
    there = Circuit.load(config.out)
    sides = {
        "model": (there.model, model),
        "task": (there.task, config.task),
        "method": (there.method, config.method),
        "ablation": (there.ablation.kind, config.ablation),
        "metric": (there.metric, config.metric or there.metric),
        "seed": (there.seed, config.seed),
        "number of controls": (
            0 if there.faithfulness.null is None else there.faithfulness.null.n,
            config.controls,
        ),
        **{name: (there.settings.get(name), value) for name, value in settings.items()},
    }
    for name, (old, new) in sides.items():
        if old != new:
            raise MechlabError(
                f"{config.out} holds a circuit with another {name}",
                f"{old}, not {new}",
                "choose another --out, or pass --overwrite",
            )
    return there


def _outcome(found: Circuit, out: Path) -> Outcome:
    return Outcome({"circuit": str(out), **_facts(found)}, f"{_text(found)}\n{out}")


def show(words: list[str], program: str) -> Outcome:
    """Show a circuit."""
    config = parse(CircuitShowConfig, words, program)

    from mechlab.circuits.circuit import Circuit, node_classes
    from mechlab.dashboards.circuit_page import circuit_page
    from mechlab.dashboards.circuit_svg import circuit_svg
    from mechlab.dashboards.figures import save_figure

    found = Circuit.load(config.circuit)
    edges = sorted(found.edges, key=lambda edge: -abs(edge.score or 0.0))
    payload = {
        "circuit": str(config.circuit),
        **_facts(found),
        "edges": [[edge.source, edge.reader, edge.score] for edge in edges],
        "out": None if config.out is None else str(config.out),
    }
    if config.out is None:
        lines = [f"{edge.source:>8} → {edge.reader:<8} {edge.score:+.4g}" for edge in edges[: config.edges]]
        more = len(edges) - len(lines)
        lines += [f"… and {more:,} more (--edges, --out FILE)"] if more > 0 else []
        return Outcome(payload, "\n".join([_text(found), *lines]))
    require_file(config.out, (".svg", ".html", ".json", ".png", ".pdf"))
    classes = node_classes(found)
    if config.out.suffix == ".html":
        write_file(config.out, circuit_page(found, classes))
    elif config.out.suffix == ".json":
        write_file(config.out, found.graph.to_json(found.mask, found.scores))
    else:
        save_figure(circuit_svg(found, classes), config.out)
    return Outcome(payload, f"{config.out}: {found.n_edges} edges")


def _facts(circuit: Circuit) -> dict[str, Any]:
    return {
        "task": circuit.task,
        "metric": circuit.metric,
        "method": circuit.method,
        "settings": circuit.settings,
        "ablation": circuit.ablation.kind,
        "n_edges": circuit.n_edges,
        "n_top": circuit.n_top,
        "edges_in_all": circuit.graph.n_edges,
        "classes": circuit.classes,
        "calls": circuit.calls,
        "rows": circuit.rows,
        "seconds": round(circuit.seconds, 3),
        "evaluation": circuit.evaluation.to_dict(),
    }


def _text(circuit: Circuit) -> str:
    from mechlab.circuits.circuit import node_classes

    found = circuit.evaluation
    how = ", ".join(f"{k} {v}" for k, v in circuit.settings.items() if v is not None)
    table = score_table(
        [
            ("faithfulness (ratio of means)", found.faithfulness),
            ("faithfulness (mean of ratios)", found.ratios),
            ("KL from the model (nats)", found.kl),
            ("CPR", found.cpr.area),
            ("CMD", found.cmd.area),
        ]
    )
    named: dict[str, list[str]] = {}
    for node, name in node_classes(circuit).items():
        named.setdefault(name, []).append(node)
    lines = [
        f"{circuit.task} by {circuit.method} under {circuit.ablation.kind} ablation ({how})",
        f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges, {circuit.n_top:,} before the clean-up; "
        f"{circuit.rows:,} circuits run in {circuit.seconds:.1f} s",
        table,
        *(f"{name}: {', '.join(nodes)}" for name, nodes in named.items()),
    ]
    return "\n".join(lines)
