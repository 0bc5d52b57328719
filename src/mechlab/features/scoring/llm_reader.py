"""A language model behind a server as the scorer of an intervention.

Servers do not tell how likely a given text is, so log p(explanation | passage) is replaced by
log P(yes) to the question whether the passage contains much of what the explanation says. By Bayes'
rule the two differ by what does not depend on the passage, as far as the model's answers are
calibrated; differences between steered and clean passages can therefore be compared with those of a
local reader, but not in size.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from mechlab.features.llm.client import Message, Reply, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.reading import number_odds, share_of_one
from mechlab.features.llm.schema import listing, parse, record
from mechlab.features.scoring.intervention import Plausibility

_ASK = (
    "You are given a passage and a description. Does the passage contain an unusual amount of what the "
    'description says? Answer with a JSON object {"answers": [1]} for yes or {"answers": [0]} for no.'
)
_TOP = 5
# Probability of an answer that is given without odds: it is not certain, and log 0 has no mean.
_SURE = 0.99


def llm_reader(job: LlmJob, *, logprobs: bool = True, temperature: float | None = 0.0) -> Plausibility:
    """log P(yes) of each passage; NaN where there is no answer.

    Args:
        job: who is asked, with its cache and budget.
        logprobs: whether to ask for log-probabilities; without them an answer counts as 0.99 or 0.01.
    """
    schema = record(answers=listing({"type": "integer", "minimum": 0, "maximum": 1}, 1))

    def plausibility(passages: list[str], explanation: str) -> Float[np.ndarray, "passage"]:
        requests = [
            Request(
                (
                    Message("system", _ASK),
                    Message("user", f"Passage:\n{passage}\n\nDescription: {explanation}"),
                ),
                job.client.model,
                max_tokens=30,
                temperature=temperature,
                schema=schema,
                logprobs=_TOP if logprobs else 0,
            )
            for passage in passages
        ]
        found = np.full(len(passages), math.nan)
        for place, reply in enumerate(job.run(requests)):
            if isinstance(reply, Reply):
                odds = number_odds(reply, "answers", 1)
                said = int(parse(reply.text, schema)["answers"][0])
                yes = share_of_one(odds[0]) if odds is not None else (_SURE if said else 1 - _SURE)
                found[place] = math.log(min(max(yes, 1 - _SURE), _SURE))
        return found

    return plausibility
