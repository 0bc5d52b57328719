"""A language model that predicts activations token by token, and one that writes texts to try.

The model is shown the tokens as a numbered list and answers with one whole number for each. Where the
server tells log-probabilities the prediction is the expected number (Bills et al. 2023), else the number.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechlab.features.explanations import Explanation
from mechlab.features.llm import prompts
from mechlab.features.llm.client import Failure, Message, Reply, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.reading import number_odds
from mechlab.features.llm.schema import STRING, listing, parse, record
from mechlab.features.llm.showing import parts
from mechlab.features.scoring.simulation import LEVELS, expected_level
from mechlab.features.text import Text

_TOP = 15


class LlmSimulator:
    """A ``Simulator`` (``mechlab.features.scoring.simulators``); predictions are levels from 0 to 10.

    Args:
        job: who is asked.
        logprobs: whether to ask for log-probabilities.

    Attributes:
        failures: windows without an answer so far, by kind.
    """

    def __init__(self, job: LlmJob, *, logprobs: bool = True, temperature: float | None = 0.0) -> None:
        self._job, self._logprobs, self._temperature = job, logprobs, temperature
        self.failures: Counter[str] = Counter()

    def __call__(
        self, explanation: Explanation, text: Text, start: Int[np.ndarray, "window"], width: int
    ) -> Float[np.ndarray, "window pos"]:
        """Predicted levels; NaN on all of a window without an answer. MechlabError as ``LlmJob.run``."""
        pieces = [parts(text.tokens[at : at + width], text) for at in start.tolist()]
        requests = [self._request(explanation, each) for each in pieces]
        predicted = np.full((len(start), width), math.nan)
        for row, (outcome, request) in enumerate(zip(self._job.run(requests), requests, strict=True)):
            if isinstance(outcome, Failure):
                self.failures[outcome.kind] += 1
                continue
            levels = _levels(outcome, request, len(pieces[row]))
            for level, (_, first, last) in zip(levels, pieces[row], strict=True):
                predicted[row, first:last] = level
        return predicted

    def _request(self, explanation: Explanation, pieces: Sequence[tuple[str, int, int]]) -> Request:
        lines = (
            f"{number}: {json.dumps(said, ensure_ascii=False)}"
            for number, (said, _, _) in enumerate(pieces, 1)
        )
        said = f"The feature responds to: {explanation.text}\n\n" + "\n".join(lines)
        level = {"type": "integer", "minimum": 0, "maximum": LEVELS}
        return Request(
            (Message("system", prompts.SIMULATE), Message("user", said)),
            self._job.client.model,
            max_tokens=32 + 8 * len(pieces),
            temperature=self._temperature,
            schema=record(activations=listing(level, len(pieces))),
            logprobs=_TOP if self._logprobs else 0,
        )


def _levels(reply: Reply, request: Request, count: int) -> list[float]:
    odds = number_odds(reply, "activations", count)
    if odds is not None:
        return [expected_level(each) for each in odds]
    return [float(each) for each in parse(reply.text, request.schema or {})["activations"]]


@dataclass(frozen=True)
class Written:
    """Texts that were written for an explanation.

    Attributes:
        positive: in which the feature should be active.
        negative: in which it should be silent.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def write_texts(
    job: LlmJob, explanations: Sequence[Explanation], count: int = 10, *, temperature: float | None = 0.0
) -> list[Written | Failure]:
    """``count`` texts of either kind for every explanation, or why there are none.

    Source: Singh et al. (2023, arXiv 2305.09863), *Explaining black box text modules in natural language*.
    Raises MechlabError as ``LlmJob.run`` does.
    """
    requests = [
        Request(
            (
                Message("system", prompts.WRITE),
                Message(
                    "user", f"The feature responds to: {each.text}\n\nWrite {count} texts of either kind."
                ),
            ),
            job.client.model,
            max_tokens=200 + 160 * count,
            temperature=temperature,
            schema=record(positive=listing(STRING, count), negative=listing(STRING, count)),
        )
        for each in explanations
    ]
    found: list[Written | Failure] = []
    for outcome, request in zip(job.run(requests), requests, strict=True):
        if isinstance(outcome, Reply):
            texts = parse(outcome.text, request.schema or {})
            found.append(Written(tuple(texts["positive"]), tuple(texts["negative"])))
        else:
            found.append(outcome)
    return found
