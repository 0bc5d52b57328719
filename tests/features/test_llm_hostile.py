"""Servers that answer nonsense, full and damaged caches, prices that are none: nothing brings a job down."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from features.llm_questions import MODEL, PRICE, SCHEMA, answer, job, question, values
from mechlab.errors import MechlabError
from mechlab.features.llm.cache import ResponseCache
from mechlab.features.llm.client import Failure, Message, Reply, Request, TokenOdds
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.ledger import Price
from mechlab.features.llm.reading import number_odds
from mechlab.features.llm.schema import Malformed, parse
from mechlab.features.llm.server import ScriptedServer, first

GOOD = '{"answers": [1, 1, 2]}'
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


@contextmanager
def _always(content: bytes) -> Iterator[str]:
    """A server that sends the same body whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def _told(content: Any, usage: Any = USAGE, odds: Any = None) -> bytes:
    message = {"role": "assistant", "content": content, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": odds}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def _one(body: bytes, cache: Path) -> tuple[Reply | Failure, LlmJob]:
    with _always(body) as url:
        asking = job(url, cache, attempts=2, budget=1.0)
        (outcome,) = asking.run([question(1)])
        (again,) = job(url, cache, attempts=2).run([question(1)])
        assert values([again]) == values([outcome])
    return outcome, asking


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": "5", "completion_tokens": [3]},
        {"prompt_tokens": 10**30, "completion_tokens": 10**30},
        {"prompt_tokens": -(10**6), "completion_tokens": -5},
        {"prompt_tokens": 5.5, "completion_tokens": math.inf},
    ],
)
def test_counts_that_are_none_are_made_up_from_bytes(usage: Any, tmp_path: Path) -> None:
    outcome, asking = _one(_told(GOOD, usage), tmp_path / "cache")
    assert isinstance(outcome, Reply)
    read = sum(len(each.content) for each in question(1).messages)
    assert (outcome.input_tokens, outcome.output_tokens) == (read, len(GOOD))
    assert asking.spent.dollars == PRICE.nanodollars(read, len(GOOD)) / 1e9


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (_told([{"type": "text", "text": GOOD}]), "http"),
        (_told(7), "http"),
        (_told(None), "malformed"),
        (_told('{"a":' * 50_000), "malformed"),
        (_told('{"answers": ' + "[" * 50_000), "malformed"),
        (_told('{"answers": [1, 1, ' + "9" * 5000 + "]}"), "malformed"),
        (_told('{"answers": [1, 1, 1e999]}'), "malformed"),
        (_told('{"answers": [9, 9, 9], "answers": [1, 1, 2]}'), "malformed"),
        (_told(GOOD, odds={"content": [{"token": GOOD, "logprob": "x", "top_logprobs": []}]}), "http"),
        (_told(GOOD, odds={"content": [{"token": 3, "logprob": 0.0, "top_logprobs": []}]}), "http"),
        (_told(GOOD)[:-3] + b"\xff\xfe}", "http"),
        (b"<html>hello</html>", "http"),
        (b"[1, 2]", "http"),
        (b"null", "http"),
        (b'{"choices": null}', "http"),
        (b"", "http"),
    ],
)
def test_nonsense_is_a_failure(body: bytes, kind: str, tmp_path: Path) -> None:
    assert values([_one(body, tmp_path / "cache")[0]]) == [kind]


def test_halves_of_characters(tmp_path: Path) -> None:
    outcome, _ = _one(_told(GOOD + " \ud800"), tmp_path / "cache")
    assert isinstance(outcome, Reply)
    assert outcome.text == GOOD + " \\ud800"
    asked = Request((Message("user", "item \udcff"),), MODEL, 40, schema=SCHEMA)
    assert asked.messages[0].content == "item \\udcff"
    with _always(_told(GOOD)) as url:
        assert values(job(url, tmp_path / "cache").run([asked])) == [[1, 1, 2]]


def test_a_wait_of_an_hour_ends_the_job(tmp_path: Path) -> None:
    with ScriptedServer(answer, faults=first("429"), retry_after=3600.0) as server:
        start = time.monotonic()
        with pytest.raises(MechlabError, match=r"asks to wait 3600 s.*answers are kept"):
            job(server.url, tmp_path / "cache", concurrency=2).run([question(n) for n in range(40)])
        assert time.monotonic() - start < 20
        assert len(server.log) <= 4


def test_what_another_process_was_told_meanwhile_is_not_asked_again(tmp_path: Path) -> None:
    """One slot: while the first is answered, the answers to the others come from elsewhere."""
    asked = [question(n) for n in range(6)]

    def slow(body: dict[str, Any]) -> str:
        theirs = ResponseCache(tmp_path / "cache")
        for each in asked[1:]:
            theirs.put(each.key(server.url), each, Reply(GOOD, 5, 3))
        theirs.close()
        return answer(body)

    with ScriptedServer(slow) as server:
        mine = job(server.url, tmp_path / "cache", concurrency=1, timeout=30.0)
        assert values(mine.run(asked)) == [[0, 1, 2], *[[1, 1, 2]] * 5]
        assert len(server.log) == 1


def test_a_full_disk_says_so_and_is_come_back_from(tmp_path: Path) -> None:
    with ScriptedServer(lambda body: answer(body) + " " * 4000) as server:
        asking = job(server.url, tmp_path / "cache")
        asking._cache.connection.execute("PRAGMA max_page_count=30")
        for _ in range(2):
            with pytest.raises(MechlabError, match="database or disk is full"):
                asking.run([question(n) for n in range(60)])
        asking._cache.connection.execute("PRAGMA max_page_count=100000")
        assert values(asking.run([question(n) for n in range(60)])) == [[n % 10, 1, 2] for n in range(60)]


def test_a_damaged_answer_is_named(tmp_path: Path) -> None:
    with ScriptedServer(answer) as server:
        asking = job(server.url, tmp_path / "cache")
        asking.run([question(1)])
        for damage in ('{"text": 3', "[]", "{}"):
            asking._cache.connection.execute("UPDATE answers SET reply = ?", (damage,))
            with pytest.raises(MechlabError, match="an answer in it is damaged"):
                asking.run([question(1)])


@pytest.mark.parametrize("dollars", [-1.0, math.nan, math.inf])
def test_prices_and_budgets_are_amounts(dollars: float, tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="price is not an amount"):
        Price(1.0, dollars)
    with pytest.raises(MechlabError, match="budget is not an amount"):
        job("http://127.0.0.1:9/v1", tmp_path / "cache", budget=dollars)


def test_what_costs_nothing_fits_into_no_budget(tmp_path: Path) -> None:
    with ScriptedServer(answer) as server:
        free = job(server.url, tmp_path / "cache", budget=0.0, prices={MODEL: Price(0.0, 0.0)})
        assert values(free.run([question(1)])) == [[1, 1, 2]]
        assert free.spent.dollars == 0.0


def test_odds_are_those_of_the_answer_that_is_read() -> None:
    """Numbers in prose before the object, and likelihoods above one, are not taken for the answer."""
    said = ['{"answers"} could be ', "1", ", ", "1", ': {"answers": [', "0", ", ", "1", "]}"]
    odds = tuple(TokenOdds(each, 800.0 if each == "1" else -0.1) for each in said)
    found = number_odds(Reply("".join(said), 1, 1, odds), "answers", 2)
    assert found == [{"0": pytest.approx(-0.1)}, {"1": 0.0}]
    with pytest.raises(Malformed, match="twice"):
        parse('{"answers": [1], "answers": [0]}', SCHEMA)
