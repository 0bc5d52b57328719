"""The loop: ask, learn, sit the quiz; and the conditions that it is compared under.

| condition | who learns from what |
|---|---|
| active | asks queries of its own choice |
| passive | is shown as many random examples, half of them active (static teaching) |
| borrowed | reads the transcript of an active student of another seed |
| noisy, noisy passive | as above, a tenth of the teacher's answers about tokens being wrong |
| weak | asks a weaker teacher: the model with 8-bit weights |
| oracle | knows the truth: the upper bound |
| chance | guesses: the floor |

Turns, queries and quizzes after INTERACT (Kendapadi et al. 2025, *INTERACT: Enabling Interactive,
Question-Driven Learning in Large Language Models*), with a feature in the place of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.investigate.curves import Curves
from mechlab.features.investigate.fragments import Fragments
from mechlab.features.investigate.quiz import Marks, Quiz, make_quiz, marks
from mechlab.features.investigate.students import (
    BorrowedStudent,
    PassiveStudent,
    RuleStudent,
    Student,
)
from mechlab.features.investigate.teachers import Answer, NoisyTeacher, Teacher

METRICS = ("quiz", "detection", "choice")
CHANCE = {"detection": 1 / 2, "choice": 1 / 3}
NOISE = 0.1
BUDGET, TURNS = 2, 12


@dataclass(frozen=True, eq=False)
class Lesson:
    """What happened in the turns of one student.

    Attributes:
        answers: of each turn.
        marks: quiz results, the one before the first turn included.
        sentences: what the student believed after each turn; None without an idea.
        explanation: what it believes at the end.
    """

    answers: tuple[tuple[Answer, ...], ...]
    marks: tuple[Marks, ...]
    sentences: tuple[str | None, ...]
    explanation: Explanation | None


def lesson(
    student: Student, teacher: Teacher, quiz: Quiz, *, turns: int = TURNS, budget: int = BUDGET
) -> Lesson:
    """A student learns for some turns, and is quizzed before the first and after each.

    Raises MechlabError when the student asks for more than the budget of a turn.
    """
    results, answers, sentences = [marks(quiz, student.answer(quiz))], [], []
    for _ in range(turns):
        queries = student.ask(budget)
        cost = sum(query.cost for query in queries)
        if cost > budget:
            raise MechlabError("student asks for more than it may", cost, f"the budget is {budget} a turn")
        given = teacher.ask(queries)
        student.learn(given)
        answers.append(tuple(given))
        results.append(marks(quiz, student.answer(quiz)))
        said = student.explain()
        sentences.append(None if said is None else said.text)
    return Lesson(tuple(answers), tuple(results), tuple(sentences), student.explain())


def table_of(results: Sequence[Sequence[Marks]]) -> dict[str, Float[np.ndarray, "unit turn"]]:
    """Metric → values, a row for each sequence of marks."""
    return {
        name: np.array([[getattr(each, name) for each in row] for row in results], np.float64)
        for name in METRICS
    }


def bounds(quiz: Quiz, turns: int) -> tuple[list[Marks], list[Marks]]:
    """What the oracle and a student that guesses would get after every turn."""
    choice = bool(quiz.choices)
    best = Marks(1.0, 1.0 if choice else float("nan"))
    least = Marks(CHANCE["detection"], CHANCE["choice"] if choice else float("nan"))
    return [best] * (turns + 1), [least] * (turns + 1)


def chance_of(quiz: Quiz) -> dict[str, float]:
    """Metric → what guessing gives."""
    least = bounds(quiz, 0)[1][0]
    return {
        "quiz": least.quiz,
        **({} if np.isnan(least.choice) else {"choice": least.choice}),
        "detection": 0.5,
    }


@dataclass(frozen=True, eq=False)
class Investigation:
    """A feature investigated.

    Attributes:
        curves: all conditions; a unit is a seed, with a student and a quiz of its own.
        lessons: of the active student of each seed, to be read.
    """

    curves: Curves
    lessons: tuple[Lesson, ...]


def investigate(
    teacher: Callable[[int], Teacher],
    taught: Fragments,
    held_out: Fragments,
    *,
    student: Callable[[int], Student] | None = None,
    weak: Callable[[int], Teacher] | None = None,
    quiz: Callable[[int], Quiz] | None = None,
    feature: int = 0,
    turns: int = TURNS,
    budget: int = BUDGET,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Callable[[int, int], None] | None = None,
) -> Investigation:
    """Explain one feature by asking about it, beside the controls.

    Args:
        teacher: seed → who is asked; a fresh one at every call.
        taught: passages for students and teachers.
        held_out: passages of other documents, for quizzes.
        student: seed → who asks; a ``RuleStudent`` by default.
        weak: seed → a weaker teacher of the same feature, where there is one.
        quiz: seed → its quiz; by default detection items of held-out passages.
        budget: queries a turn.
        seeds: at least two, for the intervals.
        progress: called with the lessons done and their total.

    Raises MechlabError when there are too few seeds, or the feature is too rare to be quizzed.
    """
    if len(seeds) < 2:
        raise MechlabError("too few seeds for an interval", len(seeds), "give 2 or more")
    make = student or (lambda seed: RuleStudent(taught, feature=feature, seed=seed))
    found: dict[str, list[Sequence[Marks]]] = {}
    lessons: dict[int, Lesson] = {}
    examine = quiz or (lambda seed: make_quiz(teacher(seed), held_out, seed=seed))
    quizzes = {seed: examine(seed) for seed in seeds}
    done, total = 0, len(seeds) * (5 + (weak is not None))

    def learn(name: str, seed: int, who: Student, source: Teacher) -> Lesson:
        nonlocal done
        result = lesson(who, source, quizzes[seed], turns=turns, budget=budget)
        found.setdefault(name, []).append(result.marks)
        done += 1
        if progress is not None:
            progress(done, total)
        return result

    for seed in seeds:
        lessons[seed] = learn("active", seed, make(seed), teacher(seed))
        learn("passive", seed, PassiveStudent(taught, feature=feature), teacher(seed))
        learn("noisy", seed, make(seed), NoisyTeacher(teacher(seed), NOISE, seed=seed))
        shown = PassiveStudent(taught, feature=feature)
        learn("noisy passive", seed, shown, NoisyTeacher(teacher(seed), NOISE, seed=seed))
        if weak is not None:
            learn("weak", seed, make(seed), weak(seed))
        best, least = bounds(quizzes[seed], turns)
        found.setdefault("oracle", []).append(best)
        found.setdefault("chance", []).append(least)
    for place, seed in enumerate(seeds):
        transcript = lessons[seeds[(place + 1) % len(seeds)]].answers
        learn("borrowed", seed, BorrowedStudent(taught, transcript, feature=feature), teacher(seed))
    values: Mapping[str, Mapping[str, np.ndarray]] = {name: table_of(rows) for name, rows in found.items()}
    about = {"feature": feature, "seeds": list(seeds), "noise": NOISE}
    curves = Curves("seed", values, chance_of(quizzes[seeds[0]]), float(budget), about)
    return Investigation(curves, tuple(lessons.values()))
