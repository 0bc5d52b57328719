"""What judges are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.text import Text

ACTIVE, MARKED, INTRUDER = "active", "marked", "intruder"
"""What is asked of each item: is the feature active in the window; are the marked tokens those on
which it is active; which window of each group is the one without the feature (the highest answer)."""

RANDOM, NEAR_MISS, MISPLACED = 0, 1, 2
"""Kinds of negatives: a random window without the feature, one in which a neighbour of it is active,
and one with the feature in which other tokens are marked."""


@dataclass(frozen=True, eq=False)
class Items:
    """Windows of one width that a judge is asked about, in random order.

    A judge must not look at ``label`` or ``group`` (except to tell the groups of an intruder test
    apart); they are for the scorer.

    Attributes:
        start: first row of each window.
        width: tokens per window.
        label: the right answer.
        marks: tokens that are marked, where some are.
        document: document of each window.
        group: rank-quantile of a positive (0 the strongest) or kind of a negative; in an intruder
            test the number of the group.
        asks: "active", "marked" or "intruder".
    """

    start: Int[np.ndarray, "item"]
    width: int
    label: Bool[np.ndarray, "item"]
    marks: Bool[np.ndarray, "item width"] | None
    document: Int[np.ndarray, "item"]
    group: Int[np.ndarray, "item"]
    asks: str = ACTIVE

    def __len__(self) -> int:
        return len(self.start)

    def rows(self) -> Int[np.ndarray, "item width"]:
        """Rows of every window."""
        rows: np.ndarray = self.start[:, None] + np.arange(self.width)
        return rows

    def take(self, order: Int[np.ndarray, "taken"] | Bool[np.ndarray, "item"]) -> Items:
        """Some of the items, or all in another order."""
        return Items(
            self.start[order],
            self.width,
            self.label[order],
            None if self.marks is None else self.marks[order],
            self.document[order],
            self.group[order],
            self.asks,
        )


@runtime_checkable
class Judge(Protocol):
    """Answers for one explanation how likely each item is a positive; NaN where it has no answer.

    Answers that are only 0 and 1 are measured by balanced accuracy; a judge that gives anything
    else in a run gives degrees, and is measured by AUROC.
    """

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        """One answer per item."""
        ...


@dataclass(frozen=True, eq=False)
class Question:
    """One explanation and the items to judge by it."""

    explanation: Explanation
    items: Items


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that would rather have all questions at once, to ask them of a server in parallel."""

    def answer_all(self, text: Text, questions: Sequence[Question]) -> list[Float[np.ndarray, "_"]]:
        """The answers to every question, as ``Judge`` gives them."""
        ...


def ask(
    judge: Judge | BatchJudge,
    text: Text,
    questions: Sequence[Question],
    progress: Callable[[int, int], None] | None = None,
) -> list[Float[np.ndarray, "_"]]:
    """All answers of a judge, in the order of the questions.

    Args:
        progress: told how many questions are answered, and of how many.

    Raises MechlabError when a judge does not give one number per item.
    """
    if isinstance(judge, BatchJudge):
        answers = judge.answer_all(text, questions)
    else:
        answers = []
        for question in questions:
            answers.append(judge(question.explanation, text, question.items))
            if progress is not None:
                progress(len(answers), len(questions))
    for question, answer in zip(questions, answers, strict=True):
        if answer.shape != question.items.start.shape:
            raise MechlabError(
                "a judge must give one answer per item",
                f"{answer.shape} for {len(question.items)} items",
                "give NaN where there is no answer",
            )
    return answers


def are_graded(answers: Sequence[Float[np.ndarray, "_"]]) -> bool:
    """True when some answer is neither 0 nor 1 nor missing."""
    return any(bool(((each != 0) & (each != 1) & ~np.isnan(each)).any()) for each in answers)
