"""``mechlab run``."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.pipeline.config import RunConfig
from mechlab.pipeline.job import run as run_pipeline


def run(words: list[str], program: str) -> Outcome:
    """Run the whole job and show its results as a table."""
    config = parse(RunConfig, words, program)
    with Reporter() as progress:
        done = run_pipeline(config, progress=progress)
    return Outcome(done.summary, f"{_table(done.summary)}\npage: {done.dashboard}")


def _table(summary: dict[str, Any]) -> str:
    table = Table(
        title=f"{summary['model']} at {summary['site']}, {summary['tokens']:,} tokens", title_justify="left"
    )
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("control", justify="right")
    sae, circuit, features = summary["sae"], summary["circuit"], summary["features"]
    table.add_row("latents", f"{sae['d_sae']:,}", "")
    table.add_row("L0 (active latents per token)", f"{sae['l0']:.1f}", "")
    table.add_row("fraction of variance explained", f"{sae['fve']:.3f}", "")
    table.add_row("CE loss recovered, against the mean", f"{sae['ce_recovered']:.3f}", "")
    table.add_row("CE loss recovered, against zero", f"{sae['ce_recovered_zero']:.3f}", "")
    table.add_row("dead latents", f"{sae['dead']:.1%}", "")
    if circuit:
        table.add_row(
            f"{circuit['task']} circuit ({circuit['method']}), edges", f"{circuit['n_edges']:,}", ""
        )
        table.add_row("its faithfulness", *_pair(circuit["faithfulness"], circuit["faithfulness_null"]))
    table.add_row("features explained", f"{features['explained']:,}", "")
    table.add_row("detection, mean", *_pair(features["detection_mean"], features["detection_null"]))
    table.add_row("seconds in all", f"{sum(summary['seconds'].values()):.0f}", "")
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def _pair(value: float | None, control: float | None) -> tuple[str, str]:
    return tuple("" if v is None else f"{v:.3f}" for v in (value, control))  # type: ignore[return-value]
