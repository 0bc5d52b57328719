"""A language model as the judge of explanations: detection, fuzzing and the intruder test.

Items are asked about in small batches, in random order, after a few worked examples (Paulo et al.
2024, arXiv 2410.13928; the intruder test: Paulo & Belrose 2025, arXiv 2507.08473). Where the server
tells log-probabilities the answer is P("1") / (P("0") + P("1")), else 0 or 1. A batch whose answer
has another number of judgements than windows, or is refused or lost, has no answers at all: NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.llm import prompts
from mechlab.features.llm.client import Failure, Reply, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.reading import number_odds, share_of_one
from mechlab.features.llm.schema import listing, parse, record
from mechlab.features.llm.showing import placed, window
from mechlab.features.scoring.items import INTRUDER, Items, Question
from mechlab.features.text import Text

BATCH = 5
_TOP = 5


@dataclass(frozen=True, eq=False)
class _Asked:
    question: int
    items: Int[np.ndarray, "asked"]
    request: Request


class LlmJudge:
    """Puts items to a language model; a ``BatchJudge``, and a ``Judge`` for single questions.

    All batches of all questions are under way together, as far as the job's concurrency allows.

    Args:
        job: who is asked, with its cache and budget; the model is its client's.
        batch: windows in one prompt (intruder tests: a group each).
        logprobs: whether to ask for log-probabilities.
        wording: 0 or 1: two instructions that ask the same (for the audit).
        reverse: every batch in reversed order (for the audit).
        temperature: None leaves it to the provider.
        seed: of the order of the items.

    Attributes:
        failures: batches without an answer so far, by kind.
    """

    def __init__(
        self,
        job: LlmJob,
        *,
        batch: int = BATCH,
        logprobs: bool = True,
        wording: int = 0,
        reverse: bool = False,
        temperature: float | None = 0.0,
        seed: int = 0,
    ) -> None:
        if batch < 1:
            raise MechlabError("batch is too small", batch, "give at least 1")
        self._job, self._batch, self._logprobs = job, batch, logprobs
        self._wording, self._reverse, self._temperature, self._seed = wording, reverse, temperature, seed
        self.failures: Counter[str] = Counter()

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        """One answer per item."""
        return self.answer_all(text, [Question(explanation, items)])[0]

    def answer_all(self, text: Text, questions: Sequence[Question]) -> list[Float[np.ndarray, "_"]]:
        """One answer per item of every question, from 0 to 1; NaN where there is none.

        In an intruder test: how likely each window is the intruder of its group.
        Raises MechlabError as ``LlmJob.run`` does.
        """
        asked = self._asked(text, questions)
        answers = [np.full(len(question.items), math.nan) for question in questions]
        for each, outcome in zip(asked, self._job.run([each.request for each in asked]), strict=True):
            if isinstance(outcome, Failure):
                self.failures[outcome.kind] += 1
                continue
            intruder = questions[each.question].items.asks == INTRUDER
            read = _intruder if intruder else _yes
            answers[each.question][each.items] = read(outcome, each.request, len(each.items))
        return answers

    def requests(self, text: Text, questions: Sequence[Question]) -> list[Request]:
        """What ``answer_all`` would send, for an estimate."""
        return [each.request for each in self._asked(text, questions)]

    def _asked(self, text: Text, questions: Sequence[Question]) -> list[_Asked]:
        return [
            _Asked(number, which, self._request(text, question, which))
            for number, question in enumerate(questions)
            for which in self._batches(question.items)
        ]

    def _batches(self, items: Items) -> list[Int[np.ndarray, "asked"]]:
        order = np.random.default_rng(self._seed).permutation(len(items))
        if items.asks == INTRUDER:
            parts = [order[items.group[order] == group] for group in np.unique(items.group)]
        else:
            parts = [order[at : at + self._batch] for at in range(0, len(order), self._batch)]
        return [part[::-1] if self._reverse else part for part in parts]

    def _request(self, text: Text, question: Question, which: Int[np.ndarray, "asked"]) -> Request:
        items, count = question.items, len(which)
        windows, places = [], []
        for item in which.tolist():
            start = int(items.start[item])
            marks = None if items.marks is None else items.marks[item]
            windows.append(window(text, start, start + items.width, marks))
            places.append(placed(text, start))
        intruder = items.asks == INTRUDER
        if intruder:
            schema = record(intruder={"type": "integer", "minimum": 1, "maximum": count})
        else:
            schema = record(answers=listing({"type": "integer", "minimum": 0, "maximum": 1}, count))
        said = "" if intruder else question.explanation.text
        return Request(
            prompts.judging(items.asks, said, windows, places, items.width, self._wording),
            self._job.client.model,
            max_tokens=32 + 8 * count,
            temperature=self._temperature,
            schema=schema,
            logprobs=_TOP if self._logprobs else 0,
        )


def _yes(reply: Reply, request: Request, count: int) -> Float[np.ndarray, "asked"]:
    odds = number_odds(reply, "answers", count)
    if odds is not None:
        return np.array([share_of_one(each) for each in odds])
    return np.array(_parsed(reply, request)["answers"], np.float64)


def _intruder(reply: Reply, request: Request, count: int) -> Float[np.ndarray, "asked"]:
    odds = number_odds(reply, "intruder", 1)
    if odds is not None and count < 10:
        weights = np.array([math.exp(odds[0].get(str(n), -math.inf)) for n in range(1, count + 1)])
        shares: np.ndarray = weights / weights.sum()
        return shares
    answers = np.zeros(count)
    answers[_parsed(reply, request)["intruder"] - 1] = 1.0
    return answers


def _parsed(reply: Reply, request: Request) -> dict[str, Any]:
    found: dict[str, Any] = parse(reply.text, request.schema or {})
    return found
