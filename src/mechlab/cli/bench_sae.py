"""``mechlab bench sae | truth``."""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings

if TYPE_CHECKING:
    from mechlab.bench.sae import Shape

_DEAD = 0.1


class SaeConfig(Settings):
    """What a TopK training step costs beside one encoder product, and beside other tools' steps.

    Figures are medians over interleaved rounds. Exit 1 when a goal is missed.
    mechlab bench setup-peers makes the other tools' environments; a missing one is named.

    Example: mechlab bench sae --json --shape d768-F24576-B4096-k32
    """

    shape: str = "d768-F24576-B4096-k32"
    """Width of the site, latents, rows of a batch, active latents."""
    small: str = "d64-F1024-B1024-k16"
    """Shape at which 500 steps from equal weights are compared by the loss they reach."""
    steps: int = 500
    """How many steps that is."""
    repeats: int = 5
    """Rounds that count; one more warms up."""
    widths: str = "8192,32768,131072"
    """Numbers of latents at which the step's growth is measured; empty leaves it out."""
    rows: int = 1024
    """Rows of a batch there."""
    pass_tokens: int = 200_000
    """Rows for the comparison of one dictionary with four on one pass; 0 leaves it out."""
    peers: bool = True
    """Measure other tools."""
    peer_folder: Path = Path(".peers")
    """Where their environments are."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


class TruthConfig(Settings):
    """Methods against ground truth.

    sae: every architecture against planted features and Fable's concepts, in the tables toy,
    synthsaebench and fable. circuits: every method of circuit discovery against circuits that are known,
    in a table for each model (reverse, proportion, induction, sort, gates, imposed), and fable-ioi, a
    circuit of the bundled model judged on prompts it was not found on. features: explainers and scorers
    against planted rules (planted, scorers), black boxes (functions), Fable's concepts (concepts), asking
    against being shown (investigate), and a dictionary of --model (stories). Exit 1 when a goal is missed.

    Example: mechlab bench truth --part circuits --json
    """

    part: str = "sae"
    """What to measure: sae, circuits or features."""
    tables: str = ""
    """Which tables, with commas between; all of the part when empty."""
    model: Path | None = None
    """features: a model in Hugging Face layout for the table stories."""
    data: Path | None = None
    """features: its corpus."""
    seed: int = 0
    """Decides planted features, weights, rows and prompts."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def parse_shape(text: str) -> Shape:
    """Sizes from "d768-F24576-B4096-k32"; MechlabError for anything else."""
    from mechlab.bench.sae import Shape

    found = re.fullmatch(r"d(\d+)-F(\d+)-B(\d+)-k(\d+)", text)
    if found is None:
        raise MechlabError("shape cannot be read", text, "like d768-F24576-B4096-k32")
    d, f, b, k = map(int, found.groups())
    if not (d >= 2 and f >= 1 and b >= 1 and 1 <= k <= f):
        raise MechlabError("shape is out of range", text, "d of 2 or more, k between 1 and F")
    return Shape(d, f, b, k)


def parse_widths(text: str, shape: Shape) -> list[int]:
    """Numbers of latents with commas between; MechlabError for one that is none, or below the shape's k."""
    found = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        if not each.isdecimal() or int(each) < shape.k:
            raise MechlabError("width is out of range", each, f"a whole number from k = {shape.k} on")
        found.append(int(each))
    return found


def sae(words: list[str], program: str) -> Outcome:
    """Run the benchmark of training steps."""
    config = parse(SaeConfig, words, program)
    for name in ("repeats", "rows", "steps"):
        if getattr(config, name) < 1:
            raise MechlabError(f"{name} must be positive", getattr(config, name), "see --help")
    if config.pass_tokens < 0:
        raise MechlabError("pass_tokens is out of range", config.pass_tokens, "0 leaves it out")
    with tempfile.TemporaryDirectory() as work, Reporter() as progress:
        payload = _measure(config, Path(work), progress)
    return Outcome(payload, _text(payload), 0 if payload["met"] else 1)


def _measure(config: SaeConfig, work: Path, progress: Reporter) -> dict[str, Any]:
    from mechlab.bench.measure import copy_bandwidth, environment, matmul_peak
    from mechlab.bench.peers import TRAINERS
    from mechlab.bench.sae import Shape, compare_losses, compare_steps, growth, one_pass
    from mechlab.models.subject import resolve_device

    shape, small = parse_shape(config.shape), parse_shape(config.small)
    widths = parse_widths(config.widths, shape)
    device = resolve_device(config.device)
    peers = TRAINERS if config.peers else ()
    payload: dict[str, Any] = {
        "environment": environment(device),
        "config": config.model_dump(mode="json"),
        "machine": {"flops": matmul_peak(device), "bytes": copy_bandwidth(device)},
    }
    payload["steps"] = [
        compare_steps(
            shape, work / str(dead), repeats=config.repeats, dead_share=dead, device=device, peers=peers,
            peer_folder=config.peer_folder, stage=f"steps, {dead:.0%} dead", progress=progress,
        )
        for dead in (0.0, _DEAD)
    ]  # fmt: skip
    payload["fve"] = compare_losses(
        small, work / "small", steps=config.steps, device=device, peers=peers,
        peer_folder=config.peer_folder, progress=progress,
    )  # fmt: skip
    wide = Shape(shape.d, shape.f, config.rows, shape.k)
    payload["growth"] = {
        str(width): figures
        for width, figures in growth(
            widths, wide, work / "wide", repeats=2, device=device, progress=progress
        ).items()
    }
    if config.pass_tokens:
        payload["one_pass"] = one_pass(dictionaries=4, tokens=config.pass_tokens, device=device)
    payload["goals"] = _goals(payload, device.type)
    payload["met"] = all(each["met"] for each in payload["goals"])
    return payload


def _goals(payload: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Each as "value is at most limit"; on a CPU those of the product, on a card those of the peers."""
    goals: list[dict[str, Any]] = []

    def most(name: str, value: float, limit: float) -> None:
        goals.append({"name": name, "value": value, "most": limit, "met": value <= limit})

    limits = {"ours, float32": 1.4, "ours, bfloat16": 0.85}
    against = {
        "ours, float32": {"sae-lens": 5.5, "dictionary-learning": 5.0},
        "ours, bfloat16": {"sae-lens": 10.0},
    }
    if device == "cuda":
        limits, against = {}, {"ours, float32": {"sae-lens": 2.0, "sparsify": 1.2}}
    for part in payload["steps"]:
        found, aux = part["variants"], ", AuxK at 10 % dead" if part["dead_share"] else ""
        for name, limit in limits.items():
            if name in found:
                most(f"{name}{aux}: step / product", found[name]["times_product"], limit)
        for name, peers in against.items():
            for peer, factor in peers.items():
                for label in (label for label in found if label.startswith(peer) and name in found):
                    ratio = found[name]["times_product"] / found[label]["times_product"]
                    most(f"{name}{aux}: step / {label}", ratio, 1 / factor)
        peaks = [found[label]["peak_bytes"] for label in found if label.startswith("sae-lens")]
        ours = max((found[name]["peak_bytes"] or 0) for name in found if name.startswith("ours"))
        theirs = min((peak for peak in peaks if peak), default=None)
        if theirs and not aux and device == "cpu":
            most("peak memory / sae-lens, its smallest", ours / theirs, 0.5)
    fve = payload["fve"]
    for name in fve:
        if name.startswith("ours"):
            most(f"{name}: FVE below the reference's", fve["reference"] - fve[name], 0.002)
    if len(payload["growth"]) > 1:
        from mechlab.bench.sae import PRODUCT

        first, *_, last = payload["growth"].values()
        for name in first:
            if name != PRODUCT:
                grown = last[name] / first[name] / (last[PRODUCT] / first[PRODUCT])
                most(f"{name}: growth with F / the product's", grown, 1.0)
    if "one_pass" in payload:
        each = payload["one_pass"]
        most(
            "four on one pass / (4 x one - 3 passes)",
            each["several"] / (4 * each["one"] - 3 * each["pass"]),
            1.0,
        )
    return goals


def _text(payload: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=110)
    about, machine = payload["environment"], payload["machine"]
    console.print(
        f"{about['gpu'] or about['cpu']}, {about['cores']} cores, {about['threads']} threads, "
        f"torch {about['torch']}, load {about['load']:.1f}; {machine['flops'] / 1e9:,.0f} GFLOP/s, "
        f"copies {machine['bytes'] / 1e9:,.1f} GB/s",
        soft_wrap=True,
    )
    for part in payload["steps"]:
        shape = part["shape"]
        tokens = shape["b"]
        title = "d{d}-F{f}-B{b}-k{k}".format(**shape)
        table = Table(
            title=title + (f", AuxK with {part['dead_share']:.0%} dead" if part["dead_share"] else ""),
            title_justify="left",
        )
        for column in ("", "s a step", "tokens/s", "x product", "lowest, highest", "peak, MB more"):
            table.add_column(column, justify="right" if column else "left")
        for name, found in part["variants"].items():
            low, high = found["range"]
            peak = "" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e6:,.0f}"
            rate = f"{tokens / found['seconds']:,.0f}"
            table.add_row(
                name,
                f"{found['seconds']:.3f}",
                rate,
                f"{found['times_product']:.2f}",
                f"{low:.2f}, {high:.2f}",
                peak,
            )
        for name in part["missing"]:
            table.add_row(name, "missing", "", "", "", "")
        console.print(table)
    config = payload["config"]
    shown = ", ".join(f"{name} {value:.4f}" for name, value in payload["fve"].items())
    console.print(f"FVE after {config['steps']} equal steps at {config['small']}: {shown}", soft_wrap=True)
    for width, found in payload["growth"].items():
        times = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in found.items())
        console.print(f"F = {int(width):,}: {times}", soft_wrap=True)
    if "one_pass" in payload:
        times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in payload["one_pass"].items())
        console.print(f"fable, {config['pass_tokens']:,} rows: {times}", soft_wrap=True)
    table = Table(title="goals", title_justify="left")
    for column in ("", "measured", "at most", ""):
        table.add_column(column, justify="right" if column in ("measured", "at most") else "left")
    for each in payload["goals"]:
        table.add_row(
            each["name"], f"{each['value']:.3f}", f"{each['most']:.3f}", "met" if each["met"] else "MISSED"
        )
    console.print(table)
    return _plain(console)


def truth(words: list[str], program: str) -> Outcome:
    """Run the scoreboard."""
    config = parse(TruthConfig, words, program)

    from mechlab.bench.truth import run_truth
    from mechlab.models.subject import resolve_device

    wanted = tuple(name.strip() for name in config.tables.split(",") if name.strip())
    with Reporter() as progress:
        payload = run_truth(
            part=config.part, tables_wanted=wanted, seed=config.seed,
            device=str(resolve_device(config.device)), model=config.model, data=config.data,
            progress=progress,
        )  # fmt: skip
    if config.part == "features":
        from mechlab.cli.bench_feature_truth import truth_text as feature_text

        return Outcome(payload, feature_text(payload), 0 if payload["met"] else 1)
    if config.part == "circuits":
        from mechlab.cli.bench_circuits import truth_text

        return Outcome(payload, truth_text(payload), 0 if payload["met"] else 1)
    return Outcome(payload, _truth_text(payload), 0 if payload["met"] else 1)


def _truth_text(payload: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=130)
    columns = ("L0", "MMCS", "MCC", "uniqueness", "F1", "FVE", "dead")
    keys = ("l0", "mmcs_features", "mcc", "uniqueness", "f1", "fve", "dead")
    for name in ("toy", "synthsaebench"):
        if name not in payload:
            continue
        true = next(iter(payload[name].values()))["l0_true"]
        table = Table(
            title=f"{name} (true L0 {true:.1f}); random directions in brackets", title_justify="left"
        )
        table.add_column("")
        for column in columns:
            table.add_column(column, justify="right")
        for arch, figures in payload[name].items():
            control = figures["control"]
            table.add_row(arch, *(f"{figures[key]:.3f} ({control[key]:.3f})" for key in keys))
        console.print(table)
    if "fable" in payload:
        table = Table(title="fable, held-out documents; random directions in brackets", title_justify="left")
        table.add_column("")
        for column in ("L0", "FVE", "best F1 per concept", "probe k=1", "probe k=5", "dense probe"):
            table.add_column(column, justify="right")
        for arch, figures in payload["fable"].items():
            probing, control = figures["probing"], figures["probing_random"]
            table.add_row(
                arch,
                f"{figures['l0_held_out']:.1f}",
                f"{figures['fve']:.3f}",
                f"{figures['best_f1']['value']:.3f} ({figures['best_f1_random']['value']:.3f})",
                *(f"{probing[k]['value']:.3f} ({control[k]['value']:.3f})" for k in ("1", "5")),
                f"{figures['probing_dense']['value']:.3f}",
            )
        console.print(table)
    for each in payload["goals"]:
        console.print(f"{'met   ' if each['met'] else 'MISSED'} {each['name']}", soft_wrap=True)
    return _plain(console)


def _plain(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
