"""The tables of ``mechlab bench truth --part features`` as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from mechlab.cli.score_table import drawn

Figures = Mapping[str, Any]


def truth_text(payload: Figures) -> str:
    """All tables that were made, then the goals."""
    makers = {
        "planted": _planted,
        "scorers": _scorers,
        "functions": _functions,
        "concepts": _concepts,
        "stories": _stories,
        "investigate": _investigate,
    }
    parts = [make(payload[name]) for name, make in makers.items() if name in payload]
    goals = [f"{'met   ' if each['met'] else 'MISSED'} {each['name']}" for each in payload["goals"]]
    return "\n\n".join([*parts, "\n".join(goals)])


def _columns(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    return table


def _interval(each: Figures | None) -> str:
    if not each or each["value"] is None:
        return ""
    if each["low"] is None:
        return f"{each['value']:.3f}"
    return f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]"


def _planted(tables: Figures) -> str:
    table = _columns("planted: share of rules recovered, and mean F1 on held-out documents", *tables)
    kinds = next(iter(tables.values()))["kinds"]
    for kind in kinds:
        cells = (each["kinds"][kind] for each in tables.values())
        table.add_row(kind, *(f"{cell['recovered']:.2f} ({cell['f1']:.3f})" for cell in cells))
    table.add_row("all", *(_interval(each["recovered"]) for each in tables.values()))
    table.add_row("noise, detection", *(_interval(each["noise"][0]) for each in tables.values()))
    table.add_row("tokens", *(f"{each['tokens']:,}" for each in tables.values()))
    table.add_row("seconds", *(f"{each['seconds']:.1f}" for each in tables.values()))
    return drawn(table)


def _scorers(tables: Figures) -> str:
    who = ("true", "rules", "wrong", "shuffled", "inverted")
    table = _columns("scorers: means over planted features", *who, "features")
    for name, each in tables["explanations"].items():
        cells = (f"{each[one]['value']:.3f}" if one in each else "" for one in who)
        table.add_row(name, *cells, str(each["features"]))
    cheaters = _columns("cheaters, on the same items: chance is 0.5", "mean")
    for name, each in tables["cheaters"].items():
        cheaters.add_row(name, _interval(each))
    return drawn(table) + "\n\n" + drawn(cheaters)


def _functions(table: Figures) -> str:
    rows = _columns("functions explained by programs and rules", "share", "another's explanation", "n")
    for name, each in table.items():
        rows.add_row(f"{name}, {each['name']}", _interval(each), _interval(each["null"]), str(each["n"]))
    return drawn(rows)


def _concepts(table: Figures) -> str:
    title = (
        f"concepts: best of {table['rules']:,} rules of {len(table['dictionaries'])} dictionaries, held out"
    )
    rows = _columns(title, "F1", "control", "tokens", "dictionary")
    ranked = sorted(table["concepts"].items(), key=lambda item: -item[1]["f1"])
    for name, each in ranked:
        rows.add_row(
            name, f"{each['f1']:.3f}", f"{each['control']:.3f}", f"{each['tokens']:,}", each["dictionary"]
        )
    single, frequent = table["best_single_dictionary"], table["n_known_of_most_frequent"]
    said = (
        f"{table['n_known']} of {table['n_concepts']} concepts with F1 >= 0.8 ({frequent['known']} of the "
        f"{frequent['of']} most frequent; best single dictionary {single['name']}: {single['n_known']}); "
        f"mean {table['f1_mean']:.3f}, control {table['control_mean']:.3f}"
    )
    kept = _columns(
        "rewriting: share of the latents' work on the loss that rules keep", "recovered", "shuffled"
    )
    for each in table["rewriting"]["shares"]:
        kept.add_row(
            f"{each['features']} latents", _interval(each["recovered"]), _interval(each["recovered"]["null"])
        )
    return drawn(rows) + f"\n{said}\n\n" + drawn(kept)


def _stories(table: Figures) -> str:
    title = (
        f"stories: {table['explained']} of {table['live']} live latents explained, {table['scored']} scored"
    )
    rows = _columns(title, "mean", "median", "null")
    for name, each in table["totals"].items():
        rows.add_row(
            name, _interval(each["mean"]), _interval(each["median"]), _interval(each["mean"]["null"])
        )
    return (
        drawn(rows)
        + f"\n{table['seconds_explain']:.1f} s to explain, {table['seconds_score']:.1f} s to score"
    )


def _investigate(table: Figures) -> str:
    title = f"investigate: {table['rules']} planted rules, quiz accuracy"
    rows = _columns(title, "turn", "metric", "value")
    for each in table["rows"]:
        if " - " in each["condition"] or each["turn"] in (1, 5, table["turns"]):
            metric = each["name"].rsplit(" ", 1)[-1]
            rows.add_row(each["condition"], str(each["turn"]), metric, _interval(each))
    return drawn(rows)
