"""What stands behind the numbers in an answer: how likely the model found the alternatives."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from mechlab.features.llm.client import Reply, TokenOdds
from mechlab.features.llm.schema import spotted

_NUMBER = re.compile(r"-?\d+")


def number_odds(reply: Reply, name: str, count: int) -> list[Mapping[str, float]] | None:
    """Log-probabilities of numbers in the place of each of the ``count`` whole numbers after ``"name":``.

    None when the server told no log-probabilities, when its tokens do not make up the answer, or
    when a number is not a token by itself (but for spaces, commas and brackets). The answer is what
    ``parse`` reads; what is said around it does not count. Malformed as ``spotted``.
    """
    if reply.logprobs is None or "".join(each.text for each in reply.logprobs) != reply.text:
        return None
    answer, begin, last = spotted(reply.text)
    at = reply.text.find(f'"{name}"', begin)
    places = list(_NUMBER.finditer(reply.text, at + len(name) + 2, last))[:count] if at >= 0 else []
    told = answer.get(name)
    if len(places) != count or [int(place.group()) for place in places] != (
        told if isinstance(told, list) else [told]
    ):
        return None
    found, tokens, end = [], iter(reply.logprobs), 0
    token = TokenOdds("", 0.0)
    for place in places:
        while end <= place.start():
            token = next(tokens)
            end += len(token.text)
        if _bare(token.text) != place.group():
            return None
        found.append(_numbers(token))
    return found


def share_of_one(odds: Mapping[str, float]) -> float:
    """P("1") / (P("0") + P("1")); NaN when neither is among the alternatives."""
    yes, no = (math.exp(odds[digit]) if digit in odds else 0.0 for digit in ("1", "0"))
    return yes / (yes + no) if yes + no > 0 else math.nan


def _bare(text: str) -> str:
    return text.strip(" \t\n,:[]{}")


def _numbers(token: TokenOdds) -> Mapping[str, float]:
    """Log-probability of every number among a token and its alternatives; spellings of one add up."""
    said: dict[str, float] = {}
    for text, logprob in {token.text: token.logprob, **dict(token.top)}.items():
        if _NUMBER.fullmatch(_bare(text)):
            said[_bare(text)] = said.get(_bare(text), 0.0) + math.exp(min(logprob, 0.0))
    return {text: math.log(weight) for text, weight in said.items() if weight > 0}
