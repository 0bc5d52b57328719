"""Planted rules to investigate, with the corpora they are taught and quizzed on."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from mechlab.errors import MechlabError
from mechlab.features.investigate.fragments import Fragments, fragments_of
from mechlab.features.investigate.quiz import Quiz, make_quiz
from mechlab.features.investigate.teachers import RuleTeacher
from mechlab.features.planted.features import KINDS, NOISE, Planted, plant_rules
from mechlab.features.rules import Matcher
from mechlab.features.text import Text

# Passages of a corpus, at most, and tokens of the documents they are cut from, at least.
PASSAGES = 2000


@dataclass(frozen=True, eq=False)
class Room:
    """Where rules are taught and quizzed.

    Attributes:
        taught: the corpus of teachers and students.
        held_out: that of quizzes; passages of other documents.
    """

    taught: Fragments
    held_out: Fragments

    @functools.cached_property
    def matchers(self) -> tuple[Matcher, Matcher]:
        """Of both corpora."""
        return Matcher(self.taught.text), Matcher(self.held_out.text)

    def teacher(self, planted: Planted, *, seed: int) -> RuleTeacher:
        """A planted rule's teacher."""
        assert planted.rule is not None
        return RuleTeacher(planted.rule, self.taught, seed=seed, matcher=self.matchers[0])

    def quiz(self, planted: Planted, other: Planted, *, seed: int) -> Quiz:
        """A quiz on a planted rule, ``other`` being another feature's. MechlabError as ``make_quiz``."""
        assert planted.rule is not None
        assert planted.wrong is not None
        assert other.rule is not None
        wrong = np.zeros(len(self.held_out.text), bool)
        wrong[self.matchers[1].rows(planted.wrong)[0]] = True
        choice = (planted.rule.sentence(), planted.wrong.sentence(), other.rule.sentence())
        teacher = self.teacher(planted, seed=seed)
        return make_quiz(teacher, self.held_out, wrong=wrong, explanations=choice, seed=seed)


def room_of(taught: Text, held_out: Text, *, seed: int = 0) -> Room:
    """Passages of two texts that share no document."""
    return Room(fragments_of(taught, PASSAGES, seed=seed), fragments_of(held_out, PASSAGES, seed=seed + 1))


def plant_tasks(text: Text, room: Room, n_rules: int, *, seed: int = 0) -> tuple[Planted, ...]:
    """``n_rules`` planted rules, all kinds by turns, each of which can be quizzed in the room.

    Rules of few varieties (positions) may come again. Raises MechlabError when the text is too
    short to plant them.
    """
    kinds = [kind for kind in KINDS if kind != NOISE]
    found: list[Planted] = []
    for turn in range(20 * (n_rules // len(kinds) + 1)):
        for planted in plant_rules(text, per_kind=1, kinds=kinds, seed=seed + 1000 * turn):
            if len(found) < n_rules and _fits(planted, room):
                found.append(planted)
        if len(found) >= n_rules:
            return tuple(found)
    raise MechlabError("too few rules can be planted", f"{len(found)} of {n_rules}", "use a longer text")


def _fits(planted: Planted, room: Room) -> bool:
    """Whether the rule can be shown and quizzed on passages: not too rare there, nor too common."""
    if planted.rule is None or planted.wrong is None:
        return False
    for matcher in room.matchers:
        rows = matcher.rows(planted.rule)[0]
        if not 30 <= len(rows) <= len(matcher.text) // 2:
            return False
    return True
