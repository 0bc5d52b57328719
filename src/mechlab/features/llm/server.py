"""A local language-model server whose answers and faults are scripted.

Speaks the OpenAI chat-completions protocol (``POST …/chat/completions``) and the Anthropic messages
protocol (``POST …/messages``) over real HTTP on 127.0.0.1, so that everything above it can be tried
without a model, a key or a network.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mechlab.errors import MechlabError, near
from mechlab.files import canonical_json

FAULTS = (
    "429",  # too many requests, with Retry-After
    "500",  # server error
    "400",  # bad request
    "401",  # bad key
    "404",  # no such model
    "hang",  # no answer until the client gives up
    "drop",  # connection closed without an answer
    "truncated",  # the body is cut off half way; billed
    "refusal",  # the model declines; billed
    "short",  # one answer fewer than asked for; billed
    "prose",  # text where JSON was asked for; billed
)
_TOKEN = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
Plan = Callable[[dict[str, Any], int], str | None]


@dataclass(frozen=True)
class Answer:
    """What the scripted model says.

    Attributes:
        text: its message.
        confidence: probability of every token of it; the rest goes to "0", and for "0" to "1".
    """

    text: str
    confidence: float = 0.9


@dataclass(frozen=True)
class Exchange:
    """One request that reached the server.

    Attributes:
        body: what was asked.
        fault: what was made to go wrong; None for an answer.
        input_tokens, output_tokens: what a provider would bill, 0 for an error.
    """

    body: dict[str, Any]
    fault: str | None
    input_tokens: int
    output_tokens: int


def first(*faults: str | None) -> Plan:
    """A plan by which the first, second, … try of every distinct request fails so; later ones succeed."""
    return lambda body, attempt: faults[attempt] if attempt < len(faults) else None


def some(faults: Sequence[str], share: float, *, tries: int = 1, seed: int = 0) -> Plan:
    """A plan by which a share of the distinct requests fail on their first ``tries`` tries, each in its way.

    Which fail, and how, follows from the request and the seed, whatever the order of arrival.
    """

    def plan(body: dict[str, Any], attempt: int) -> str | None:
        digest = hashlib.sha256(f"{seed}:{attempt}:{canonical_json(body)}".encode()).digest()
        hit = attempt < tries and int.from_bytes(digest[:8], "big") < share * 2**64
        return faults[digest[8] % len(faults)] if hit else None

    return plan


class ScriptedServer:
    """A context manager: the server runs inside the block.

    Args:
        answer: from the request's JSON body to the model's message. May be called from several
            threads at once. Answers count as delivered in ``log`` before the client has read them.
        faults: what goes wrong, by request and by how often the same request came before (from 0).
        retry_after: seconds that a 429 asks for.

    Attributes:
        url: base address for clients ("http://127.0.0.1:port/v1").
        log: every request that came, in order of arrival.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str | Answer],
        *,
        faults: Plan | None = None,
        retry_after: float = 0.02,
    ) -> None:
        self._answer, self._plan, self._retry_after = answer, faults or first(), retry_after
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._tries: dict[str, int] = {}
        self.log: list[Exchange] = []
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Bodies of the requests, in order of arrival."""
        return [each.body for each in self.log]

    @property
    def answered(self) -> list[Exchange]:
        """The requests that were answered as they should be."""
        return [each for each in self.log if each.fault is None]

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def _next_fault(self, body: dict[str, Any]) -> str | None:
        key = canonical_json(body)
        with self._lock:
            attempt = self._tries.get(key, 0)
            self._tries[key] = attempt + 1
        fault = self._plan(body, attempt)
        if fault is not None and fault not in FAULTS:
            raise MechlabError("unknown fault", fault, near(fault, FAULTS))
        return fault

    def _record(self, exchange: Exchange) -> None:
        with self._lock:
            self.log.append(exchange)

    def respond(self, body: dict[str, Any], anthropic: bool) -> tuple[int, bytes | None]:
        """Status and body to send, and an entry in the log; no body: say nothing and close."""
        fault = self._next_fault(body)
        if fault is not None and fault.isdigit():
            self._record(Exchange(body, fault, 0, 0))
            kind = {"401": "authentication_error", "404": "not_found_error"}.get(fault, "error")
            error = {"type": "error", "error": {"message": f"scripted {fault}", "type": kind, "code": kind}}
            return int(fault), json.dumps(error).encode()
        if fault in ("hang", "drop"):
            self._record(Exchange(body, fault, 0, 0))
            if fault == "hang":
                self._closing.wait()
            return 0, None
        given = self._answer(body)
        answer = given if isinstance(given, Answer) else Answer(given)
        answer = Answer(_spoilt(answer.text, fault), answer.confidence)
        read = len(_TOKEN.findall(_text(body)))
        written = min(len(_TOKEN.findall(answer.text)), _limit(body))
        self._record(Exchange(body, fault, read, written))
        shape = _anthropic if anthropic else _openai
        sent = json.dumps(shape(body, answer, fault == "refusal", read, written)).encode()
        return 200, sent[: len(sent) // 2] if fault == "truncated" else sent

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a 429."""
        return {"Retry-After": f"{self._retry_after:g}"}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away are part of the play."""


def _handler(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = server.respond(body, self.path.endswith("/messages"))
            if content is None:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in server.headers.items() if status == 429 else ():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing to the terminal."""

    return Handler


def _text(body: dict[str, Any]) -> str:
    """Everything that is said in a request."""
    parts = [body.get("system") or ""]
    return "\n".join(parts + [str(message["content"]) for message in body["messages"]])


def _limit(body: dict[str, Any]) -> int:
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or 10**9)


def _spoilt(text: str, fault: str | None) -> str:
    if fault == "refusal":
        return "I'm sorry, but I can't help with that."
    if fault == "prose":
        return "Certainly! Here are my thoughts on these examples."
    if fault == "short":
        try:
            return json.dumps(_without_last(json.loads(text)))
        except ValueError:
            return ""
    return text


def _without_last(value: Any) -> Any:
    """A JSON value, the last element of every list in it left out."""
    if isinstance(value, dict):
        return {key: _without_last(each) for key, each in value.items()}
    return [_without_last(each) for each in value[:-1]] if isinstance(value, list) else value


def _openai(body: dict[str, Any], answer: Answer, refused: bool, read: int, written: int) -> dict[str, Any]:
    tokens = _TOKEN.findall(answer.text)
    cut = len(tokens) > written
    text = "".join(tokens[:written])
    message = {"role": "assistant", "content": None if refused else text}
    message["refusal"] = text if refused else None
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}
    choice["logprobs"] = None
    if body.get("logprobs"):
        count = int(body.get("top_logprobs") or 0)
        choice["logprobs"] = {
            "content": [_odds(token, answer.confidence, count) for token in tokens[:written]],
            "refusal": None,
        }
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    names = {"id": "scripted", "object": "chat.completion", "created": 0, "model": body["model"]}
    return {**names, "choices": [choice], "usage": usage}


def _odds(token: str, confidence: float, count: int) -> dict[str, Any]:
    rest = max(1.0 - confidence, 1e-9)
    space = token[: len(token) - len(token.lstrip())]
    other = space + ("1" if token.strip() == "0" else "0")
    pairs = [(token, math.log(confidence)), (other, math.log(rest))]
    told = [{"token": each, "logprob": odds, "bytes": None} for each, odds in pairs]
    return {**told[0], "top_logprobs": told[:count]}


def _anthropic(
    body: dict[str, Any], answer: Answer, refused: bool, read: int, written: int
) -> dict[str, Any]:
    names: dict[str, Any] = {"id": "scripted", "type": "message", "role": "assistant", "model": body["model"]}
    text = "".join(_TOKEN.findall(answer.text)[:written])
    content: dict[str, Any] = {"type": "text", "text": text}
    stop = "refusal" if refused else "max_tokens" if len(text) < len(answer.text) else "end_turn"
    if body.get("tools") and stop == "end_turn":
        try:
            given = json.loads(text)
            content = {"type": "tool_use", "id": "scripted", "name": body["tools"][0]["name"], "input": given}
            stop = "tool_use"
        except ValueError:
            pass
    usage = {"input_tokens": read, "output_tokens": written}
    return {**names, "content": [content], "stop_reason": stop, "stop_sequence": None, "usage": usage}
