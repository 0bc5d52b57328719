"""Asking and learning on planted rules: teachers, budgets, noise, quizzes, curves."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from mechlab.errors import MechlabError
from mechlab.features.investigate.curves import Curves, load_curves, save_curves
from mechlab.features.investigate.fragments import Fragments, fragments_of
from mechlab.features.investigate.loop import investigate, lesson
from mechlab.features.investigate.quiz import Quiz, QuizAnswers, make_quiz, marks
from mechlab.features.investigate.students import BorrowedStudent, PassiveStudent, RuleStudent, Student
from mechlab.features.investigate.teachers import NoisyTeacher, Query, RuleTeacher, Teacher
from mechlab.features.planted.corpora import fable_text
from mechlab.features.rules import Matcher, Rule, parse_rule
from mechlab.features.text import text_of

EASY = parse_rule("fires (2) on tokens that end in 'ed'")


@functools.cache
def corpora() -> tuple[Fragments, Fragments]:
    return (
        fragments_of(fable_text(16_000)[0], 500, seed=1),
        fragments_of(fable_text(16_000, start=5000)[0], 500, seed=2),
    )


def taught_by(rule: Rule, student: Student, turns: int = 5, rate: float = 0.0) -> float:
    taught, held_out = corpora()
    quiz = make_quiz(RuleTeacher(rule, taught), held_out, seed=3)
    teacher: Teacher = RuleTeacher(rule, taught, seed=4)
    if rate:
        teacher = NoisyTeacher(teacher, rate, seed=5)
    return lesson(student, teacher, quiz, turns=turns).marks[-1].detection


def test_a_rule_as_teacher_says_what_the_matcher_says() -> None:
    taught, _ = corpora()
    teacher = RuleTeacher(EASY, taught, seed=1)
    shown = teacher.ask([Query("example")] * 5 + [Query("activation", taught.passages[7])])
    assert teacher.asked == 6
    for answer in shown:
        text = text_of([list(answer.query.passage)], taught.vocabulary)
        assert np.array_equal(answer.activation, Matcher(text).predict(EASY))
    assert all(answer.activation.max() == 2 for answer in shown[:5])
    assert len({answer.query.passage for answer in shown[:5]}) == 5


def test_an_edit_costs_two_and_shows_both_texts() -> None:
    taught, _ = corpora()
    teacher = RuleTeacher(EASY, taught)
    first, second = taught.passages[0], taught.passages[1][:5]
    (answer,) = teacher.ask([Query("edit", first, second)])
    assert teacher.asked == 2
    assert [len(values) for _, values in answer.shown] == [len(first), 5]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("activation"), "empty"),
        (Query("activation", (10**6,)), "token does not exist"),
        (Query("ablation", (1,)), "no such tool"),
    ],
)
def test_teachers_refuse(query: Query, message: str) -> None:
    with pytest.raises(MechlabError, match=message):
        RuleTeacher(EASY, corpora()[0]).ask([query])


def test_nobody_can_be_shown_what_is_active_nowhere() -> None:
    never = parse_rule("fires (1) on 'xyzzy'")
    with pytest.raises(MechlabError, match="active nowhere"):
        RuleTeacher(never, corpora()[0]).ask([Query("example")])
    with pytest.raises(MechlabError, match="cannot be quizzed"):
        make_quiz(RuleTeacher(never, corpora()[0]), corpora()[1])


def test_a_tenth_of_the_answers_is_flipped() -> None:
    taught, _ = corpora()
    queries = [Query("activation", passage) for passage in taught.passages[:200]]
    clean = np.concatenate([a.activation for a in RuleTeacher(EASY, taught).ask(queries)])
    noisy_teacher = NoisyTeacher(RuleTeacher(EASY, taught), 0.1, seed=1)
    noisy = np.concatenate([a.activation for a in noisy_teacher.ask(queries)])
    flipped = (clean > 0) != (noisy > 0)
    assert abs(flipped.mean() - 0.1) < 3 * (0.09 / len(clean)) ** 0.5
    assert noisy_teacher.asked == 200
    with pytest.raises(MechlabError, match="out of range"):
        NoisyTeacher(noisy_teacher, 1.5)


def test_a_student_may_not_ask_for_more_than_its_budget() -> None:
    taught, held_out = corpora()

    class Greedy(PassiveStudent):
        def ask(self, budget: int) -> list[Query]:
            return [Query("random")] * (budget + 1)

    quiz = make_quiz(RuleTeacher(EASY, taught), held_out)
    with pytest.raises(MechlabError, match="more than it may"):
        lesson(Greedy(taught), RuleTeacher(EASY, taught), quiz)
    teacher = RuleTeacher(EASY, taught)
    lesson(RuleStudent(taught), teacher, quiz, turns=4, budget=3)
    assert teacher.asked == 12


def test_quizzes_are_balanced_and_held_out() -> None:
    taught, held_out = corpora()
    wrong = np.zeros(len(held_out.text), bool)
    wrong[Matcher(held_out.text).rows(parse_rule("fires (1) on tokens that end in 'd'"))[0]] = True
    quiz = make_quiz(RuleTeacher(EASY, taught), held_out, wrong=wrong, explanations=("true", "near", "far"))
    assert quiz.label.sum() == 24
    assert np.bincount(quiz.kind).tolist() == [24, 12, 12]
    for passage, at, label, kind in zip(quiz.passages, quiz.at, quiz.label, quiz.kind, strict=True):
        word = held_out.vocabulary.texts[passage[int(at)]]
        assert word.endswith("ed") == label
        assert kind != 1 or word.endswith("d")
    assert quiz.choices[0][quiz.right[0]] == "true"


def test_marks_by_hand() -> None:
    label = np.array([True, True, False, False])
    quiz = Quiz(((1,),) * 4, np.zeros(4, int), label, np.array([0, 0, 1, 2]), (("a", "b", "c"),), (1,))
    got = marks(quiz, QuizAnswers(np.array([0.9, 0.5, 0.2, 0.7]), (np.array([0.4, 0.4, 0.2]),)))
    assert (got.detection, got.choice, got.quiz) == pytest.approx((0.625, 0.5, 0.5625))


def test_asking_finds_an_exception_that_examples_do_not_show() -> None:
    taught, _ = corpora()
    rule = parse_rule("fires (2) on ' the' and not right after ' in'")
    assert taught_by(rule, RuleStudent(taught, seed=0), turns=6) >= 0.95


def test_learns_with_a_tenth_of_the_answers_wrong() -> None:
    taught, _ = corpora()
    assert taught_by(EASY, RuleStudent(taught, seed=1), turns=6, rate=0.1) >= 0.9


def test_same_seed_same_dialogue() -> None:
    taught, held_out = corpora()
    quiz = make_quiz(RuleTeacher(EASY, taught), held_out)

    def dialogue(seed: int) -> list[tuple[int, ...]]:
        found = lesson(RuleStudent(taught, seed=seed), RuleTeacher(EASY, taught), quiz, turns=3)
        return [answer.query.passage for turn in found.answers for answer in turn]

    assert dialogue(0) == dialogue(0) != dialogue(1)


def test_all_conditions_with_curves(tmp_path: Path) -> None:
    taught, held_out = corpora()
    found = investigate(
        lambda seed: RuleTeacher(EASY, taught, seed=seed), taught, held_out, turns=3, seeds=(0, 1),
        weak=lambda seed: NoisyTeacher(RuleTeacher(EASY, taught, seed=seed), 0.05, seed=seed),
    )  # fmt: skip
    curves = found.curves
    assert set(curves.values) == {
        "active", "passive", "noisy", "noisy passive", "weak", "oracle", "chance", "borrowed",
    }  # fmt: skip
    assert curves.turns == 3
    assert curves.score("oracle", 3).value == 1
    assert curves.score("active", 0).value == 0.5
    assert curves.score("active", 3).null is not None
    assert len(found.lessons[0].sentences) == 3
    assert found.lessons[0].explanation is not None
    assert parse_rule(found.lessons[0].explanation.text) == found.lessons[0].explanation.rule
    save_curves(curves, tmp_path / "curves", config={}, seed=0, inputs={})
    again = load_curves(tmp_path / "curves")
    assert again.to_dict() == curves.to_dict()
    assert len(curves.figure().data) >= len(curves.values)
    with pytest.raises(MechlabError, match="no such condition"):
        curves.score("activ", 1)
    with pytest.raises(MechlabError, match="too few seeds"):
        investigate(lambda seed: RuleTeacher(EASY, taught), taught, held_out, seeds=(0,))


def test_differences_are_paired_by_hand() -> None:
    left = np.array([[0.0, 0.9], [0.0, 0.5], [0.0, np.nan]])
    right = np.array([[0.0, 0.8], [0.0, 0.3], [0.0, 0.4]])
    curves = Curves("rule", {"a": {"quiz": left}, "b": {"quiz": right}}, {}, 1.0)
    assert curves.difference("a", "b", 1).value == pytest.approx(0.15)
    assert curves.score("a", 1).value == pytest.approx(0.7)


def test_a_borrowed_transcript_teaches_what_it_holds() -> None:
    taught, held_out = corpora()
    quiz = make_quiz(RuleTeacher(EASY, taught), held_out)
    lent = lesson(RuleStudent(taught, seed=0), RuleTeacher(EASY, taught), quiz, turns=3)
    reader = BorrowedStudent(taught, lent.answers)
    read = lesson(reader, RuleTeacher(EASY, taught), quiz, turns=3)
    assert reader.seen == [answer.query.passage for turn in read.answers for answer in turn]
    assert len(reader.seen) == 6
