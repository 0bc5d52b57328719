"""The quiz after every turn: held-out tokens to judge, and explanations to choose among.

Detection: is the feature active on one marked token of a passage? Half of the items are active. Of
the inactive ones, half are near misses: tokens on which a plausible but wrong explanation fires, or
else tokens like the active ones (the same word, or after the same word); the rest are random.
Active items come half from where the wrong explanation is silent, where there is such a place.

Choice: which of three explanations is the feature's: the true one, the plausible but wrong one, or
that of another feature (the FIND benchmark asks in threes too; Schwettmann et al. 2023, arXiv 2309.03886).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError
from mechlab.features.investigate.fragments import Fragments, Passage
from mechlab.features.investigate.teachers import Teacher

ACTIVE, NEAR, RANDOM = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Quiz:
    """Questions about one feature.

    Attributes:
        passages: of each item.
        at: the marked token of each.
        label: whether the feature is active there.
        kind: 0 active, 1 near miss, 2 random.
        choices: for each choice question the explanations offered.
        right: which of them is true.
    """

    passages: tuple[Passage, ...]
    at: Int[np.ndarray, "item"]
    label: Bool[np.ndarray, "item"]
    kind: Int[np.ndarray, "item"]
    choices: tuple[tuple[str, ...], ...] = ()
    right: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class QuizAnswers:
    """What a student believes: the probability that each item is active, and that each choice is right."""

    detection: Float[np.ndarray, "item"]
    choices: tuple[Float[np.ndarray, "_"], ...] = ()


@dataclass(frozen=True)
class Marks:
    """Results of one quiz, as shares of right answers; ties count in parts.

    Attributes:
        detection: mean of the shares over active and over inactive items (chance 1/2).
        choice: over choice questions (chance 1/3); NaN without any.
    """

    detection: float
    choice: float

    @property
    def quiz(self) -> float:
        """The combined metric: the mean of both, or detection where nothing was to be chosen."""
        return self.detection if np.isnan(self.choice) else (self.detection + self.choice) / 2


def marks(quiz: Quiz, answers: QuizAnswers) -> Marks:
    """A quiz marked. Half a point for a probability of exactly 1/2, a part of one for tied choices."""
    said = answers.detection
    points = np.where(said == 0.5, 0.5, ((said > 0.5) == quiz.label).astype(np.float64))
    detection = (points[quiz.label].mean() + points[~quiz.label].mean()) / 2
    chosen = [
        float(probability[right] == probability.max()) / float((probability == probability.max()).sum())
        for probability, right in zip(answers.choices, quiz.right, strict=True)
    ]
    return Marks(float(detection), float(np.mean(chosen)) if chosen else float("nan"))


def make_quiz(
    teacher: Teacher,
    fragments: Fragments,
    *,
    items: int = 48,
    wrong: Bool[np.ndarray, "row"] | None = None,
    explanations: tuple[str, str, str] | None = None,
    seed: int = 0,
) -> Quiz:
    """A quiz on passages that nobody is taught with.

    Args:
        teacher: knows the truth; asking it here is not counted.
        fragments: held-out passages.
        items: detection items, an even number.
        wrong: the rows of the fragments on which a plausible but wrong explanation fires.
        explanations: the true one, the wrong one and another feature's; no choice without them.

    Raises MechlabError when the feature is active on too few passages, or on nearly all tokens.
    """
    generator = np.random.default_rng(seed)
    text = fragments.text
    active = np.concatenate(teacher.activations(fragments.passages)) > 0
    fires = np.zeros(len(text), bool) if wrong is None else wrong
    half = items // 2
    missed = _draw(active & ~fires, half // 2 if wrong is not None else 0, generator)
    hit = _draw(active, half, generator, missed)[: half - len(missed)]
    positive = np.concatenate([missed, hit])
    near = _draw(fires & ~active, half // 2, generator)
    if len(near) < half // 2:
        near = np.concatenate([near, _draw(_alike(fragments, active), half // 2, generator, near)])
        near = near[: half // 2]
    other = _draw(~active, half, generator, near)[: half - len(near)]
    if len(positive) < half or len(near) + len(other) < half:
        raise MechlabError(
            "feature cannot be quizzed on these documents",
            f"active on {int(active.sum())} of {len(active)} tokens",
            f"give documents with at least {half} active and inactive tokens",
        )
    rows = np.concatenate([positive, near, other])
    kind = np.repeat([ACTIVE, NEAR, RANDOM], [len(positive), len(near), len(other)])
    order = generator.permutation(len(rows))
    rows, kind = rows[order], kind[order]
    passage = text.passage[rows]
    choices, right = _choice(explanations, generator)
    return Quiz(
        tuple(fragments.passages[int(each)] for each in passage),
        rows - text.bounds[passage],
        active[rows],
        kind,
        choices,
        right,
    )


def _choice(
    explanations: tuple[str, str, str] | None, generator: np.random.Generator
) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
    if explanations is None:
        return (), ()
    order = generator.permutation(3).tolist()
    return (tuple(explanations[each] for each in order),), (order.index(0),)


def _draw(
    rows: Bool[np.ndarray, "row"],
    count: int,
    generator: np.random.Generator,
    taken: Int[np.ndarray, "taken"] | None = None,
) -> Int[np.ndarray, "drawn"]:
    """Up to ``count`` of the true rows that are not taken yet, at random."""
    free = np.flatnonzero(rows)
    if taken is not None:
        free = np.setdiff1d(free, taken)
    return generator.permutation(free)[:count]


def _alike(fragments: Fragments, active: Bool[np.ndarray, "row"]) -> Bool[np.ndarray, "row"]:
    """Inactive rows whose token, or whose previous token, some active row has too."""
    text = fragments.text
    before = np.where(text.starts, -1, np.roll(text.tokens, 1))
    same = np.isin(text.tokens, text.tokens[active]) | (np.isin(before, before[active]) & ~text.starts)
    alike: np.ndarray = same & ~active
    return alike
