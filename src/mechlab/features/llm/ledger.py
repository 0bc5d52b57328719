"""What answers cost, and a budget that is kept to.

Before a request is sent the most that it can cost is reserved. The answer replaces that by what it
did cost, added to what was paid for its model; an error that no provider charges for takes it out
again. What ended without an answer though the provider may have charged (a time-out, a lost
connection, a killed process) stays reserved. Reserving checks the sum against the budget in one
transaction, so that the budget holds over concurrent requests, processes and kills.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from mechlab.errors import MechlabError, near
from mechlab.features.llm.cache import ResponseCache
from mechlab.features.llm.client import Reply, Request

_BYTES_PER_TOKEN = 4
# In 1e-9 dollars it still fits into the ledger's whole numbers.
_LARGEST = 1e9
_PER_MESSAGE, _PER_SCHEMA = 16, 600
_TOTAL = (
    "SELECT (SELECT COALESCE(SUM(nanodollars), 0) FROM paid)"
    " + (SELECT COALESCE(SUM(nanodollars), 0) FROM reserved)"
)


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens read and written. MechlabError unless both are 0 or more."""

    input: float
    output: float

    def __post_init__(self) -> None:
        for dollars in (self.input, self.output):
            if not 0 <= dollars < math.inf:
                raise MechlabError("price is not an amount of dollars", dollars, "give 0 or more")

    def nanodollars(self, read: int, written: int) -> int:
        """Price of so many tokens in 1e-9 dollars, rounded up: whole numbers add up exactly."""
        return math.ceil(round((read * self.input + written * self.output) * 1000, 6))


@dataclass(frozen=True)
class Spent:
    """What a cache's ledger says.

    Attributes:
        answers: answers paid for.
        input_tokens, output_tokens: of those answers, as the provider counted.
        dollars: their price and the most that unanswered requests may have cost; None: price unknown.
    """

    answers: int
    input_tokens: int
    output_tokens: int
    dollars: float | None


def price_of(model: str, prices: Mapping[str, Price]) -> Price:
    """The price of a model. MechlabError when it is not among those given."""
    if model not in prices:
        remedy = near(model, prices) if prices else 'give prices={"MODEL": Price(input, output)}'
        raise MechlabError("price of the model is unknown", model, remedy)
    return prices[model]


def likely_input(request: Request) -> int:
    """About how many tokens a request is: one for every four bytes, as of English in most vocabularies."""
    return _size(request) // _BYTES_PER_TOKEN + _overhead(request)


def most_input(request: Request) -> int:
    """More tokens than a request can be: every token of a byte-level vocabulary says at least one byte."""
    return _size(request) + _overhead(request)


def _size(request: Request) -> int:
    schema = "" if request.schema is None else json.dumps(request.schema)
    return len(schema) + sum(len(each.content.encode()) for each in request.messages)


def _overhead(request: Request) -> int:
    """Tokens that providers add around messages, and to explain a schema or a tool to the model."""
    return _PER_MESSAGE * (len(request.messages) + 1) + (0 if request.schema is None else _PER_SCHEMA)


class Ledger:
    """The ledger of a cache.

    Args:
        budget: dollars that everything in this ledger, earlier runs included, may cost; None: no limit.
        prices: of the models that are asked; needed with a budget.
    """

    def __init__(
        self, cache: ResponseCache, *, budget: float | None = None, prices: Mapping[str, Price] | None = None
    ) -> None:
        if budget is not None and not 0 <= budget <= _LARGEST:
            raise MechlabError("budget is not an amount of dollars", budget, "give 0 or more; None: no limit")
        self._cache, self._prices = cache, dict(prices or {})
        self._budget = None if budget is None else math.floor(budget * 1e9)

    def most(self, request: Request) -> int | None:
        """The most a request can cost, in 1e-9 dollars; None when nobody needs to know.

        Raises MechlabError when there is a budget and the price is unknown.
        """
        if self._budget is None and request.model not in self._prices:
            return None
        price = price_of(request.model, self._prices)
        return price.nanodollars(most_input(request), request.max_tokens)

    def reserve(self, key: str, request: Request) -> int | None:
        """Enter a request about to be sent; None when the budget has no room for it."""
        most = self.most(request)
        with self._cache.transaction() as connection:
            if self._budget is not None and most is not None:
                (so_far,) = connection.execute(_TOTAL).fetchone()
                if so_far + most > self._budget:
                    return None
            made = connection.execute(
                "INSERT INTO reserved (key, model, nanodollars) VALUES (?, ?, ?)", (key, request.model, most)
            )
            return made.lastrowid

    def pay(self, entry: int, key: str, request: Request, reply: Reply) -> None:
        """Keep an answer and what it cost: both or neither."""
        price = self._prices.get(request.model)
        cost = 0 if price is None else price.nanodollars(reply.input_tokens, reply.output_tokens)
        with self._cache.transaction() as connection:
            self._cache.put(key, request, reply)
            connection.execute("DELETE FROM reserved WHERE entry = ?", (entry,))
            connection.execute(
                "INSERT INTO paid VALUES (?1, 1, ?2, ?3, ?4, ?5) ON CONFLICT (model) DO UPDATE SET"
                " answers = answers + 1, input_tokens = input_tokens + ?2,"
                " output_tokens = output_tokens + ?3, nanodollars = nanodollars + ?4,"
                " unpriced = unpriced + ?5",
                (request.model, reply.input_tokens, reply.output_tokens, cost, int(price is None)),
            )

    def release(self, entry: int) -> None:
        """Take out a request that nobody charges for."""
        with self._cache.transaction() as connection:
            connection.execute("DELETE FROM reserved WHERE entry = ?", (entry,))

    @property
    def spent(self) -> Spent:
        """Everything in the ledger."""
        with self._cache.transaction() as connection:
            answers, read, written, unpriced = connection.execute(
                "SELECT COALESCE(SUM(answers), 0), COALESCE(SUM(input_tokens), 0),"
                " COALESCE(SUM(output_tokens), 0), COALESCE(SUM(unpriced), 0) FROM paid"
            ).fetchone()
            (open_unpriced,) = connection.execute(
                "SELECT COUNT(*) FROM reserved WHERE nanodollars IS NULL"
            ).fetchone()
            (total,) = connection.execute(_TOTAL).fetchone()
        return Spent(answers, read, written, None if unpriced or open_unpriced else total / 1e9)
