"""Investigations of planted rules, whose truth is known: does asking beat being shown?"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechlab.features.investigate.curves import Curves
from mechlab.features.investigate.loop import (
    BUDGET,
    METRICS,
    NOISE,
    TURNS,
    Lesson,
    bounds,
    chance_of,
    lesson,
    table_of,
)
from mechlab.features.investigate.quiz import Marks
from mechlab.features.investigate.students import BorrowedStudent, PassiveStudent, RuleStudent
from mechlab.features.investigate.tasks import Room, plant_tasks, room_of
from mechlab.features.investigate.teachers import NoisyTeacher
from mechlab.features.planted.corpora import fable_text
from mechlab.features.planted.features import Planted
from mechlab.features.text import Text

# Tokens of Fable that rules are planted in, and that quizzes are made of; documents lie apart.
_TOKENS, _HELD_OUT_FROM = 100_000, 100_000
Results = dict[str, list[Marks]]


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
        progress: called with the investigations done and their total.

    Raises MechlabError when the texts are too short.
    """
    taught = text if text is not None else fable_text(_TOKENS)[0]
    apart = held_out if held_out is not None else fable_text(_TOKENS, start=_HELD_OUT_FROM)[0]
    room = room_of(taught, apart, seed=seed)
    tasks = plant_tasks(taught, room, n_rules, seed=seed)
    work = [
        (number, each, tasks[number], tasks[(number + len(tasks) // 2 + 1) % len(tasks)], turns, budget)
        for number in range(len(tasks))
        for each in seeds
    ]
    results: list[tuple[Results, float]] = []
    for done, result in enumerate(_carried_out(room, work, processes), 1):
        results.append(result)
        if progress is not None:
            progress(done, len(work))
    values = {}
    for condition in results[0][0]:
        table = table_of([found[condition] for found, _ in results])
        values[condition] = {
            name: array.reshape(len(tasks), len(seeds), -1).mean(1) for name, array in table.items()
        }
    agreement = np.array([each for _, each in results]).reshape(len(tasks), len(seeds)).mean(1)
    chance = chance_of(room.quiz(tasks[0], tasks[1], seed=0))
    about = {"rules": n_rules, "seeds": list(seeds), "seed": seed, "noise": NOISE}
    curves = Curves("rule", values, chance, float(budget), about)
    return PlantedInvestigation(curves, tuple(task.kind for task in tasks), tuple(agreement.tolist()))


Work = tuple[int, int, Planted, Planted, int, int]


def _carried_out(room: Room, work: Sequence[Work], processes: int) -> Any:
    if processes <= 1:
        return (_investigated(room, *each) for each in work)
    return _shared_out(room, work, processes)


def _shared_out(room: Room, work: Sequence[Work], processes: int) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _enter, (room.taught, room.held_out)) as pool:
        yield from pool.map(_in_room, work, chunksize=4)


_ROOM: list[Room] = []


def _enter(*fragments: Any) -> None:
    _ROOM[:] = [Room(*fragments)]


def _in_room(work: Work) -> tuple[Results, float]:
    return _investigated(_ROOM[0], *work)


def _investigated(
    room: Room, number: int, seed: int, planted: Planted, other: Planted, turns: int, budget: int
) -> tuple[Results, float]:
    """Marks of every condition, and how well the active student's rule agrees with the truth."""
    own = 1000 * seed + number
    quiz = room.quiz(planted, other, seed=own)
    taught = room.taught

    def noisy() -> NoisyTeacher:
        return NoisyTeacher(room.teacher(planted, seed=own), NOISE, seed=own)

    def learn(student: Any, teacher: Any) -> Lesson:
        return lesson(student, teacher, quiz, turns=turns, budget=budget)

    active = learn(RuleStudent(taught, seed=own), room.teacher(planted, seed=own))
    elsewhere = own + 500_000
    lent = learn(RuleStudent(taught, seed=elsewhere), room.teacher(planted, seed=elsewhere))
    best, least = bounds(quiz, turns)
    found = {
        "active": active,
        "passive": learn(PassiveStudent(taught), room.teacher(planted, seed=own)),
        "borrowed": learn(BorrowedStudent(taught, lent.answers), room.teacher(planted, seed=own)),
        "noisy": learn(RuleStudent(taught, seed=own), noisy()),
        "noisy passive": learn(PassiveStudent(taught), noisy()),
    }
    results: Results = {name: list(each.marks) for name, each in found.items()}
    return {**results, "oracle": best, "chance": least}, _agreement(room, planted, active)


def _agreement(room: Room, planted: Planted, active: Lesson) -> float:
    if active.explanation is None or active.explanation.rule is None or planted.rule is None:
        return 0.0
    matcher = room.matchers[1]
    said, true = matcher.rows(active.explanation.rule)[0], matcher.rows(planted.rule)[0]
    return 2 * len(np.intersect1d(said, true)) / max(len(said) + len(true), 1)
