"""Drawing the items of every test, and putting them to the judge.

Every explanation is judged on its own feature's items and, as the control, on those of another
feature; each is lent once, where every feature has one by this explainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mechlab.features.explanations import Explanation
from mechlab.features.scoring.detection import detection_items, hard_items
from mechlab.features.scoring.fuzzing import fuzzing_items
from mechlab.features.scoring.held import Held
from mechlab.features.scoring.intruder import intruder_items
from mechlab.features.scoring.items import BatchJudge, Items, Judge, Question, are_graded, ask
from mechlab.features.scoring.metrics import lenders
from mechlab.features.scoring.scorecard import Unscored
from mechlab.features.text import Text

TESTS: Mapping[str, Callable[[Held, int, np.random.Generator], Items | str]] = {
    "detection": detection_items,
    "hard": hard_items,
    "fuzzing": fuzzing_items,
    "intruder": intruder_items,
}
"""Name → draws the items of one feature, or says why it cannot."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Asked:
    """One explanation in one test.

    Attributes:
        test: its name.
        explanation: of the feature.
        items: of the feature.
        lender: another feature's explanation to judge the same items by; None where there is no other.
    """

    test: str
    explanation: Explanation
    items: Items
    lender: Explanation | None


@dataclass(frozen=True, eq=False)
class Answered:
    """What the judge said: one answer per item, of the explanation and of its control.

    Attributes:
        graded: true when some answer in this test is neither 0 nor 1.
    """

    asked: Asked
    own: Float[np.ndarray, "item"]
    lent: Float[np.ndarray, "item"] | None
    graded: bool


def draw(
    held: Held, test: str, explanations: Sequence[Explanation], seed: int
) -> tuple[list[Asked], list[Unscored]]:
    """The items of one test for every explanation.

    Args:
        seed: items follow from it, the test and the feature's number.
    """
    drawn: dict[int, Items | str] = {}
    groups: dict[str, list[Asked]] = {}
    unscored: list[Unscored] = []
    number = list(TESTS).index(test)
    for explanation in explanations:
        feature = explanation.feature
        if feature not in drawn:
            drawn[feature] = TESTS[test](held, feature, np.random.default_rng([seed, feature, number]))
        items = drawn[feature]
        if isinstance(items, str):
            unscored.append(Unscored(feature, explanation.explainer, test, items))
        else:
            asked = Asked(test, explanation, items, None)
            groups.setdefault(explanation.explainer, []).append(asked)
    generator = np.random.default_rng([seed, number])
    return [asked for group in groups.values() for asked in _lend(group, generator)], unscored


def _lend(group: list[Asked], generator: np.random.Generator) -> list[Asked]:
    """With lenders: explanations of other features by the same explainer."""
    others = lenders([asked.explanation.feature for asked in group], generator)
    if others is None:
        return group
    return [
        replace(asked, lender=group[other].explanation) for asked, other in zip(group, others, strict=True)
    ]


def put(
    judge: Judge | BatchJudge, text: Text, asked: Sequence[Asked], progress: Progress | None
) -> list[Answered]:
    """All answers. Questions about one explanation come together, in order of its feature."""
    questions: list[tuple[tuple[int, str, int], bool, Question]] = []
    for place, each in enumerate(asked):
        for speaker, lent in ((each.explanation, False), (each.lender, True)):
            if speaker is not None:
                key = (speaker.feature, speaker.explainer, place)
                questions.append((key, lent, Question(speaker, each.items)))
    questions.sort(key=lambda question: question[0])
    given = ask(judge, text, [question for _, _, question in questions], progress)
    answers = {(key[2], lent): answer for (key, lent, _), answer in zip(questions, given, strict=True)}
    graded = {
        test: are_graded([answer for (place, _), answer in answers.items() if asked[place].test == test])
        for test in {each.test for each in asked}
    }
    return [
        Answered(each, answers[place, False], answers.get((place, True)), graded[each.test])
        for place, each in enumerate(asked)
    ]
