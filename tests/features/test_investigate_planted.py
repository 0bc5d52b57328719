"""Planted investigations: asking beats being shown, and processes change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from mechlab.errors import MechlabError
from mechlab.features.investigate.planted import planted_investigation
from mechlab.features.investigate.tasks import plant_tasks, room_of
from mechlab.features.planted.corpora import fable_text


@pytest.mark.slow
def test_asking_beats_being_shown() -> None:
    found = planted_investigation(48, 12, seeds=(0, 1))
    assert found.curves.score("active", 12).value >= 0.95
    for turn in (5, 12):
        assert found.curves.difference("active", "passive", turn).low > 0
    assert found.curves.difference("noisy", "noisy passive", 12).value > 0
    assert {row["condition"] for row in found.table()} >= {"active - passive", "noisy - noisy passive"}


@pytest.mark.slow
def test_processes_change_nothing() -> None:
    alone = planted_investigation(3, 2, seeds=(0, 1), processes=1)
    shared = planted_investigation(3, 2, seeds=(0, 1), processes=2)
    assert alone.curves.to_dict() == shared.curves.to_dict()
    assert alone.kinds == shared.kinds


def test_planted_tasks_can_be_quizzed() -> None:
    taught, held_out = fable_text(60_000)[0], fable_text(60_000, start=5000)[0]
    room = room_of(taught, held_out)
    tasks = plant_tasks(taught, room, 4, seed=1)
    for number, task in enumerate(tasks):
        quiz = room.quiz(task, tasks[number - 1], seed=number)
        assert quiz.label.mean() == pytest.approx(0.5)
        assert task.rule is not None
        assert quiz.choices[0][quiz.right[0]] == task.rule.sentence()
    assert np.array_equal([t.kind for t in tasks], [t.kind for t in plant_tasks(taught, room, 4, seed=1)])


def test_short_texts_are_refused() -> None:
    with pytest.raises(MechlabError, match="text is too short"):
        room_of(fable_text(1000)[0], fable_text(1000, start=100)[0])
