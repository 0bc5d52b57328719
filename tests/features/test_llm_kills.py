"""Jobs that are killed, interrupted or run twice at once: real processes, a real server."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from features.llm_questions import PRICE, answer, billed, job, question, values
from mechlab.features.llm.ledger import most_input
from mechlab.features.llm.server import ScriptedServer

_RUN = """
import asyncio
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from features.llm_questions import job, question
asked = [question(n) for n in range(int(sys.argv[3]))]
asking = job(sys.argv[1], Path(sys.argv[2]), concurrency=4, timeout=30.0, budget=float(sys.argv[5]))

async def notebook():
    return asking.run(asked)

# asyncio.run would take the signal for itself; a notebook's loop does not.
beside = "beside" in sys.argv
done = asyncio.new_event_loop().run_until_complete(notebook()) if beside else asking.run(asked)
print(sum(type(each).__name__ == "Reply" for each in done))
"""


def _start(
    server: ScriptedServer, cache: Path, count: int, budget: float = 1.0, *more: str
) -> subprocess.Popen[str]:
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", _RUN, server.url, str(cache), str(count), str(tests), str(budget), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _until(server: ScriptedServer, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.log) < count and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(server.log) >= count


def _slow(body: dict[str, Any]) -> str:
    time.sleep(0.03)
    return answer(body)


def test_a_killed_job_pays_for_nothing_twice_that_it_had_read(tmp_path: Path) -> None:
    """Answers on their way to a process when it is killed are lost; everything else is paid for once."""
    count, lost = 60, 0
    with ScriptedServer(_slow) as server:
        for stop in (12, 30):
            process = _start(server, tmp_path / "cache", count)
            _until(server, stop)
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.1)
            kept = job(server.url, tmp_path / "cache").spent.answers
            assert kept >= stop - 4 - lost
            lost = len(server.log) - kept
        process = _start(server, tmp_path / "cache", count)
        out, _ = process.communicate(timeout=60)
        assert out.strip() == str(count)
        sent = len(server.log)
        spent = job(server.url, tmp_path / "cache").spent
        assert spent.answers == count
        assert sent - count == lost <= 2 * 4
        assert billed(server.log) <= (spent.dollars or 0)
        assert values(job(server.url, tmp_path / "cache").run([question(n) for n in range(count)])) == [
            [n % 10, 1, 2] for n in range(count)
        ]
        assert len(server.log) == sent


def test_a_job_killed_between_answers_pays_for_each_once(tmp_path: Path) -> None:
    """The server answers no further than the kill: then nothing at all is paid for twice."""
    count, gate = 40, threading.Event()
    given = threading.Semaphore(15)

    def halting(body: dict[str, Any]) -> str:
        if not gate.is_set() and not given.acquire(blocking=False):
            gate.wait(60)
            raise ConnectionAbortedError
        return answer(body)

    with ScriptedServer(halting) as server:
        process = _start(server, tmp_path / "cache", count)
        _until(server, 15)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        gate.set()
        process = _start(server, tmp_path / "cache", count)
        out, _ = process.communicate(timeout=60)
    assert out.strip() == str(count)
    assert len(server.answered) == count


@pytest.mark.parametrize("where", ["alone", "beside"])
def test_an_interrupted_job_keeps_what_is_on_its_way(tmp_path: Path, where: str) -> None:
    count = 60
    with ScriptedServer(_slow) as server:
        process = _start(server, tmp_path / "cache", count, 1.0, where)
        _until(server, 10)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in errors
        sent = len(server.log)
        assert sent < count
        kept = job(server.url, tmp_path / "cache").spent
        assert kept.answers == sent
        assert kept.dollars == pytest.approx(billed(server.log))


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    with ScriptedServer(_slow) as server:
        both = [_start(server, tmp_path / "cache", 30) for _ in range(2)]
        outs = [process.communicate(timeout=60)[0].strip() for process in both]
        assert outs == ["30", "30"]
        assert 30 <= len(server.log) <= 60
        assert job(server.url, tmp_path / "cache").run([question(n) for n in range(30)])
        assert job(server.url, tmp_path / "cache").spent.answers == len(server.log)


@pytest.mark.slow
def test_processes_that_are_killed_and_run_at_once_keep_to_one_budget(tmp_path: Path) -> None:
    budget = 6 * PRICE.nanodollars(most_input(question(0)), 40) / 1e9
    with ScriptedServer(_slow) as server:
        killed = _start(server, tmp_path / "cache", 30, budget)
        _until(server, 5)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        both = [_start(server, tmp_path / "cache", 250, budget) for _ in range(2)]
        outs = [int(process.communicate(timeout=60)[0]) for process in both]
        assert all(0 < out < 250 for out in outs)
        spent = job(server.url, tmp_path / "cache").spent.dollars
        assert billed(server.log) <= (spent or 0) <= budget
