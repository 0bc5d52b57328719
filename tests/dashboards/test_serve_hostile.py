"""The live server and hostile, slow or many clients."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from dashboards.live_parts import TEXT
from dashboards.serve_client import ACT, STEER, ask, raw, refused, running
from mechlab.dashboards.live import Change, SteerRequest
from mechlab.dashboards.serve_request import Answer


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "FOO", "CONNECT"])
def test_other_methods_are_refused(server, method):
    assert refused(server, method, "/api/info")[0] == 405


def test_methods_have_their_addresses(server):
    assert refused(server, "GET", ACT)[0] == 405
    assert refused(server, "POST", "/", {})[0] == 405
    assert ask(server, "GET", STEER)[1]["Allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 20_000, "Invalid JSON"),
        (b'{"text":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "recursion limit"),
        (b'{"text": "\\ud800"}', "Invalid JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b"{}", "text: Field required"),
        (b'{"text": 5}', "text: Input should be a valid string"),
        (b'{"text": ["a"]}', "text: Input should be a valid string"),
        (b'{"text": ""}', "text: String should have at least 1 character"),
        (json.dumps({"text": "x" * 4001}).encode(), "text: String should have at most 4000 characters"),
        (json.dumps({"text": "cat " * 500}).encode(), "text is too long: 500 tokens"),
        (json.dumps({"text": " \n "}).encode(), "text has no tokens"),
        (b'{"text": "a", "__class__": 1}', "__class__: Extra inputs are not permitted"),
        (b'{"text": "a", "features": [1.5]}', "features.0: Input should be a valid integer"),
        (b'{"text": "a", "features": ["1"]}', "features.0: Input should be a valid integer"),
        (b'{"text": "a", "features": [true]}', "features.0: Input should be a valid integer"),
        (b'{"text": "a", "features": [-1]}', "features.0"),
        (b'{"text": "a", "features": [96]}', "feature does not exist: 96"),
        (b'{"text": "a", "features": [1e400]}', "features.0"),
        (b'{"text": "a", "features": [' + b"9" * 4000 + b"]}", "features.0"),
        (b'{"text": "a", "features": [' + b"9" * 5000 + b"]}", "number out of range"),
        (json.dumps({"text": "a", "features": [1] * 17}).encode(), "features: Tuple should have at most 16"),
    ],
)  # fmt: skip
def test_questions_that_make_no_sense_are_explained(server, body, says):
    status, error = refused(server, "POST", ACT, body)
    assert status == 400
    assert says in error
    assert len(error) < 400


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "101", '"2"', "true", "null", "[2]"]
)
def test_strengths_are_finite_numbers_in_range(server, value):
    body = f'{{"text": "a", "edits": [{{"feature": 1, "mode": "add", "strength": {value}}}]}}'.encode()
    status, error = refused(server, "POST", STEER, body)
    assert status == 400
    assert error.startswith("edits.0.strength")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    started = time.monotonic()
    assert refused(server, "POST", ACT, b"x" * 70_000)[0] == 413
    assert refused(server, "POST", ACT, b"x" * 10_000_000)[0] == 413
    head = f"POST {ACT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
    for length in ("99999999999", "9" * 400):
        found = raw(server, f"{head}Content-Length: {length}\r\n\r\n{{".encode())
        assert found.startswith((b"HTTP/1.0 413", b"HTTP/1.0 400"))
    for length in ("-1", "1.5", "0x10", "²", "", " ", "1, 2"):
        found = raw(server, f"{head}Content-Length: {length}\r\n\r\n{{}}".encode("latin-1"))
        assert found.startswith(b"HTTP/1.0 400"), length
    found = raw(server, f"{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode())
    assert found.startswith(b"HTTP/1.0 400")
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / FTP\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"\x00" * 1000,
    ],
)
def test_what_is_no_http_does_no_harm(server, data):
    found = raw(server, data, seconds=3)
    assert b" 200 " not in found.split(b"\r\n")[0]
    assert b"Traceback" not in found
    assert ask(server, "GET", "/api/info")[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"SHOUTED / HTTP/1.1",
        b"GET / SHOUTED",
        b"GET / HTTP/SHOUTED",
        b"GET SHOUTED SHOUTED HTTP/1.1",
        b"GET /SHOUTED HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: SHOUTED",
        b"POST /api/steer HTTP/1.1\r\nHost: localhost\r\nContent-Type: SHOUTED",
    ],
)
def test_a_refusal_says_nothing_that_was_sent(server, data):
    found = raw(server, data + b"\r\n\r\n", seconds=3)
    assert b"error" in found
    assert b"shouted" not in found.lower()


# ---------- time and number ----------


def test_slow_clients_are_cut_off(live, site):
    """One that sends a byte now and then, one that sends nothing, one that owes a part of its body."""
    with running(live, site, seconds=1.0) as server:
        started = time.monotonic()
        lines = f"POST {ACT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        owing = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        owing.sendall(f'{lines}Content-Length: 20\r\n\r\n{{"te'.encode())
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
            for byte in lines.encode():
                try:
                    slow.sendall(bytes([byte]))
                except OSError:
                    break
                time.sleep(0.1)
                if time.monotonic() - started > 15:
                    break
            assert time.monotonic() - started < 10, "a slow client was let stay"
        assert idle.recv(10) == b""
        assert owing.recv(10) == b""
        idle.close()
        owing.close()
        assert ask(server, "GET", "/api/info")[0] == 200


def test_a_large_page_may_take_its_time(live, site):
    """40 MB, more than what the system takes off the server at once, over three times the limit."""
    with running(live, site, seconds=1.0) as server:
        server.files["/large.js"] = Answer(b"x" * 40_000_000, "text/javascript")
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(b"GET /large.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(3)
            count = 0
            while piece := connection.recv(1 << 20):
                count += len(piece)
        assert count > 40_000_000


def test_many_idle_connections_do_not_use_up_threads(live, site):
    with running(live, site, seconds=2.0) as server:
        before = threading.active_count()
        open_ones = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(100)]
        time.sleep(0.5)
        assert threading.active_count() - before <= 64
        for connection in open_ones:
            connection.recv(10)  # until the server has let go of it
            connection.close()
        assert ask(server, "GET", "/api/info")[0] == 200


def test_fifty_clients_get_a_right_answer_or_are_asked_to_wait(server, live):
    texts = [f"The {word} ran." for word in ("cat", "dog", "red", "box", "child")]
    wanted = {
        text: json.loads(json.dumps(live.steer(SteerRequest(text=text, edits=(_change(n),), new_tokens=4))))
        for n, text in enumerate(texts)
    }

    def client(n: int) -> int:
        number = n % len(texts)
        text, edit = texts[number], _change(number)
        status, headers, body = ask(
            server, "POST", STEER, {"text": text, "edits": [edit.model_dump()], "new_tokens": 4}
        )
        if status == 503:
            assert int(headers["Retry-After"]) >= 1
            assert "error" in json.loads(body)
        else:
            assert status == 200
            assert json.loads(body) == wanted[text]
        return status

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(client, range(50)))
    assert found.count(200) >= 9
    assert set(found) <= {200, 503}
    # One at a time afterwards: nobody kept a place in the queue, and no edit was left open.
    assert [client(n) for n in range(5)] == [200] * 5


def _change(n: int) -> Change:
    return Change(feature=n, mode=("ablate", "clamp", "add")[n % 3], strength=0.0 if n % 3 == 0 else 2.0)


def test_a_question_that_takes_too_long_is_ended(live, site):
    with running(live, site, seconds=1.0) as server:
        kind, steer = server.questions[STEER]

        def late(asked, check):
            time.sleep(1.1)
            return steer(asked, check)

        server.questions[STEER] = (kind, late)
        edits = [{"feature": 1, "mode": "ablate"}]
        status, headers, body = ask(server, "POST", STEER, {"text": "The cat", "edits": edits})
        assert status == 503
        assert "Retry-After" not in headers  # it would take as long again
        assert json.loads(body) == {"error": "took longer than 1 s; ask for less"}
    assert live.steer(SteerRequest(text=TEXT))["kl"] == 0


@contextmanager
def endless(live, site, **options):
    """A server whose answers to STEER take a minute, and an event: one of them is worked on."""
    begun = threading.Event()

    def work(asked, check):
        begun.set()
        for _ in range(600):
            check()
            time.sleep(0.1)
        return {}

    with running(live, site, **options) as server:
        server.questions[STEER] = (server.questions[STEER][0], work)
        yield server, begun


def asking(server) -> socket.socket:
    """A connection that has asked STEER."""
    body = json.dumps({"text": TEXT}).encode()
    head = f"POST {STEER} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_who_hangs_up_is_not_worked_for(live, site):
    """One that is worked for and all of the queue: the next who asks is answered."""
    with endless(live, site, seconds=60.0) as (server, begun):
        first = asking(server)
        assert begun.wait(20)
        for connection in (first, *(asking(server) for _ in range(8))):
            connection.close()
        started = time.monotonic()
        while ask(server, "POST", ACT, {"text": TEXT})[0] != 200:
            assert time.monotonic() - started < 20, "places in the queue are held by nobody"
            time.sleep(0.1)
        assert server.answered <= 10


def test_the_end_of_the_server_ends_the_question(live, site):
    with endless(live, site, seconds=60.0) as (server, begun), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(refused, server, "POST", STEER, {"text": TEXT})
        assert begun.wait(10)
        started = time.monotonic()
        server.shutdown()
        server.server_close()
        assert waiting.result(timeout=20) == (503, "the server is ending")
        assert time.monotonic() - started < 20


def test_a_fault_of_ours_is_no_news_to_the_client(live, site, capsys):
    with running(live, site) as server:
        kind, _ = server.questions[ACT]
        server.questions[ACT] = (kind, lambda asked, _: {"value": object()})
        assert refused(server, "POST", ACT, {"text": "a"}) == (
            500,
            "something went wrong; the terminal shows what",
        )
        assert ask(server, "POST", STEER, {"text": "The cat", "new_tokens": 0})[0] == 200
    assert "Traceback" in capsys.readouterr().err
