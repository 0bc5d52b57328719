"""``mechlab bench harvest``."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings

# Contexts per forward and tokens per context: enough for the machine's full speed.
_SIZES = {"cpu": (16, 128), "cuda": (256, 128)}
_READ_BYTES = 2**28
_MEMORY_ROWS = 2**17


class HarvestConfig(Settings):
    """What capturing, storing and mixing activations costs beside the bare forward and SAELens.

    Figures are medians over interleaved rounds. Exit 1 when a goal is missed.

    Example: mechlab bench harvest --repeats 7 --json
    """

    model: str = "both"
    """"gpt2-small-shaped" (random weights), "fable", "both", or another model."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    repeats: int = 7
    """Rounds that count; one more warms up."""
    seconds: float = 3.0
    """About how long a variant runs in a round."""
    batch: int | None = None
    """Contexts per forward; 16 on a CPU and 256 on a card by default."""
    n_ctx: int | None = None
    """Tokens per context; 128 by default."""
    read_bytes: int = _READ_BYTES
    """Size of the store that is read back."""
    memory_rows: int = _MEMORY_ROWS
    """Rows of the smaller of the two harvests whose memory is compared."""
    work: Path | None = None
    """Directory for files, on the disk to be measured; a temporary one by default."""


def harvest(words: list[str], program: str) -> Outcome:
    """Run the benchmark."""
    config = parse(HarvestConfig, words, program)
    for name in ("repeats", "seconds", "batch", "n_ctx", "read_bytes", "memory_rows"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise MechlabError(f"{name} must be positive", value, "see --help")
    with tempfile.TemporaryDirectory(dir=config.work) as work, Reporter() as progress:
        payload = _measure(config, Path(work), progress)
    return Outcome(payload, _text(payload), 0 if payload["met"] else 1)


def _measure(config: HarvestConfig, work: Path, progress: Reporter) -> dict[str, Any]:
    from mechlab.bench.harvest import bare, compare, make_load
    from mechlab.bench.measure import copy_bandwidth, disk_bandwidth, environment, matmul_peak
    from mechlab.bench.models import GPT2_SMALL, bench_model
    from mechlab.bench.storage import compare_memory, compare_reading
    from mechlab.models.subject import resolve_device

    device = resolve_device(config.device)
    payload: dict[str, Any] = {"environment": environment(device), "config": config.model_dump(mode="json")}
    machine = {
        "flops": matmul_peak(device),
        "bytes": copy_bandwidth(device),
        "disk": disk_bandwidth(work),
    }
    payload["machine"] = machine
    payload["models"], payload["reading"] = {}, []
    for name in (GPT2_SMALL, "fable") if config.model == "both" else (config.model,):
        batch, n_ctx = (config.batch or _SIZES[device.type][0]), (config.n_ctx or _SIZES[device.type][1])
        subject = bench_model(name, config.device)
        load = make_load(subject, batch=batch, n_ctx=n_ctx)
        warm = bare(load).step
        warm()
        started = time.perf_counter()
        warm()
        took = time.perf_counter() - started
        forwards = 2 * max(1, round(config.seconds / took))
        load = make_load(subject, batch=batch, n_ctx=n_ctx, forwards=forwards)
        payload["models"][name] = compare(
            load, work, repeats=config.repeats, machine=machine,
            capture_goal=0.97 if name == GPT2_SMALL else 0.90, progress=progress,
        )  # fmt: skip
        row = 4 * subject.site("hook_embed").dim
        load = make_load(
            subject, batch=batch, n_ctx=n_ctx, forwards=max(1, config.read_bytes // (row * batch * n_ctx))
        )
        payload["reading"].append(compare_reading(load, work, repeats=config.repeats, progress=progress))
    payload["memory"] = compare_memory(work, rows=config.memory_rows, device=config.device)
    payload["met"] = all(each["met"] for each in _goals(payload))
    return payload


def _goals(payload: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [*payload["models"].values(), *payload["reading"], payload["memory"]]
    return [each for part in parts for each in part["goals"]]


def _text(payload: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=110)
    about, machine = payload["environment"], payload["machine"]
    console.print(
        f"{about['gpu'] or about['cpu']}, {about['cores']} cores, {about['threads']} threads, "
        f"torch {about['torch']}, sae-lens {about['sae-lens']}, load {about['load']:.1f}; "
        f"{machine['flops'] / 1e9:,.0f} GFLOP/s, copies {machine['bytes'] / 1e9:,.1f} GB/s, "
        f"disk {machine['disk'] / 1e9:,.2f} GB/s",
        soft_wrap=True,
    )
    for name, part in payload["models"].items():
        title = f"{name}: block {part['block']}, {part['batch']} x {part['n_ctx']} tokens a forward"
        table = Table(title=title, title_justify="left")
        for column in ("", "tokens/s", "of the bare forward", "lowest, highest", "peak, MB more"):
            table.add_column(column, justify="right" if column else "left")
        for variant, found in part["variants"].items():
            low, high = found["ratio_range"]
            peak = "" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e6:,.0f}"
            cells = f"{found['tokens_per_s']:,.0f}", f"{found['ratio']:.3f}", f"{low:.3f}, {high:.3f}", peak
            table.add_row(variant, *cells)
        for floor, rate in part["floors"].items():
            table.add_row(f"floor: {floor}", f"{rate:,.0f}", "", "", "")
        console.print(table)
    for part in payload["reading"]:
        rates = ", ".join(f"{name} {rate / 1e9:.2f} GB/s" for name, rate in part["bytes_per_s"].items())
        console.print(f"reading {part['rows']:,} rows of {part['dim']}: {rates}", soft_wrap=True)
    peaks = zip(payload["memory"]["rows"], payload["memory"]["peak_bytes"], strict=True)
    shown = ", ".join(f"{n:,} rows {'unknown' if p is None else f'{p / 1e6:,.0f} MB'}" for n, p in peaks)
    console.print(f"peak memory of a harvest: {shown}", soft_wrap=True)
    table = Table(title="goals", title_justify="left")
    for column in ("ratio", "measured", "goal", ""):
        table.add_column(column, justify="right" if column in ("measured", "goal") else "left")
    for name, part in [
        *payload["models"].items(),
        *(("", part) for part in payload["reading"]),
        ("", payload["memory"]),
    ]:
        for each in part["goals"]:
            verdict = "met" if each["met"] else "MISSED"
            label = f"{name}: {each['ratio']}" if name else each["ratio"]
            table.add_row(label, f"{each['value']:.3f}", f"{each['goal']:.2f}", verdict)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
