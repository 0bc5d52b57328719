"""Investigations of planted rules, whose truth is known: does asking beat being shown?"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechlab.features.investigate.curves import Curves
from mechlab.features.investigate.loop import (
    BUDGET,
    METRICS,
    NOISE,
    TURNS,
    Lesson,
    chance_of,
    investigate,
)
from mechlab.features.investigate.tasks import Room, plant_tasks, room_of
from mechlab.features.planted.corpora import fable_text
from mechlab.features.planted.features import Planted, agreement
from mechlab.features.text import Text

# Tokens of Fable that rules are planted in, and that quizzes are made of; documents lie apart.
_TOKENS, _HELD_OUT_FROM = 100_000, 100_000
# Condition → metric → one value per turn.
Values = dict[str, dict[str, Float[np.ndarray, "turn"]]]


@dataclass(frozen=True, eq=False)
class PlantedInvestigation:
    """Investigations of many planted rules.

    Attributes:
        curves: all conditions; a unit is a rule, its values means over the seeds.
        kinds: of each rule.
        agreement: of each rule the F1, on held-out tokens, of the active student's last rule.
    """

    curves: Curves
    kinds: tuple[str, ...]
    agreement: tuple[float, ...]

    def table(self) -> list[dict[str, Any]]:
        """One row per condition and turn, then the paired differences; plain JSON values."""
        rows = self.curves.table()
        turns = [turn for turn in (5, self.curves.turns) if turn <= self.curves.turns]
        for left, right in (("active", "passive"), ("noisy", "noisy passive"), ("active", "borrowed")):
            for metric in METRICS:
                for turn in dict.fromkeys(turns):
                    found = self.curves.difference(left, right, turn, metric)
                    rows.append({"condition": f"{left} - {right}", "turn": turn, **found.to_dict()})
        return rows

    def by_kind(self, condition: str = "active", metric: str = "detection") -> dict[str, float]:
        """Kind of rule → mean after the last turn."""
        last, kinds = self.curves.at(condition, metric)[:, -1], np.array(self.kinds)
        return {kind: float(last[kinds == kind].mean()) for kind in dict.fromkeys(self.kinds)}


def planted_investigation(
    n_rules: int = 200,
    turns: int = TURNS,
    *,
    budget: int = BUDGET,
    seeds: Sequence[int] = (0, 1, 2),
    seed: int = 0,
    text: Text | None = None,
    held_out: Text | None = None,
    processes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> PlantedInvestigation:
    """Plant rules, have them investigated under every condition, and compare.

    Args:
        n_rules: rules, all kinds by turns.
        budget: queries a turn, the same for everybody.
        seeds: of students, teachers and quizzes; every rule is investigated with each.
        seed: decides the rules.
        text, held_out: where to plant and where to quiz; documents of Fable by default.
        processes: how many share the work; the result does not depend on it.
        progress: called with the rules done and their number.

    Raises MechlabError when the texts are too short, and for fewer than two seeds.
    """
    taught = text if text is not None else fable_text(_TOKENS)[0]
    apart = held_out if held_out is not None else fable_text(_TOKENS, start=_HELD_OUT_FROM)[0]
    room = room_of(taught, apart, seed=seed)
    tasks = plant_tasks(taught, room, n_rules, seed=seed)
    work = [
        (number, tasks[number], tasks[(number + len(tasks) // 2 + 1) % len(tasks)], seeds, turns, budget)
        for number in range(len(tasks))
    ]
    results: list[tuple[Values, float]] = []
    for done, result in enumerate(_carried_out(room, work, processes), 1):
        results.append(result)
        if progress is not None:
            progress(done, len(work))
    values = {
        condition: {
            metric: np.stack([found[condition][metric] for found, _ in results]) for metric in METRICS
        }
        for condition in results[0][0]
    }
    chance = chance_of(room.quiz(tasks[0], tasks[1], seed=0))
    about = {"rules": n_rules, "seeds": list(seeds), "seed": seed, "noise": NOISE}
    curves = Curves("rule", values, chance, float(budget), about)
    kinds, agreed = (task.kind for task in tasks), (each for _, each in results)
    return PlantedInvestigation(curves, tuple(kinds), tuple(agreed))


Work = tuple[int, Planted, Planted, Sequence[int], int, int]


def _carried_out(room: Room, work: Sequence[Work], processes: int) -> Any:
    if processes <= 1:
        return (_investigated(room, *each) for each in work)
    return _shared_out(room, work, processes)


def _shared_out(room: Room, work: Sequence[Work], processes: int) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _enter, (room.taught, room.held_out)) as pool:
        yield from pool.map(_in_room, work, chunksize=2)


_ROOM: list[Room] = []


def _enter(*fragments: Any) -> None:
    _ROOM[:] = [Room(*fragments)]


def _in_room(work: Work) -> tuple[Values, float]:
    return _investigated(_ROOM[0], *work)


def _investigated(
    room: Room, number: int, planted: Planted, other: Planted, seeds: Sequence[int], turns: int, budget: int
) -> tuple[Values, float]:
    """Means over the seeds of every condition, and how well the active rules agree with the truth."""
    own = [1000 * seed + number for seed in seeds]
    found = investigate(
        lambda seed: room.teacher(planted, seed=seed), room.taught, room.held_out,
        quiz=lambda seed: room.quiz(planted, other, seed=seed), turns=turns, budget=budget, seeds=own,
    )  # fmt: skip
    values = {
        condition: {metric: table.mean(0) for metric, table in tables.items()}
        for condition, tables in found.curves.values.items()
    }
    return values, float(np.mean([_agreement(room, planted, each) for each in found.lessons]))


def _agreement(room: Room, planted: Planted, active: Lesson) -> float:
    if active.explanation is None or active.explanation.rule is None or planted.rule is None:
        return 0.0
    matcher = room.matchers[1]
    said, true = matcher.rows(active.explanation.rule)[0], matcher.rows(planted.rule)[0]
    return agreement(said, true)
