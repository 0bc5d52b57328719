"""One request to the live dashboard's server: who may ask what, and how it is answered.

Every connection carries one request (HTTP/1.0). Whatever is refused is refused with a status and one
line of JSON, {"error": …}, in which no text that was sent is repeated but a field's name.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from mechlab.dashboards.serve import Server

BODY = 64 * 1024
_DISCARDED, _LINGER = 16 * 1024 * 1024, 2.0
# Bytes per second that a client's line must carry: a large page takes its time through a tunnel.
_SLOWEST = 100_000
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Shards are scripts: without this any page could include them and read what they hold.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    """What is sent back: the body, or the file that holds it."""

    body: bytes | Path
    type: str = _JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A request that is not answered, with the status and the line that say why."""

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.answer = Answer(
            as_json({"error": why}),
            status=status,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )


class Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "mechlab", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._reader = _Until(self.connection, time.monotonic() + self.server.seconds)
        self.rfile = io.BufferedReader(self._reader)
        self.unread = 0  # bytes of the body

    def parse_request(self) -> bool:
        """False, and answered, when the request line or the headers are no good."""
        if not super().parse_request():
            return False
        length = self.headers.get("Content-Length", "0")
        known = length.isdecimal() and len(length) < 16 and "Transfer-Encoding" not in self.headers
        self.unread = int(length) if known else _DISCARDED
        if self.command not in ("GET", "HEAD", "POST"):
            self._send(Refused(405, "method is not understood", Allow="GET, HEAD, POST").answer)
            return False
        return True

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request, in the same form as everything else."""
        self._send(Refused(int(code), self.responses[code][0]).answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses may hold the token."""

    def _respond(self) -> None:
        try:
            answer = self._answer()
        except Refused as refused:
            answer = refused.answer
        except OSError:
            raise
        except Exception:
            traceback.print_exc()
            answer = Refused(500, "something went wrong; the terminal shows what").answer
        self._send(answer)

    def _answer(self) -> Answer:
        server = self.server
        host = self.headers.get("Host", "").lower()
        if server.names is not None and re.sub(r":\d+$", "", host) not in server.names:
            raise Refused(403, "this server goes by another name: open the address that its terminal shows")
        path, _, query = self.path.partition("?")
        origin = self.headers.get("Origin")
        if self.command == "POST" and origin is not None and origin.lower().partition("://")[2] != host:
            raise Refused(403, "asked by a page of another site")
        cookie = self._admit(query)
        if path in server.questions:
            if self.command != "POST":
                raise Refused(405, "this is asked by POST", Allow="POST")
            return server.ask(path, self._body(), self._gone)
        if path not in server.files:
            raise Refused(404, "nothing here")
        if self.command == "POST":
            raise Refused(405, "this is only read", Allow="GET, HEAD")
        found = server.files[path]
        try:
            body = found.body if isinstance(found.body, bytes) else found.body.read_bytes()
        except OSError:
            raise Refused(404, "file is gone; start the server again") from None
        return Answer(body, found.type, headers={**found.headers, **cookie})

    def _admit(self, query: str) -> dict[str, str]:
        """Whether the client has the token; a cookie to set for one that shows it in the address."""
        token = self.server.token
        if token is None:
            return {}
        name = f"mechlab-{self.server.port}"
        pairs = (part.strip().partition("=") for part in self.headers.get("Cookie", "").split(";"))
        shown = [value for key, _, value in pairs if key == name]
        kind, _, bearer = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            shown.append(bearer.strip())
        asked = parse_qs(query).get("token", [""])[0] if self.command == "GET" else ""
        if asked and _same(asked, token):
            return {"Set-Cookie": f"{name}={token}; HttpOnly; SameSite=Strict; Path=/"}
        if not any(_same(each, token) for each in shown):
            raise Refused(
                401,
                "token is missing or wrong: open the address that the server's terminal shows",
                WWW_Authenticate="Bearer",
            )
        return {}

    def _body(self) -> bytes:
        if self.headers.get_content_type() != _JSON:
            raise Refused(415, f"send {_JSON}")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            raise Refused(400, "Content-Length is missing or no number")
        if self.unread > BODY:
            raise Refused(413, f"body is larger than {BODY} bytes")
        body = self.rfile.read(self.unread)
        if len(body) < self.unread:
            raise ConnectionError
        self.unread = 0
        return body

    def _gone(self) -> bool:
        """Whether the client has hung up, or at least says no more."""
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _send(self, answer: Answer) -> None:
        body = answer.body
        assert isinstance(body, bytes)
        self.connection.settimeout(self.server.seconds + len(body) / _SLOWEST)
        self.send_response(answer.status)
        for name, value in {**_HEADERS, **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        # Closing with bytes unread would reset the connection and take the answer with it.
        left = min(self.unread, _DISCARDED)
        if left:
            self.connection.shutdown(socket.SHUT_WR)
            self._reader.end = min(self._reader.end, time.monotonic() + _LINGER)
        while left > 0 and (piece := self.rfile.read1(min(left, 1 << 16))):
            left -= len(piece)


class _Until(io.RawIOBase):
    """A socket to read from until a moment: a limit for each read alone would let a slow client stay."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection, self.end = connection, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


def _same(shown: str, token: str) -> bool:
    """Compared in a time that does not tell where they differ."""
    return secrets.compare_digest(shown.encode("utf-8", "replace"), token.encode())


def as_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
