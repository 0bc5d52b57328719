"""``mechlab bench circuits``, and the tables of ``mechlab bench truth --part circuits``."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings


class CircuitsConfig(Settings):
    """What circuit discovery costs beside a plain forward of the model, and beside auto-circuit.

    Attribution of all edges, exact tests of single edges, a faithfulness curve, and ACDC on the
    bundled model. Figures are medians over interleaved rounds. Exit 1 when a goal is missed.
    mechlab bench setup-peers makes auto-circuit's environment; without it the comparison is missing.

    Example: mechlab bench circuits --json
    """

    model: str = "gpt2-small-shaped"
    """A GPT-2: this one has random weights, any other is loaded."""
    batch: int = 8
    """Prompt pairs."""
    n_ctx: int = 16
    """Tokens of a prompt."""
    steps: int = 5
    """Gradient points of EAP-IG."""
    edges: int = 64
    """Random edges that are tested exactly."""
    repeats: int = 5
    """Rounds that count; one more warms up."""
    acdc_prompts: int = 64
    """IOI prompts for ACDC on the bundled model; 0 leaves it out."""
    acdc_threshold: float = 0.01
    """Its threshold, in nats of KL divergence."""
    peers: bool = True
    """Measure auto-circuit."""
    peer_folder: Path = Path(".peers")
    """Where its environment is."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def circuits(words: list[str], program: str) -> Outcome:
    """Run the benchmark of circuit discovery."""
    config = parse(CircuitsConfig, words, program)
    for name, least in (
        ("batch", 1),
        ("n_ctx", 2),
        ("steps", 1),
        ("edges", 1),
        ("repeats", 1),
        ("acdc_prompts", 0),
    ):
        if getattr(config, name) < least:
            raise MechlabError(f"{name} must be at least {least}", getattr(config, name), "see --help")
    with tempfile.TemporaryDirectory() as work, Reporter() as progress:
        payload = _measure(config, Path(work), progress)
    return Outcome(payload, _text(payload), 0 if payload["met"] else 1)


def _measure(config: CircuitsConfig, work: Path, progress: Reporter) -> dict[str, Any]:
    from mechlab.bench.circuits import compare_attribution, random_prompts, time_acdc
    from mechlab.bench.measure import copy_bandwidth, environment, matmul_peak
    from mechlab.bench.models import bench_model
    from mechlab.models.subject import resolve_device

    device = resolve_device(config.device)
    subject = bench_model(config.model, str(device))
    if subject.module.config.model_type != "gpt2":
        raise MechlabError("the comparison takes a GPT-2", config.model, "such as gpt2-small-shaped or fable")
    payload: dict[str, Any] = {
        "environment": environment(device),
        "config": config.model_dump(mode="json"),
        "machine": {"flops": matmul_peak(device), "bytes": copy_bandwidth(device)},
    }
    payload |= compare_attribution(
        subject, random_prompts(subject, n=config.batch, n_ctx=config.n_ctx), work, repeats=config.repeats,
        steps=config.steps, n_edges=config.edges, device=device,
        peer_folder=config.peer_folder if config.peers else None, progress=progress,
    )  # fmt: skip
    if config.acdc_prompts:
        payload["acdc"] = time_acdc(
            prompts=config.acdc_prompts, threshold=config.acdc_threshold, device=str(device),
            progress=progress,
        )  # fmt: skip
    payload["goals"] = goals(payload, device.type)
    payload["met"] = all(each["met"] for each in payload["goals"])
    return payload


def goals(payload: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Each as "value is at most limit".

    Those in plain forwards are a CPU's: on a card one small batch leaves it idle, whatever is run.
    """
    from mechlab.bench import circuits as names

    found: list[dict[str, Any]] = []
    variants = payload["variants"]
    steps = payload["config"]["steps"]

    def most(name: str, value: float, limit: float) -> None:
        found.append({"name": name, "value": value, "most": limit, "met": value <= limit})

    limits = {names.EAP_IG: steps + 2.0, names.EAP: 1 / 8, names.EDGES: 1 / 4, names.LOGIT_EDGES: 1 / 4}
    if device == "cpu":
        most("EAP, plain forwards", variants[names.EAP]["forwards"], 2.5)
        most("10 circuits, plain forwards for each", variants[names.CURVE]["forwards"], 12.0)
    for name, base in names.COMPARED.items():
        if base in variants:
            most(f"{name} / {base}", payload["ratios"][f"{name} / {base}"], limits[name])
    if payload["errors"] is not None:
        ours, theirs = (variants[name]["peak_bytes"] for name in (names.EAP, names.PEER_EAP))
        if ours is not None and theirs:
            most("EAP's peak memory / auto-circuit's", ours / theirs, 0.6)
        for name, error in payload["errors"].items():
            kind = "largest difference" if name == "logits" else "relative L2 error"
            most(f"{name}: {kind}", error, 1e-4)
    if "acdc" in payload:
        most("ACDC on IOI, s", payload["acdc"]["runs"]["as it comes"]["seconds"], 60.0)
        most("ACDC with edges tested ahead ends in another circuit", float(not payload["acdc"]["same"]), 0.0)
    return found


def _text(payload: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=110)
    about, machine, config = payload["environment"], payload["machine"], payload["config"]
    console.print(
        f"{about['gpu'] or about['cpu']}, {about['cores']} cores, {about['threads']} threads, "
        f"torch {about['torch']}, load {about['load']:.1f}; {machine['flops'] / 1e9:,.0f} GFLOP/s, "
        f"copies {machine['bytes'] / 1e9:,.1f} GB/s",
        soft_wrap=True,
    )
    title = (
        f"{config['model']}, {config['batch']} x {config['n_ctx']} tokens, {payload['n_edges']:,} edges, "
        f"{payload['tested']} of them tested singly, EAP-IG with {config['steps']} points"
    )
    console.print(title, soft_wrap=True)
    table = Table(title="time for one attribution, one edge, one circuit", title_justify="left")
    for column in ("", "s", "plain forwards", "lowest, highest", "floor", "peak, MB more"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in payload["variants"].items():
        low, high = found["range"]
        floor = payload["floors"].get(name)
        table.add_row(
            name,
            f"{found['seconds']:.4f}",
            f"{found['forwards']:.3f}",
            f"{low:.3f}, {high:.3f}",
            "" if floor is None else f"{floor:.3f}",
            "" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e6:,.0f}",
        )
    for name in payload["missing"]:
        table.add_row(name, "missing", "", "", "", "")
    console.print(table)
    if "acdc" in payload:
        found = payload["acdc"]
        runs = "; ".join(
            f"{name} {run['seconds']:.1f} s, {run['calls']:,} calls, {run['circuits']:,} circuits"
            for name, run in found["runs"].items()
        )
        kept = f"{found['kept']} of {found['edges']} edges at {found['threshold']}"
        console.print(f"ACDC, fable IOI, {found['prompts']} prompts, {kept}: {runs}", soft_wrap=True)
    table = Table(title="goals", title_justify="left")
    for column in ("", "measured", "at most", ""):
        table.add_column(column, justify="right" if column in ("measured", "at most") else "left")
    for each in payload["goals"]:
        table.add_row(
            each["name"], f"{each['value']:.3g}", f"{each['most']:.3g}", "met" if each["met"] else "MISSED"
        )
    console.print(table)
    return _plain(console)


def truth_text(payload: dict[str, Any]) -> str:
    """Tables of ``mechlab bench truth --part circuits``."""
    from mechlab.bench.circuit_truth import circular
    from mechlab.bench.truth import IOI

    console = Console(file=io.StringIO(), width=130)
    models = {name: found for name, found in payload.items() if name not in ("goals", "met", IOI)}
    for name, found in models.items():
        truths = found["truths"]
        sizes = ", ".join(f"{kind} {size}" for kind, size in truths.items())
        title = f"{name}: {found['edges']} edges, of which true: {sizes}; {found['prompts']} prompts"
        table = Table(title=title, title_justify="left")
        for column in ("", "ablation", "calls", "s", *(f"{kind} truth" for kind in truths)):
            table.add_column(column, justify="right" if column not in ("", "ablation") else "left")
        for row in found["methods"]:
            marks = {kind: " °" if circular(row["method"], row["ablation"], kind) else "" for kind in truths}
            table.add_row(
                row["method"],
                row["ablation"],
                str(row["calls"]),
                f"{row['seconds']:.2f}",
                *(_area(row[kind]) + marks[kind] for kind in truths),
            )
        chance = (f"{found['random'][kind]['edge']:.3f}" for kind in truths)
        table.add_row("random scores, mean", "none", "0", "", *chance)
        console.print(table)
    if models:
        console.print(
            "Area under the ROC curve of edges (pessimistic in brackets), then of nodes. ° circular: the "
            "truth is itself an exact ablation of single edges of that kind.",
            soft_wrap=True,
        )
    if IOI in payload:
        console.print(_ioi_table(payload[IOI]))
        for name, each in payload[IOI]["circuits"].items():
            for label, heads in each["classes"].items():
                console.print(f"{name}, {label}: {', '.join(heads)}", soft_wrap=True)
    for each in payload["goals"]:
        console.print(f"{'met   ' if each['met'] else 'MISSED'} {each['name']}", soft_wrap=True)
    return _plain(console)


def _area(found: dict[str, float | None]) -> str:
    node = "" if found["node"] is None else f" {found['node']:.3f}"
    return f"{found['edge']:.3f} ({found['edge_pessimistic']:.3f}){node}"


def _ioi_table(found: dict[str, Any]) -> Table:
    title = (
        f"fable IOI: found on {found['prompts']} prompts, judged on {found['held_out']} with other names; "
        f"overlap {found['jaccard']:.2f}; random circuits in brackets"
    )
    table = Table(title=title, title_justify="left")
    for column in (
        "",
        "edges",
        "s",
        "faithfulness",
        "incompleteness",
        "worst knock-out",
        "edges that matter",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name, each in found["circuits"].items():
        whole, loss = each["faithfulness"], each["incompleteness"]
        table.add_row(
            name,
            f"{each['edges']} ({each['share']:.1%})",
            f"{each['seconds']:.1f}",
            f"{whole['value']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}] ({whole['null']['value']:.3f})",
            f"{loss['value']:.3f} ({loss['null']['value']:.3f})",
            f"{each['worst_knockout']['incompleteness']:.3f}",
            f"{each['matter']:.0%}",
        )
    return table


def _plain(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
