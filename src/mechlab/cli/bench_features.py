"""``mechlab bench features``."""

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

# At the default sizes, on two cores: seconds; times the entries' bytes; times the time an entry at
# the default size; features a second.
_SECONDS = {"build": 3.0, "contexts": 0.5, "statistics": 1.0}
_MEMORY, _GROWTH = 2.0, 1.5
_RATES = {"explain": 50.0, "score": 200.0}
_ENTRIES = 20_000_000
_ENTRY_BYTES = 8


class FeaturesConfig(Settings):
    """What indexing, contexts, statistics, rules and their scores cost beside delphi and SAEDashboard.

    Figures are medians over interleaved rounds. Goals of speed are for two cores and grow with the
    number of entries from the default on. Exit 1 when a goal is missed.
    mechlab bench setup-peers makes the other tools' environments; a missing one is named.

    Example: mechlab bench features --json
    """

    entries: int = _ENTRIES
    """Active features, summed over tokens."""
    features: int = 16384
    """Features of the dictionary."""
    active: int = 20
    """Active features of a token."""
    grown: str = "2000000,200000000"
    """Numbers of entries at which growth is measured; empty leaves it out. 200000000 takes 4 GB of disk."""
    rules: int = 1024
    """Features that rules are found for and scored; 0 leaves it out."""
    repeats: int = 5
    """Rounds that count; one more warms up."""
    peers: bool = True
    """Measure other tools."""
    peer_folder: Path = Path(".peers")
    """Where their environments are."""
    work: Path | None = None
    """Directory for files, on the disk to be measured; a temporary one by default."""
    seed: int = 0
    """Decides tokens, codes and the features that are explained."""


def features(words: list[str], program: str) -> Outcome:
    """Run the benchmark."""
    config = parse(FeaturesConfig, words, program)
    for name in ("entries", "features", "active", "repeats"):
        if getattr(config, name) < 1:
            raise MechlabError(f"{name} must be positive", getattr(config, name), "see --help")
    if config.rules < 0:
        raise MechlabError("rules is out of range", config.rules, "0 leaves it out")
    if config.active > config.features or config.entries < config.active:
        raise MechlabError("active is out of range", config.active, "at most as many as features and entries")
    grown = parse_grown(config.grown, config.active)
    with tempfile.TemporaryDirectory(dir=config.work) as work, Reporter() as progress:
        payload = _measure(config, grown, Path(work), progress)
    return Outcome(payload, _text(payload), 0 if payload["met"] else 1)


def parse_grown(text: str, active: int) -> tuple[int, ...]:
    """Numbers of entries with commas between; MechlabError for one that is none, or below ``active``."""
    found = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        if not each.isdecimal() or int(each) < active:
            raise MechlabError("grown is out of range", each, f"whole numbers from {active} on")
        found.append(int(each))
    return tuple(found)


def _measure(
    config: FeaturesConfig, grown: tuple[int, ...], work: Path, progress: Reporter
) -> dict[str, Any]:
    import torch

    from mechlab.bench.features import Sizes, run
    from mechlab.bench.measure import copy_bandwidth, disk_bandwidth, environment

    device = torch.device("cpu")
    machine = {"bytes": copy_bandwidth(device), "disk": disk_bandwidth(work)}
    found = run(
        Sizes(config.entries, config.features, config.active), work, grown=grown, rules=config.rules,
        repeats=config.repeats, peers=config.peers, peer_folder=config.peer_folder,
        copies=machine["bytes"], seed=config.seed, progress=progress,
    )  # fmt: skip
    payload: dict[str, Any] = {
        "environment": environment(device),
        "config": config.model_dump(mode="json"),
        "machine": machine,
        **found,
    }
    payload["goals"] = goals(payload)
    payload["met"] = all(each["met"] for each in payload["goals"])
    return payload


def goals(payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Each as "value is at most limit" or "value is at least limit"."""
    found: list[dict[str, Any]] = []

    def most(name: str, value: float, limit: float) -> None:
        found.append({"name": name, "value": value, "most": limit, "met": value <= limit})

    entries = payload["sizes"]["entries"]
    # What a stage takes whatever the size is allowed for once.
    judged = max(entries, _ENTRIES)
    for name, limit in _SECONDS.items():
        most(f"{name}, s", payload["stages"][name]["seconds"], limit * judged / _ENTRIES)
    peaks = [each["peak_bytes"] for each in payload["stages"].values() if each["peak_bytes"] is not None]
    if peaks:
        most("peak memory / data", max(peaks) / (_ENTRY_BYTES * judged), _MEMORY)
    base = next((each for each in payload["growth"] if each["entries"] == entries), None)
    for each in payload["growth"]:
        if base is None or each["entries"] <= entries:
            continue
        for name in _SECONDS:
            ratio = each["seconds"][name] / base["seconds"][name] * entries / each["entries"]
            most(f"{name}: time an entry at {each['entries']:,} / at {entries:,}", ratio, _GROWTH)
        if each["peak_bytes"] is not None:
            name = f"peak memory / data at {each['entries']:,}"
            most(name, each["peak_bytes"] / (_ENTRY_BYTES * each["entries"]), _MEMORY)
    if "rules" in payload:
        for name, limit in _RATES.items():
            value = payload["rules"][name]
            title = {"explain": "rules found, features/s", "score": "rules scored, features/s"}[name]
            found.append({"name": title, "value": value, "least": limit, "met": value >= limit})
    return found


def _text(payload: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=110)
    about, machine, sizes = payload["environment"], payload["machine"], payload["sizes"]
    console.print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads, load {about['load']:.1f}; "
        f"copies {machine['bytes'] / 1e9:,.1f} GB/s, disk {machine['disk'] / 1e9:,.2f} GB/s",
        soft_wrap=True,
    )
    title = "{entries:,} entries, {features:,} features, {rows:,} tokens".format(**sizes)
    table = Table(title=title, title_justify="left")
    for column in ("", "s", "lowest, highest", "floor, s", "x floor", "peak, MB more"):
        table.add_column(column, justify="right" if column else "left")
    for name, each in payload["stages"].items():
        low, high = each["range"]
        peak = "" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e6:,.0f}"
        floor = each["floor"]
        table.add_row(
            name, f"{each['seconds']:.3f}", f"{low:.3f}, {high:.3f}", f"{floor:.3f}",
            f"{each['seconds'] / floor:.1f}", peak,
        )  # fmt: skip
    console.print(table)
    for each in payload["growth"]:
        times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in each["seconds"].items())
        peak = "" if each["peak_bytes"] is None else f"; peak {each['peak_bytes'] / 1e6:,.0f} MB more"
        console.print(f"{each['entries']:,} entries: {times}{peak}", soft_wrap=True)
    if "rules" in payload:
        rules = payload["rules"]
        console.print(
            f"{rules['features']} features on {rules['tokens']:,} tokens: rules for {rules['explain']:.0f} a "
            f"second, detection scores of {rules['score']:.0f} a second",
            soft_wrap=True,
        )
    for name, figures in payload.get("peers", {}).items():
        shown = ", ".join(f"{key} {value:.3g}" for key, value in figures.items() if key != "versions")
        console.print(f"{name}: {shown}", soft_wrap=True)
    for name, ratio in payload.get("ratios", {}).items():
        console.print(f"{name}: {ratio:.0f}", soft_wrap=True)
    for name in payload.get("missing", ()):
        console.print(f"{name}: missing", soft_wrap=True)
    table = Table(title="goals", title_justify="left")
    for column in ("", "measured", "goal", ""):
        table.add_column(column, justify="right" if column in ("measured", "goal") else "left")
    for each in payload["goals"]:
        goal = f"<= {each['most']:.3g}" if "most" in each else f">= {each['least']:.3g}"
        table.add_row(each["name"], f"{each['value']:.3f}", goal, "met" if each["met"] else "MISSED")
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
