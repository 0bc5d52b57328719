"""Whether a language model can be trusted as a judge: measured, beside every score it gives.

Probes, all on the same items:

- order: do its verdicts stay when every batch is reversed?
- wording: do they stay under other instructions that ask the same?
- explanation: do they change, more than by order or wording, when another feature's explanation is shown?
  Those of a judge that looks at the windows only do not. Whether they are then less often right is no
  test: where the explanations are poor they are not, however good the judge.
- yes rate: half the items are positives; does it say yes (or no) whatever is asked?
- blind: without an explanation, can it tell positives all the same? Then the items give themselves away.
- own words: it rewrites every explanation, nothing added; is it more often right by its own words?
  That is self-preference at equal truth.

Sources: position bias and self-preference of judges: Zheng et al. (2023, arXiv 2306.05685), Panickssery
et al. (2024, arXiv 2404.13076); the probes are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.llm import prompts
from mechlab.features.llm.client import Message, Reply, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.judge import BATCH, LlmJudge
from mechlab.features.llm.schema import STRING, parse, record
from mechlab.features.scoring.items import INTRUDER, Question
from mechlab.features.scoring.metrics import balanced_accuracy, derangement, difference, lenders, share
from mechlab.features.text import Text
from mechlab.scores import Score, ratio, score

STEADY = 0.8
"""Share of the verdicts that must survive another order, and other instructions."""
EXTREME = 0.05
"""A yes rate nearer to 0 or 1 than this is no judging."""
GIVEN_AWAY = 0.55
"""Balanced accuracy that is surely reached without an explanation, and must not be."""
LOST = 0.1
"""Share of items without an answer that may be."""

Answers = list[Float[np.ndarray, "_"]]


@dataclass(frozen=True)
class Audit:
    """What the probes found.

    Attributes:
        scores: "order", "wording" and "explanation" (share of verdicts that stay; null: with a verdict on
            another item; the last is NaN when all questions are about one feature), "yes rate", "blind"
            (balanced accuracy without an explanation), "own words" (gain in balanced accuracy; null: the
            gain from reversing batches), "no answer" (share of items).
        problems: what makes the judge unfit, in words; none: it is usable.
    """

    scores: Mapping[str, Score]
    problems: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing is wrong with the judge."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """ "usable", or what is wrong."""
        return "usable" if self.usable else "; ".join(self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        scores = {name: each.to_dict() for name, each in self.scores.items()}
        return {"verdict": self.verdict, "problems": list(self.problems), "scores": scores}


def audit_judge(
    job: LlmJob, text: Text, questions: Sequence[Question], *, batch: int = BATCH, seed: int = 0
) -> Audit:
    """Audit the job's model as a judge on some of the questions that it is to answer.

    Costs six times as much as judging the questions once (less what is cached). A few hundred items
    suffice for intervals of ± 0.05.

    Raises MechlabError for intruder tests, for no questions, and as ``LlmJob.run`` does.
    """
    if not questions or any(question.items.asks == INTRUDER for question in questions):
        raise MechlabError("judge cannot be audited on these", len(questions), "give detection or fuzzing")

    def answers(given: Sequence[Question], **options: Any) -> Answers:
        return LlmJudge(job, batch=batch, seed=seed, **options).answer_all(text, given)

    plain = answers(questions)
    backwards = answers(questions, reverse=True)
    reworded = answers(questions, wording=1)
    others = lenders([each.explanation.feature for each in questions], np.random.default_rng(seed)) or []
    lent = answers(
        [Question(questions[other].explanation, questions[place].items) for place, other in enumerate(others)]
    )
    blind = answers([_saying(question, "") for question in questions])
    rewritten = own_words(job, [question.explanation for question in questions])
    kept = [place for place, each in enumerate(rewritten) if each is not None]
    mine = [_saying(questions[place], rewritten[place] or "") for place in kept]
    own = answers(mine)

    every = np.concatenate([*plain, *backwards, *reworded, *lent, *blind, *own])
    known = _verdicts(plain)[~np.isnan(np.concatenate(plain))]
    same = [questions[place] for place in kept]
    gain = _gain("own words", same, own, [plain[place] for place in kept], seed)
    noise = _gain("own words, control", questions, backwards, plain, seed)
    scores = {
        "order": _agreement("order", plain, backwards, seed),
        "wording": _agreement("wording", plain, reworded, seed),
        "explanation": _agreement("explanation", plain[: len(lent)], lent, seed),
        "yes rate": share("yes rate", int(known.sum()), len(known), chance=0.5),
        "blind": _accuracy("blind", questions, blind),
        "own words": replace(gain, null=noise, chance=0.0),
        "no answer": share("no answer", int(np.isnan(every).sum()), len(every)),
    }
    return Audit(scores, tuple(_problems(scores)))


def own_words(job: LlmJob, explanations: Sequence[Explanation]) -> list[str | None]:
    """Every explanation in the words of the job's model; None where it gave none."""
    requests = [
        Request(
            (Message("system", prompts.REPHRASE), Message("user", f"The feature responds to: {each.text}")),
            job.client.model,
            max_tokens=80 + len(each.text.encode()),
            schema=record(explanation=STRING),
        )
        for each in explanations
    ]
    found: list[str | None] = []
    for outcome, request in zip(job.run(requests), requests, strict=True):
        told = parse(outcome.text, request.schema or {}) if isinstance(outcome, Reply) else None
        found.append(None if told is None else " ".join(told["explanation"].split()) or None)
    return found


def _saying(question: Question, words: str) -> Question:
    return Question(replace(question.explanation, text=words, rule=None), question.items)


def _verdicts(answers: Answers) -> Bool[np.ndarray, "item"]:
    verdicts: np.ndarray = np.concatenate(answers) >= 0.5
    return verdicts


def _agreement(name: str, one: Answers, other: Answers, seed: int) -> Score:
    if not one:
        return share(name, 0, 0)
    known = ~np.isnan(np.concatenate(one)) & ~np.isnan(np.concatenate(other))
    left, right = _verdicts(one)[known], _verdicts(other)[known]
    if len(left) < 2:
        return share(name, 0, 0)
    moved = right[derangement(len(right), np.random.default_rng(seed))]
    # Two verdicts that know nothing of each other still agree as often as their rates of yes make them.
    p, q = float(left.mean()), float(right.mean())
    chance = p * q + (1 - p) * (1 - q)
    null = share(f"{name}, another item", int((left == moved).sum()), len(left), chance=chance)
    return replace(share(name, int((left == right).sum()), len(left), chance=chance), null=null)


def _accuracy(name: str, questions: Sequence[Question], answers: Answers) -> Score:
    label = np.concatenate([question.items.label for question in questions])
    known = ~np.isnan(np.concatenate(answers))
    return balanced_accuracy(name, _verdicts(answers)[known], label[known], int(known.sum()))


def _gain(name: str, questions: Sequence[Question], one: Answers, other: Answers, seed: int) -> Score:
    """Balanced accuracy of one set of answers less that of another; documents are the units."""
    if not questions:
        return Score(name, math.nan, math.nan, math.nan, 0)
    label = np.concatenate([question.items.label for question in questions])
    document = np.concatenate([question.items.document for question in questions])
    known = ~np.isnan(np.concatenate(one)) & ~np.isnan(np.concatenate(other))
    columns = [label, ~label]
    for answers in (one, other):
        yes = _verdicts(answers)
        columns += [yes & label, ~yes & ~label]
    units, unit = np.unique(document, return_inverse=True)
    sums = np.zeros((len(units), len(columns)))
    np.add.at(sums, unit[known], np.stack(columns, axis=1)[known].astype(np.float64))
    return score(name, sums, _difference, seed=seed, chance=0.0)


def _difference(totals: Float[np.ndarray, "resample 6"]) -> Float[np.ndarray, "resample"]:
    value: np.ndarray = (
        ratio(totals[:, 2] - totals[:, 4], totals[:, 0]) + ratio(totals[:, 3] - totals[:, 5], totals[:, 1])
    ) / 2
    return value


def _problems(scores: Mapping[str, Score]) -> list[str]:
    found = []
    if not scores["no answer"].value <= LOST:
        found.append(f"no answer to {scores['no answer'].value:.0%} of the items")
    for name, what in (("order", "the order of the items"), ("wording", "the wording of the instructions")):
        if not scores[name].value >= STEADY:
            found.append(f"verdicts depend on {what} (only {scores[name].value:.0%} stay)")
    rate = scores["yes rate"].value
    if not EXTREME < rate < 1 - EXTREME:
        found.append(f"says {'yes' if rate > 0.5 else 'no'} whatever it is asked ({rate:.0%} yes)")
    elif scores["explanation"].n:
        steadiest = max(scores["order"], scores["wording"], key=lambda each: each.value)
        if not difference("explanation", steadiest, scores["explanation"]).low > 0:
            stay = f"{scores['explanation'].value:.0%} stay by another feature's"
            found.append(f"verdicts do not depend on the explanation ({stay})")
    if scores["blind"].low > GIVEN_AWAY:
        found.append(f"is right without an explanation ({scores['blind'].value:.2f})")
    if scores["own words"].low > 0:
        found.append(f"prefers its own words (by {scores['own words'].value:.2f})")
    return found
