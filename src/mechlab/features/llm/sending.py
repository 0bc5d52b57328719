"""Sending many requests at once: each distinct one is paid for once, and none beyond the budget."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from mechlab.errors import MechlabError
from mechlab.features.llm.cache import ResponseCache
from mechlab.features.llm.client import CallFailed, Client, Failure, Reply, Request
from mechlab.features.llm.ledger import Ledger
from mechlab.features.llm.schema import Malformed, parse

LONGEST_WAIT = 30.0
"""Seconds: the ceiling of the exponential back-off."""
PATIENCE = 300.0
"""Seconds that a server may ask to wait. For one that asks for more the job ends: asking sooner would
be in vain, and what is kept makes it cheap to come back."""
GRACE = 10.0
"""Seconds that an interrupted batch waits for answers that are on their way, as they are paid for."""


@dataclass
class Batch:
    """Requests in flight, in one event loop.

    Phases of a request: one of the slots is taken; its answer is looked up; the budget is asked;
    it is sent, again after a pause while that may help; the answer is kept, then checked.

    Args:
        attempts: how often a request is sent at most.
        wait: seconds before the second sending; doubled every time.
        again: how often more is asked after an answer of the wrong form.
        say: told when no server is there and it is tried again, once for all requests that wait alike.
    """

    client: Client
    cache: ResponseCache
    ledger: Ledger
    concurrency: int
    attempts: int
    wait: float
    again: int
    say: Callable[[str], None] | None = None
    _flying: set[asyncio.Task[Reply]] = field(default_factory=set)
    _asked: dict[str, asyncio.Task[Reply | Failure]] = field(default_factory=dict)
    _reached: bool = False
    _said: int = 0

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.concurrency)

    async def answers(
        self, requests: list[Request], done: Callable[[Reply | Failure], None]
    ) -> list[Reply | Failure]:
        """Answers in the order of the requests; ``done`` is called with each as it comes."""

        async def one(request: Request) -> Reply | Failure:
            outcome = await self._ask(request)
            done(outcome)
            return outcome

        tasks = [asyncio.ensure_future(one(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # After an error or an interrupt: nothing new is sent, what is on its way is waited for.
            for task in (*tasks, *self._asked.values()):
                task.cancel()
            await asyncio.gather(*tasks, *self._asked.values(), return_exceptions=True)
            if self._flying:
                await asyncio.wait(self._flying, timeout=GRACE)
            await self.client.close()

    async def _ask(self, request: Request) -> Reply | Failure:
        outcome = await self._once(request)
        for more in range(1, self.again + 1):
            if not (isinstance(outcome, Failure) and outcome.kind == "malformed"):
                break
            another = await self._once(replace(request, sample=request.sample + more))
            # No money for another try leaves the failure what it was.
            outcome = outcome if isinstance(another, Failure) and another.kind == "budget" else another
        return outcome

    async def _once(self, request: Request) -> Reply | Failure:
        key = request.key(self.client.endpoint)
        if key not in self._asked:
            self._asked[key] = asyncio.ensure_future(self._find(request, key))
        return await asyncio.shield(self._asked[key])

    async def _find(self, request: Request, key: str) -> Reply | Failure:
        # Looked up as late as can be: another process may have asked in the meantime.
        async with self._slots:
            reply = self.cache.get(key)
            return await self._send(request, key) if reply is None else checked(request, reply)

    async def _send(self, request: Request, key: str) -> Reply | Failure:
        attempt, failed = 0, CallFailed("http", "never sent", retry=True)
        while attempt < self.attempts and failed.retry:
            if attempt:
                pause = self._pause(key, attempt, failed.after)
                if failed.unreachable:
                    self._say_again(attempt, pause)
                await asyncio.sleep(pause)
            entry = await self._reserve(request, key)
            if entry is None:
                return Failure("budget", "the budget has no room for it", attempt)
            attempt += 1
            try:
                reply = await asyncio.shield(self._fly(self._call(request, key, entry)))
            except CallFailed as error:
                failed = error
                self._reached |= not error.unreachable
            else:
                self._reached, self._said = True, 0
                return checked(request, reply, attempt)
            if failed.after is not None and failed.after > PATIENCE:
                why = f"{failed.message} (asks to wait {failed.after:.0f} s)"
                raise MechlabError("language model has no time", why, "run again then: answers are kept")
            if failed.remedy is not None:
                raise MechlabError("language model refuses every request", failed.message, failed.remedy)
        if not self._reached:
            remedy = f"{failed.message}; start the server or correct its address"
            raise MechlabError("no language model can be reached", self.client.endpoint, remedy)
        return Failure(failed.kind, failed.message, attempt)

    async def _call(self, request: Request, key: str, entry: int) -> Reply:
        try:
            reply = await self.client.complete(request)
        except CallFailed as failed:
            if not failed.billed:
                self.ledger.release(entry)
            raise
        self.ledger.pay(entry, key, request, reply)
        return reply

    def _fly(self, call: Coroutine[Any, Any, Reply]) -> asyncio.Task[Reply]:
        task = asyncio.ensure_future(call)
        self._flying.add(task)
        task.add_done_callback(self._flying.discard)
        # An interrupted batch may never ask how it ended.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return task

    async def _reserve(self, request: Request, key: str) -> int | None:
        """A place in the ledger. What is on its way may cost less than was reserved for it: wait for that."""
        while (entry := self.ledger.reserve(key, request)) is None:
            if not self._flying:
                return None
            await asyncio.wait(self._flying, return_when=asyncio.FIRST_COMPLETED)
        return entry

    def _say_again(self, attempt: int, pause: float) -> None:
        if self.say is not None and attempt > self._said:
            self._said = attempt
            where = f"no connection to {self.client.endpoint}"
            self.say(f"{where}, trying again in {pause:.2g} s ({attempt + 1} of {self.attempts})")

    def _pause(self, key: str, attempt: int, asked: float | None) -> float:
        """Seconds: what the server asked for, else exponential; both spread out, so that crowds disperse."""
        spread = random.Random(f"{key}{attempt}").random()
        if asked is not None:
            return asked * (1 + 0.1 * spread)
        return min(LONGEST_WAIT, self.wait * 2.0 ** (attempt - 1)) * (0.75 + 0.5 * spread)


def checked(request: Request, reply: Reply, attempts: int = 0) -> Reply | Failure:
    """An answer that can be used, or why this one cannot."""
    shown = " ".join(reply.text.split())[:200]
    if reply.stop == "refused":
        return Failure("refused", shown, attempts)
    if request.schema is not None:
        try:
            parse(reply.text, request.schema)
        except Malformed as error:
            if error.declined:
                return Failure("refused", shown, attempts)
            cut = ", cut off at max_tokens" if reply.stop == "length" else ""
            return Failure("malformed", f"{error}{cut}: {shown}", attempts)
    return reply
