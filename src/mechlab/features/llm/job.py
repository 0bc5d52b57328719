"""A batch of questions to a language model: kept, counted, paid for once, within a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError
from mechlab.features.llm.cache import ResponseCache
from mechlab.features.llm.client import Client, Failure, Reply, Request
from mechlab.features.llm.ledger import Ledger, Price, Spent, likely_input, price_of
from mechlab.features.llm.sending import Batch, checked

Progress = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class Estimate:
    """What requests would cost, found without sending any.

    Attributes:
        requests: distinct requests.
        cached: how many of them are answered already.
        input_tokens: of the others, about (four bytes a token).
        output_tokens: of the others, at most.
        dollars: price of those tokens; None when the model's price is not known.
        most: what they cannot exceed, bytes counted as tokens; None when the price is not known.
    """

    requests: int
    cached: int
    input_tokens: int
    output_tokens: int
    dollars: float | None
    most: float | None


class LlmJob:
    """Sends requests and keeps the answers.

    Every answer is on disk before it is used, so that a job that was killed goes on where it
    stopped, and the same job again sends nothing. Use it from one thread at a time.

    Args:
        client: who answers.
        cache: SQLite file of the answers and the ledger; made where there is none.
        budget: dollars that everything in this cache's ledger may cost, earlier runs and tries without
            an answer included. Never exceeded as long as providers count no more tokens than there are bytes.
        prices: dollars per million tokens, by model. No list is built in: an old price would
            break the budget.
        concurrency: requests under way at once, over everything that is asked.
        attempts: how often one request is sent at most, when the server is busy, fails or is silent.
        wait: seconds before the second sending; then doubled every time. Retry-After goes first, up
            to five minutes.
        again: how often more is asked after an answer of the wrong form, while the budget allows.
        dry_run: send nothing. What is not in the cache comes back as a failure ("budget"), and
            ``planned`` says what it would have cost: of everything that uses the job.
        progress: called with the number done, the total and the dollars spent (None: price unknown).
        say: told in a line when no server is there and it is tried again.

    Raises MechlabError for a budget without the model's price, or a cache that cannot be used.
    """

    def __init__(
        self,
        client: Client,
        cache: Path | str,
        *,
        budget: float | None = None,
        prices: Mapping[str, Price] | None = None,
        concurrency: int = 8,
        attempts: int = 6,
        wait: float = 0.5,
        again: int = 1,
        dry_run: bool = False,
        progress: Progress | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        for name, value, least in (
            ("concurrency", concurrency, 1),
            ("attempts", attempts, 1),
            ("again", again, 0),
        ):
            if value < least:
                raise MechlabError(f"{name} is too small", value, f"give {least} or more")
        if budget is not None:
            price_of(client.model, prices or {})
        self.client, self._cache = client, ResponseCache(cache)
        self._prices = dict(prices or {})
        self._ledger = Ledger(self._cache, budget=budget, prices=self._prices)
        self._concurrency, self._attempts, self._wait, self._again = concurrency, attempts, wait, again
        self._progress, self._say, self._dry_run = progress, say, dry_run
        self._planned: list[Request] = []

    @property
    def spent(self) -> Spent:
        """Everything ever spent through this cache."""
        return self._ledger.spent

    @property
    def planned(self) -> Estimate:
        """What a dry run would have sent so far."""
        return self.estimate(self._planned)

    def cost(self, model: str, read: int, written: int) -> float | None:
        """Dollars that so many tokens cost; None when the model's price is not known."""
        price = self._prices.get(model)
        return None if price is None else price.nanodollars(read, written) / 1e9

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """A dry run: what these requests would cost. Sends nothing."""
        distinct = {each.key(self.client.endpoint): each for each in requests}
        new = [each for key, each in distinct.items() if self._cache.get(key) is None]
        dollars: float | None = 0.0
        most: float | None = 0.0
        for each in new:
            price, worst = self._prices.get(each.model), self._ledger.most(each)
            if price is None or worst is None or dollars is None or most is None:
                dollars = most = None
                break
            dollars += price.nanodollars(likely_input(each), each.max_tokens) / 1e9
            most += worst / 1e9
        return Estimate(
            requests=len(distinct),
            cached=len(distinct) - len(new),
            input_tokens=sum(likely_input(each) for each in new),
            output_tokens=sum(each.max_tokens for each in new),
            dollars=dollars,
            most=most,
        )

    def run(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """An answer, or why there is none, for every request, in their order.

        On Ctrl-C nothing more is sent; answers on their way are waited for (ten seconds at most) and kept.

        Raises MechlabError when no server is there, when it would refuse every request (key, model),
        or when it asks to wait for more than five minutes.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.answer(requests))
        return self._run_beside(requests)

    def _run_beside(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """``run`` inside a notebook, where a loop is running already: in a thread with one of its own."""
        running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

        async def main() -> list[Reply | Failure]:
            task = asyncio.current_task()
            if task is not None:
                running.append((asyncio.get_running_loop(), task))
            return await self.answer(requests)

        with ThreadPoolExecutor(1) as thread:
            future = thread.submit(lambda: asyncio.run(main()))
            try:
                return future.result()
            except KeyboardInterrupt:
                for loop, task in running:
                    loop.call_soon_threadsafe(task.cancel)
                raise

    async def answer(self, requests: Sequence[Request]) -> list[Reply | Failure]:
        """``run`` for callers that have an event loop of their own."""
        for request in requests:
            self._ledger.most(request)
        if self._dry_run:
            return [self._looked_up(request) for request in requests]
        batch = Batch(
            self.client,
            self._cache,
            self._ledger,
            self._concurrency,
            self._attempts,
            self._wait,
            self._again,
            self._say,
        )
        finished = 0

        def done(_: Reply | Failure) -> None:
            nonlocal finished
            finished += 1
            if self._progress is not None:
                self._progress(finished, len(requests), self.spent.dollars)

        return await batch.answers(list(requests), done)

    def _looked_up(self, request: Request) -> Reply | Failure:
        reply = self._cache.get(request.key(self.client.endpoint))
        if reply is None:
            self._planned.append(request)
            return Failure("budget", "dry run: nothing is sent", 0)
        return checked(request, reply)

    def close(self) -> None:
        """Close the cache's file."""
        self._cache.close()
