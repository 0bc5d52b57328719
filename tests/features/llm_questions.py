"""Questions for the scripted server, and its answers to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mechlab.features.llm.client import Failure, Message, Reply, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.ledger import Price
from mechlab.features.llm.openai_client import OpenAIClient
from mechlab.features.llm.schema import listing, parse, record
from mechlab.features.llm.server import Exchange

MODEL = "scripted"
PRICE = Price(1.0, 4.0)
SCHEMA = record(answers=listing({"type": "integer", "minimum": 0, "maximum": 9}, 3))


def question(number: int, *, model: str = MODEL) -> Request:
    """A question whose answer is [number mod 10, 1, 2]."""
    return Request(
        (Message("system", "Answer in JSON."), Message("user", f"item {number}")), model, 40, schema=SCHEMA
    )


def answer(body: dict[str, Any]) -> str:
    """The answer to a ``question``."""
    return json.dumps({"answers": [int(body["messages"][-1]["content"].split()[1]) % 10, 1, 2]})


def job(url: str, cache: Path, **options: Any) -> LlmJob:
    """A job that is in a hurry."""
    timeout = options.pop("timeout", 0.5)
    settings = {"wait": 0.01, "prices": {MODEL: PRICE}, "concurrency": 6, **options}
    return LlmJob(OpenAIClient(MODEL, base_url=url, key="none", timeout=timeout), cache, **settings)


def billed(log: list[Exchange]) -> float:
    """What a provider would charge, in dollars."""
    return sum(PRICE.nanodollars(each.input_tokens, each.output_tokens) for each in log) / 1e9


def values(outcomes: list[Reply | Failure]) -> list[Any]:
    return [
        parse(each.text, SCHEMA)["answers"] if isinstance(each, Reply) else each.kind for each in outcomes
    ]
