"""A job comes through faults, pays once, and keeps to its budget: all over real HTTP."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.llm_questions import MODEL, PRICE, answer, billed, job, question, values
from mechlab.errors import MechlabError
from mechlab.features.llm.client import Failure, Message, Reply, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.ledger import Price, most_input
from mechlab.features.llm.openai_client import OpenAIClient
from mechlab.features.llm.server import ScriptedServer, first, some


@pytest.mark.parametrize("seed", range(3))
def test_completes_under_every_passing_fault(tmp_path: Path, seed: int) -> None:
    faults = some(("429", "500", "hang", "drop", "truncated", "short", "prose"), 0.6, tries=2, seed=seed)
    seen: list[tuple[int, int, float | None]] = []
    with ScriptedServer(answer, faults=faults) as server:
        with_faults = job(
            server.url, tmp_path / "cache", again=2, timeout=0.15, progress=lambda *each: seen.append(each)
        )
        outcomes = with_faults.run([question(n) for n in range(30)])
        assert values(outcomes) == [[n % 10, 1, 2] for n in range(30)]
        assert {each.fault for each in server.log} >= {"429", "500", None}
        before = len(server.log)
        again = job(server.url, tmp_path / "cache", again=2).run([question(n) for n in range(30)])
        assert len(server.log) == before
    assert all(isinstance(each, Reply) and each.cached for each in again)
    assert values(again) == values(outcomes)
    assert [done for done, _, _ in seen] == list(range(1, 31))
    assert seen[-1][1:] == (30, with_faults.spent.dollars)
    # Lost answers stay reserved: never less than what the provider charges.
    assert (with_faults.spent.dollars or 0) >= billed(server.log)


def test_waits_as_long_as_the_server_asks(tmp_path: Path) -> None:
    with ScriptedServer(answer, faults=first("429", "429"), retry_after=0.3) as server:
        start = time.monotonic()
        outcomes = job(server.url, tmp_path / "cache").run([question(1)])
        assert time.monotonic() - start > 0.6
    assert values(outcomes) == [[1, 1, 2]]
    assert [each.fault for each in server.log] == ["429", "429", None]


@pytest.mark.parametrize(
    ("fault", "kind", "sent"),
    [("500", "http", 4), ("hang", "timeout", 4), ("drop", "http", 4), ("400", "http", 1)],
)
def test_a_fault_that_stays_is_a_failure(tmp_path: Path, fault: str, kind: str, sent: int) -> None:
    with ScriptedServer(answer, faults=first(*[fault] * 9)) as server:
        failing = job(server.url, tmp_path / "cache", attempts=4, timeout=0.1)
        outcomes = failing.run([question(1)])
    assert values(outcomes) == [kind]
    assert isinstance(outcomes[0], Failure)
    assert outcomes[0].attempts == len(server.log) == sent
    # Errors are free; a time-out and a lost connection may have been charged for.
    worst = PRICE.nanodollars(most_input(question(1)), 40) / 1e9
    expected = sent * worst if fault in ("hang", "drop") else 0.0
    assert failing.spent.dollars == pytest.approx(expected)
    assert failing.spent.answers == 0


@pytest.mark.parametrize("fault", ["401", "404"])
def test_what_every_request_would_meet_stops_the_job(tmp_path: Path, fault: str) -> None:
    with ScriptedServer(answer, faults=first(fault)) as server:
        with pytest.raises(MechlabError, match="refuses every request") as raised:
            job(server.url, tmp_path / "cache", concurrency=2).run([question(n) for n in range(40)])
        assert len(server.log) <= 4
    assert "check the" in str(raised.value)


def test_no_server(tmp_path: Path) -> None:
    with ScriptedServer(answer) as server:
        url = server.url
    said: list[str] = []
    with pytest.raises(MechlabError, match="no language model can be reached") as raised:
        job(url, tmp_path / "cache", attempts=3, say=said.append).run([question(n) for n in range(5)])
    assert "\n" not in str(raised.value)
    assert url in str(raised.value)
    # One line for all five requests at every attempt.
    assert [re.sub(r"in \S+ s", "in N s", line) for line in said] == [
        f"no connection to {url}, trying again in N s ({attempt} of 3)" for attempt in (2, 3)
    ]


def test_of_a_server_that_is_there_nothing_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with ScriptedServer(answer, faults=first("500", "drop")) as server:
        job(server.url, tmp_path / "cache", say=said.append).run([question(1)])
        assert len(server.log) == 3
    assert not said


def test_answers_of_the_wrong_form_are_failures_and_asked_again_once(tmp_path: Path) -> None:
    def answers(body: dict[str, Any]) -> str:
        number = int(body["messages"][-1]["content"].split()[1])
        wrong = {
            1: '{"answers": [1, 2]}',
            2: '{"answers": [1, 2, 3, 4]}',
            3: '{"answers": [1, 2, true]}',
            4: '{"answers": [1, 2, 10]}',
            5: '{"answers": [1, 2, NaN]}',
            6: "[1, 2, 3]",
            7: '{"replies": [1, 2, 3]}',
            8: '{"answers": [1, 2, 3], "note": "x"}',
            9: "I can't help with that.",
        }
        return wrong.get(number, f"Sure: ```json\n{answer(body)}\n```")

    with ScriptedServer(answers) as server:
        outcomes = job(server.url, tmp_path / "cache").run([question(n) for n in range(10)])
        assert values(outcomes) == [[0, 1, 2], *["malformed"] * 8, "refused"]
        assert len(server.log) == 10 + 8
        again = job(server.url, tmp_path / "cache").run([question(n) for n in range(10)])
        assert len(server.log) == 10 + 8
    assert values(again) == values(outcomes)


def test_a_refusal_is_paid_for_and_not_an_answer(tmp_path: Path) -> None:
    with ScriptedServer(answer, faults=first("refusal")) as server:
        refused = job(server.url, tmp_path / "cache")
        outcomes = refused.run([question(1)])
    assert values(outcomes) == ["refused"]
    assert (len(server.log), refused.spent.answers) == (1, 1)


def test_equal_requests_are_sent_once(tmp_path: Path) -> None:
    with ScriptedServer(answer) as server:
        outcomes = job(server.url, tmp_path / "cache").run([question(n % 4) for n in range(40)])
    assert values(outcomes) == [[n % 4, 1, 2] for n in range(40)]
    assert len(server.log) == 4


def test_no_more_at_once_than_allowed(tmp_path: Path) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def slow(body: dict[str, Any]) -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return answer(body)

    with ScriptedServer(slow) as server:
        job(server.url, tmp_path / "cache", concurrency=3).run([question(n) for n in range(20)])
    assert most == 3


@pytest.mark.parametrize("concurrency", [1, 5])
def test_the_budget_is_never_exceeded(tmp_path: Path, concurrency: int) -> None:
    one = PRICE.nanodollars(most_input(question(0)), 40) / 1e9
    generator = np.random.default_rng(concurrency)
    for number, budget in enumerate([0.0, one * 0.99, one, *(one * generator.uniform(1, 12, 5)).tolist()]):
        faults = some(("429", "drop", "truncated", "short", "prose"), 0.3, seed=number)
        with ScriptedServer(answer, faults=faults) as server:
            limited = job(
                server.url, tmp_path / str(number), budget=float(budget), concurrency=concurrency, timeout=5.0
            )
            outcomes = limited.run([question(n) for n in range(25)])
            limited.run([question(n) for n in range(25, 30)])
        assert billed(server.log) <= (limited.spent.dollars or 0) <= budget
        refused = [each for each in outcomes if isinstance(each, Failure) and each.kind == "budget"]
        assert refused or budget > 2 * one
        if budget < one:
            assert not server.log


def test_a_budget_is_used_up_by_what_answers_cost_and_not_by_what_they_might(tmp_path: Path) -> None:
    worst = PRICE.nanodollars(most_input(question(0)), 40) / 1e9
    with ScriptedServer(answer) as server:
        limited = job(server.url, tmp_path / "cache", budget=3 * worst, concurrency=8)
        outcomes = limited.run([question(n) for n in range(20)])
    assert worst * 20 > 3 * worst > billed(server.log)
    assert sum(isinstance(each, Reply) for each in outcomes) == len(server.log) == 20


def test_budgets_need_prices(tmp_path: Path) -> None:
    client = OpenAIClient("gpt-x", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(MechlabError, match="price of the model is unknown"):
        LlmJob(client, tmp_path / "cache", budget=1.0)
    with pytest.raises(MechlabError, match="did you mean gpt-xs"):
        LlmJob(client, tmp_path / "cache", budget=1.0, prices={"gpt-xs": PRICE})
    with pytest.raises(MechlabError, match="budget"):
        LlmJob(client, tmp_path / "cache", budget=-1.0, prices={"gpt-x": PRICE})
    limited = LlmJob(client, tmp_path / "cache", budget=1.0, prices={"gpt-x": PRICE})
    with pytest.raises(MechlabError, match="price of the model is unknown"):
        limited.run([question(0, model="another")])


def test_estimate_sends_nothing_and_bounds_the_price(tmp_path: Path) -> None:
    requests = [question(n % 8) for n in range(10)]
    with ScriptedServer(answer) as server:
        asking = job(server.url, tmp_path / "cache")
        before = asking.estimate(requests)
        assert not server.log
        asking.run(requests[:3])
        between = asking.estimate(requests)
        asking.run(requests)
    assert (before.requests, before.cached, between.cached) == (8, 0, 3)
    assert before.output_tokens == 8 * 40
    assert before.most is not None
    assert before.dollars is not None
    assert billed(server.log) <= before.most
    assert before.dollars < before.most
    assert asking.estimate(requests).most == 0
    unpriced = LlmJob(asking.client, tmp_path / "other")
    assert unpriced.estimate(requests).dollars is None


def test_a_dry_run_sends_nothing_and_says_what_is_missing(tmp_path: Path) -> None:
    with ScriptedServer(answer) as server:
        real = job(server.url, tmp_path / "cache")
        real.run([question(n) for n in range(4)])
        dry = job(server.url, tmp_path / "cache", dry_run=True)
        outcomes = [*dry.run([question(n) for n in range(6)]), *dry.run([question(n) for n in range(5, 9)])]
        assert len(server.log) == 4
    assert values(outcomes) == [[n, 1, 2] for n in range(4)] + ["budget"] * 6
    assert dry.planned == real.estimate([question(n) for n in range(4, 9)])
    assert dry.planned.requests == 5


def test_prices_are_per_million_tokens() -> None:
    assert Price(0.15, 0.6).nanodollars(1_000_000, 500_000) == 450_000_000
    assert Price(0.15, 0.6).nanodollars(1, 0) == 150
    assert Price(0.0001, 0.0).nanodollars(1, 0) == 1  # rounded up


def test_inside_a_running_loop(tmp_path: Path) -> None:
    import asyncio

    with ScriptedServer(answer) as server:
        asking = job(server.url, tmp_path / "cache")

        async def notebook() -> list[Reply | Failure]:
            return asking.run([question(1)])

        assert values(asyncio.run(notebook())) == [[1, 1, 2]]
        assert values(asking.run([question(2)])) == [[2, 1, 2]]


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("something else, long enough to be read as a header" * 9)
    with pytest.raises(MechlabError, match="cache of answers cannot be used"):
        job("http://127.0.0.1:9/v1", tmp_path / "cache")


def test_free_text_needs_no_form(tmp_path: Path) -> None:
    request = Request((Message("user", "item 3"),), MODEL, 40)
    with ScriptedServer(lambda body: "any words") as server:
        (reply,) = job(server.url, tmp_path / "cache").run([request])
    assert isinstance(reply, Reply)
    assert (reply.text, reply.stop) == ("any words", "stop")
    assert os.path.getsize(tmp_path / "cache") > 0
