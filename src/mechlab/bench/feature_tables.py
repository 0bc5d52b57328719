"""The tables of ``mechlab bench truth --part features``, and the goals they must meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mechlab.bench.feature_concepts import KNOWN, concepts
from mechlab.bench.feature_dictionaries import stories
from mechlab.bench.feature_truth import CHARACTERS, World, functions, make_world, recovery, scorers
from mechlab.bench.measure import Progress
from mechlab.errors import MechlabError
from mechlab.features.investigate.planted import planted_investigation

STORIES = "stories"
_RULES, _TURNS = 204, 12
_CONCEPTS = 40
_SECONDS = 120.0


def feature_tables(
    seed: int, progress: Progress | None, *, model: Path | None = None, data: Path | None = None
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name → makes the table. "stories" is there when a model and a corpus are named."""
    if (model is None) != (data is None):
        raise MechlabError(
            "table stories needs a model and a corpus", model or data, "pass --model and --data"
        )
    worlds: list[World] = []

    def world() -> World:
        if not worlds:
            worlds.append(make_world(seed=seed))
        return worlds[0]

    def investigate() -> dict[str, Any]:
        found = planted_investigation(
            _RULES, _TURNS, seed=seed,
            progress=None if progress is None else lambda n, of: progress("investigate", n, of, {}),
        )  # fmt: skip
        return {"rules": _RULES, "turns": _TURNS, "rows": found.table(), "kinds": found.by_kind()}

    made: dict[str, Callable[[], dict[str, Any]]] = {
        "planted": lambda: {
            "clean": recovery(world(), progress),
            "dropped": recovery(make_world(seed=seed, per_kind=3, dropped=0.1), progress, stage="dropped"),
        },
        "scorers": lambda: scorers(world(), progress, seed=seed),
        "functions": lambda: functions(seed=seed),
        "concepts": lambda: concepts(seed=seed, progress=progress),
        "investigate": investigate,
    }
    if model is not None and data is not None:
        made[STORIES] = lambda: stories(model, data, seed=seed, progress=progress)
    return made


def feature_goals(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What must hold of the tables that were made."""
    goals: list[dict[str, Any]] = []

    def goal(name: str, met: bool) -> None:
        goals.append({"name": name, "met": bool(met)})

    if "planted" in found:
        clean = found["planted"]["clean"]
        share = clean["recovered"]["value"]
        goal(f"planted: rules recovered {share:.3f} >= 0.95", share >= 0.95)
        noise = clean["noise"][0]
        goal(
            f"planted: rules of noise {noise['value']:.3f} [{noise['low']:.3f}, {noise['high']:.3f}] at 0.50",
            noise["low"] <= 0.5 <= noise["high"],
        )
    if "scorers" in found:
        for name, each in found["scorers"]["explanations"].items():
            if name in _NOT_ORDERED:
                continue
            true, wrong, shuffled = (each[who]["value"] for who in ("true", "wrong", "shuffled"))
            goal(f"scorers, {name}: {true:.3f} > {wrong:.3f} > {shuffled:.3f}", each["ordered"])
        for name, each in found["scorers"]["cheaters"].items():
            where = f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]"
            goal(f"cheater, {name}: {where} at 0.50", each["at_chance"])
    if "functions" in found:
        for name, each in found["functions"].items():
            null = each["null"]["high"]
            goal(f"functions, {name}: {each['value']:.3f} > {null:.3f}", each["low"] > null)
    if "concepts" in found:
        table = found["concepts"]
        count, single = table["n_known"], table["best_single_dictionary"]["n_known"]
        goal(
            f"concepts: {count} of {table['n_concepts']} with a rule of F1 >= {KNOWN} on held-out documents,"
            f" >= {_CONCEPTS} (dictionaries: {len(table['dictionaries'])}; the best of them alone: {single})",
            count >= _CONCEPTS,
        )
        control = table["n_known_control"]
        goal(f"concepts: {control} with labels of other documents, 0", control == 0)
    if STORIES in found:
        table = found[STORIES]
        total = table["totals"]["detection"]
        null = total["mean"]["null"]["value"]
        took = table["seconds_explain"] + table["seconds_score"]
        goal(
            f"stories: every live latent explained ({table['explained']})",
            table["explained"] == table["live"],
        )
        goal(
            f"stories: median detection {total['median']['value']:.3f} >= 0.75",
            total["median"]["value"] >= 0.75,
        )
        goal(f"stories: null {null:.3f} within 0.50 +- 0.03", abs(null - 0.5) <= 0.03)
        goal(f"stories: explained and scored in {took:.0f} s <= {_SECONDS:.0f}", took <= _SECONDS)
    if "investigate" in found:
        goals += _investigation_goals(found["investigate"]["rows"])
    return goals


# No order is promised. Specificity: of the tokens that are inactive, nearly all, any rare rule says so.
# Characters: "ends with 'ing'" names no word, and the wrong rule that lists half of the words does.
_NOT_ORDERED = frozenset({"rules: token specificity", f"{CHARACTERS}: detection"})


def _investigation_goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """On the whole quiz; its parts are in the table."""
    goals = []
    for row in rows:
        if not row["name"].endswith(" quiz"):
            continue
        where = f"investigate, turn {row['turn']}: {row['condition']} {row['value']:.3f}"
        if row["condition"] in ("active - passive", "noisy - noisy passive"):
            name = f"{where} [{row['low']:.3f}, {row['high']:.3f}] above 0"
            goals.append({"name": name, "met": row["low"] > 0})
        elif row["condition"] == "active" and row["turn"] == _TURNS:
            goals.append({"name": f"{where} >= 0.95", "met": row["value"] >= 0.95})
    return goals
