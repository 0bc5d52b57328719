"""A live server that runs, and a client that asks it over HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from contextlib import contextmanager
from typing import Any

from mechlab.artifacts import Artifact
from mechlab.dashboards.live import Live
from mechlab.dashboards.serve import Server

ACT, STEER = "/api/activations", "/api/steer"


@contextmanager
def running(live: Live, site: Artifact, **options: Any):
    server = Server(live, site, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def ask(server: Server, method: str, path: str, body: Any = None, **headers: str):
    """Status, headers and body of one request. ``_`` in header names stands for ``-``."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} if data is not None else {}
    sent.update({name.replace("_", "-"): value for name, value in headers.items()})
    try:
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def refused(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """Status and error of a request that is refused, in one line of JSON."""
    status, given, text = ask(server, method, path, body, **headers)
    assert given["Content-Type"] == "application/json"
    assert b"\n" not in text
    content = json.loads(text)
    assert list(content) == ["error"]
    return status, content["error"]


def raw(server: Server, data: bytes, seconds: float = 10.0) -> bytes:
    """Whatever comes back for some bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(data)
        found = b""
        try:
            while piece := connection.recv(65536):
                found += piece
        except (TimeoutError, ConnectionError):
            pass
        return found
