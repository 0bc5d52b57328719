"""``mechlab bench dashboard``."""

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

# On two cores: features a minute; bytes a feature; ms.
_RATE, _BYTES, _FIRST, _FILTER = 1000.0, 8000.0, 1500.0, 100.0


class DashboardConfig(Settings):
    """How fast a dashboard is built, how large it is, and how fast a browser shows and filters it.

    The index is made up; --run adds the page of a finished run. The browser is headless Chromium under
    playwright; where it is missing those figures are left out. SAEDashboard's statistics and sequences on
    the same codes stand beside ours; mechlab bench setup-peers makes its environment. Exit 1 when a goal
    is missed.

    Example: mechlab bench dashboard --run runs/demo --json
    """

    entries: int = 20_000_000
    """Active features, summed over tokens."""
    features: int = 16384
    """Features of the dictionary."""
    active: int = 20
    """Active features of a token."""
    run: Path | None = None
    """Directory of a finished run."""
    repeats: int = 5
    """Times that the browser opens the page; one more warms up."""
    peers: bool = True
    """Measure SAEDashboard."""
    peer_folder: Path = Path(".peers")
    """Where other tools' environments are."""
    work: Path | None = None
    """Directory for files; a temporary one by default."""
    seed: int = 0
    """Decides tokens, codes and what is said of the features."""


def dashboard(words: list[str], program: str) -> Outcome:
    """Run the benchmark."""
    config = parse(DashboardConfig, words, program)
    for name in ("entries", "features", "active", "repeats"):
        if getattr(config, name) < 1:
            raise MechlabError(f"{name} must be positive", getattr(config, name), "see --help")
    if config.active > config.features or config.entries < config.active:
        raise MechlabError("active is out of range", config.active, "at most as many as features and entries")

    import torch

    from mechlab.bench.dashboard import measure
    from mechlab.bench.features import Sizes
    from mechlab.bench.measure import environment

    with tempfile.TemporaryDirectory(dir=config.work) as work, Reporter() as progress:
        found = measure(
            Sizes(config.entries, config.features, config.active), Path(work), run=config.run,
            repeats=config.repeats, peers=config.peers, peer_folder=config.peer_folder,
            seed=config.seed, progress=progress,
        )  # fmt: skip
    payload = {
        "environment": environment(torch.device("cpu")),
        "config": config.model_dump(mode="json"),
        **found,
    }
    payload["goals"] = goals(payload)
    payload["met"] = all(each["met"] for each in payload["goals"])
    return Outcome(payload, _text(payload), 0 if payload["met"] else 1)


def goals(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Each as "value is at most limit" or "value is at least limit"."""
    found: list[dict[str, Any]] = []

    def most(name: str, value: float, limit: float) -> None:
        found.append({"name": name, "value": value, "most": limit, "met": value <= limit})

    for name in ("build", "run"):
        if name in payload:
            rate, title = payload[name]["features_per_minute"], f"{name}: features a minute"
            found.append({"name": title, "value": rate, "least": _RATE, "met": rate >= _RATE})
            most(f"{name}: bytes a feature", payload[name]["bytes_per_feature"], _BYTES)
    if payload["browser"] is not None:
        most("first view, ms", payload["browser"]["first_view_ms"], _FIRST)
        most("filter, ms", payload["browser"]["filter_ms"], _FILTER)
    return found


def _text(payload: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=110)
    about, browser = payload["environment"], payload["browser"]
    console.print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, load {about['load']:.1f}",
        soft_wrap=True,
    )
    for name in ("build", "run"):
        if name in payload:
            console.print(
                "{name}: {features:,} features in {seconds:.1f} s, {files:,} files, {mb:.1f} MB".format(
                    name=name, mb=payload[name]["bytes"] / 1e6, **payload[name]
                ),
                soft_wrap=True,
            )
    if browser is None:
        console.print("browser: missing (playwright and a Chromium)")
    else:
        filters = ", ".join(f"{query or 'nothing'} {ms:.0f} ms" for query, ms in browser["filters"].items())
        console.print(f"Chromium {browser['version']}: filters {filters}", soft_wrap=True, markup=False)
    for name, figures in payload.get("peers", {}).items():
        console.print(
            f"{name}: {1e3 * figures['feature']:.1f} ms a feature for statistics and sequences alone, "
            f"{payload['ratios'][name]:.1f} times what a feature takes here in all",
            soft_wrap=True,
        )
    for name in payload.get("missing", ()):
        console.print(f"{name}: missing", soft_wrap=True)
    table = Table(title="goals", title_justify="left")
    for column in ("", "measured", "goal", ""):
        table.add_column(column, justify="right" if column in ("measured", "goal") else "left")
    for each in payload["goals"]:
        goal = f"<= {each['most']:,.0f}" if "most" in each else f">= {each['least']:,.0f}"
        table.add_row(each["name"], f"{each['value']:,.0f}", goal, "met" if each["met"] else "MISSED")
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
