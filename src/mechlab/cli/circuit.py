"""``mechlab circuit find | show``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.cli.score_table import score_table
from mechlab.errors import MechlabError
from mechlab.files import write_atomic
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
    """How edges are ranked (eap, eap-corrupt, eap-mean, eap-ig, …), or a search (acdc, …)."""
    ablation: str = "resample"
    """What edges outside carry: resample, zero, mean, mean-positional, mean-template or optimal."""
    metric: str | None = None
    """logit_difference, probability_difference, log_probability, negative_kl, …; by the task by default."""
    target: float | None = None
    """Take the smallest circuit with this faithfulness on the selection prompts; 0.9 by default."""
    top: int | None = None
    """Take this many edges instead."""
    threshold: float | None = None
    """Take every edge of at least this score instead; the τ of acdc. In the metric's units."""
    steps: int = 5
    """Gradient points of integrated gradients."""
    prompts: int = 128
    """Prompt pairs to select on, and as many held-out ones to judge on."""
    controls: int = 20
    """Random circuits to compare with."""
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
    """Show a circuit: its edges as text, or a drawing (.svg, .html) or JSON file with --out.

    Example: mechlab circuit show runs/ioi --out ioi.svg
    """

    circuit: tyro.conf.Positional[Path] = Path("runs/circuit")
    """Directory of the circuit."""
    out: Path | None = None
    """File to write: .svg, .html or .json by its ending."""
    edges: int = 20
    """Edges to list, the strongest first."""


def find(words: list[str], program: str) -> Outcome:
    """Find a circuit."""
    config = parse(CircuitFindConfig, words, program)

    from mechlab.circuits.ablation import WITHOUT_REFERENCE
    from mechlab.circuits.find import find_circuit
    from mechlab.data.tasks import make_task
    from mechlab.models.subject import load_model

    subject = load_model(
        config.model, dtype=config.dtype, device=config.device, revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip
    splits = ("validation", "test", *(() if config.ablation in WITHOUT_REFERENCE else ("train",)))
    tasks = [
        make_task(config.task, subject.tokenizer, n=config.prompts, seed=config.seed, split=split)
        for split in splits
    ]
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
    found = replace(found, settings=found.settings | {"model": config.model, "prompts": config.prompts})
    artifact = found.save(config.out, overwrite=config.overwrite)
    payload = {"circuit": str(config.out), "fingerprint": artifact.manifest.fingerprint, **_facts(found)}
    return Outcome(payload, f"{_text(found)}\n{config.out}")


def show(words: list[str], program: str) -> Outcome:
    """Show a circuit."""
    config = parse(CircuitShowConfig, words, program)

    from mechlab.circuits.circuit import Circuit
    from mechlab.dashboards.circuit_page import circuit_page, circuit_svg

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
    classes = node_classes(found)
    if config.out.suffix == ".svg":
        text = circuit_svg(found, classes)
    elif config.out.suffix == ".html":
        text = circuit_page(found, classes)
    elif config.out.suffix == ".json":
        text = found.graph.to_json(found.mask, found.scores)
    else:
        raise MechlabError("no known ending of a file", config.out, "use .svg, .html or .json")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out, text)
    return Outcome(payload, f"{config.out}: {found.n_edges} edges")


def node_classes(circuit: Circuit) -> dict[str, str]:
    """Node → class, where the literature names the heads of this model and task; else empty."""
    from mechlab.data.published.canonical import classes_of

    try:
        return classes_of(circuit.task, str(circuit.settings.get("model", "")))
    except MechlabError:
        return {}


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
        "calls": circuit.calls,
        "rows": circuit.rows,
        "seconds": round(circuit.seconds, 3),
        "evaluation": circuit.evaluation.to_dict(),
    }


def _text(circuit: Circuit) -> str:
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
    return (
        f"{circuit.task} by {circuit.method} under {circuit.ablation.kind} ablation ({how})\n"
        f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges, {circuit.n_top:,} before the clean-up; "
        f"{circuit.rows:,} circuits run in {circuit.seconds:.1f} s\n{table}"
    )
