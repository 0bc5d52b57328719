"""A site over HTTP with its model loaded, for one person and their own browser.

What guards it, in the order in which a request meets it:

* a bounded number of connections, each with a time limit for the request and one for the answer;
* the Host header, so that no foreign name can be pointed here (DNS rebinding); for POST the Origin
  header and JSON as content type, so that no other page can make the browser ask (CSRF);
* a token, for anything but the loopback address;
* files by a fixed table of addresses, so that no path reaches the file system;
* bodies of limited size, read as one of the types of ``mechlab.dashboards.live`` and nothing else;
* one question to the model at a time, as edits act on the module that all threads share, and a
  queue of limited length.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import html
import ipaddress
import json
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from typing import Any

from pydantic import ValidationError

from mechlab.artifacts import Artifact
from mechlab.dashboards.live import ActivationsRequest, Live, Request, SteerRequest
from mechlab.dashboards.serve_request import Answer, Handler, Refused, as_json
from mechlab.dashboards.site import CLIENT, INDEX, script_json
from mechlab.errors import MechlabError

_CONNECTIONS, _QUEUE, _TOKEN = 64, 8, 16
# Seconds between looks at whether somebody in the queue is still there.
_LOOK = 0.1
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
Ask = Callable[[Any, Callable[[], None]], dict[str, Any]]
"""(question, what to call now and then: it raises when the answer is not wanted any more) → answer."""


class Server(ThreadingHTTPServer):
    """Serves a site and answers questions to its model. Use ``serve_forever``, then ``server_close``.

    Args:
        live: the model.
        site: a site that ``write_site`` made.
        host, port: where to listen; port 0 takes any free one.
        token: what clients must show; any host but this machine's own gets one when none is given.
        seconds: for a request to arrive, for a short answer to leave, and for a question to wait and be
            worked on.

    Raises MechlabError when the address is taken or cannot be had, the token is too short, or the site
    is of another dictionary.

    Attributes:
        token: the token, or None.
        url: address of the page, with the token.
        files, questions: what can be read, and asked, at which address.
        answered: number of questions that the model was asked.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        live: Live,
        site: Artifact,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        seconds: float = 30.0,
    ) -> None:
        if token is not None and not re.fullmatch(rf"[\w.~-]{{{_TOKEN},}}", token, re.ASCII):
            raise MechlabError(
                "token is too easy to guess or cannot stand in an address",
                None,
                f"at least {_TOKEN} letters, digits, or any of - . _ ~",
            )
        if not 0 <= port < 2**16:
            raise MechlabError("port is out of range", port, "0 to 65535; 0 takes any free one")
        if not 0 < seconds <= 3600:
            raise MechlabError("seconds are out of range", seconds, "more than 0, at most an hour")
        shown_of, loaded = (
            site.manifest.inputs.get("dictionary"),
            live.dictionary.artifact.manifest.fingerprint,
        )
        if shown_of not in (None, loaded):
            raise MechlabError("dashboard is of another dictionary", site.path, "build it again")
        self.seconds, self.answered = seconds, 0
        self.files = {**_files(site, live.info()), "/api/info": Answer(as_json(live.info()))}
        self.questions: dict[str, tuple[type[Request], Ask]] = {
            "/api/activations": (ActivationsRequest, lambda asked, _: live.activations(asked)),
            "/api/steer": (SteerRequest, live.steer),
        }
        self._places, self._model = threading.Semaphore(1 + _QUEUE), threading.Lock()
        self._connections, self._ending = threading.Semaphore(_CONNECTIONS), threading.Event()
        own = _loopback(host)
        self.token = token if own or token is not None else secrets.token_urlsafe(24)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, UnicodeError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            what = "port is in use" if taken else "cannot listen here"
            remedy = "choose another --port" if taken else str(getattr(error, "strerror", "") or error)
            raise MechlabError(what, f"{host}:{port}", remedy) from None
        shown = f"[{host}]" if ":" in host else host
        everywhere = host in ("0.0.0.0", "::", "")
        # Without the port, which is another one at the near end of a tunnel (ssh -L).
        names = {shown.lower(), *(("localhost", "127.0.0.1", "[::1]") if own else ())}
        # Listening on every address, it cannot know its names; there the token keeps strangers out.
        self.names = None if everywhere else names
        self.url = f"http://{socket.gethostname() if everywhere else shown}:{self.port}/"
        self.url += f"?token={self.token}" if self.token else ""

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """As for any server; HTTPServer would look up this machine's name, which may ask the network."""
        socketserver.TCPServer.server_bind(self)

    def server_close(self) -> None:
        """Stop listening, and end the question under way."""
        super().server_close()
        if not self._ending.is_set():
            self._ending.set()
            self._model.acquire(timeout=self.seconds)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, unless there are too many."""
        if not self._connections.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(1.0)
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that went away or were too slow are no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def ask(self, path: str, body: bytes, gone: Callable[[], bool]) -> Answer:
        """Validate a question, wait for the model and ask it; Refused when one of them fails.

        Where the client has ``gone`` meanwhile, the work ends with a ConnectionError.
        """
        kind, about = self.questions[path]
        try:
            asked = kind.model_validate_json(body)
        except ValidationError as error:
            raise Refused(400, _complaint(error)) from None
        deadline = time.monotonic() + self.seconds

        def check() -> None:
            if self._ending.is_set():
                raise Refused(503, "the server is ending")
            if gone():
                raise ConnectionAbortedError
            if time.monotonic() > deadline:
                raise TimeoutError

        try:
            with self._turn(check):
                return Answer(as_json(about(asked, check)))
        except MechlabError as error:
            raise Refused(400, str(error)) from None
        except TimeoutError:
            raise Refused(503, f"took longer than {self.seconds:g} s; ask for less") from None

    @contextlib.contextmanager
    def _turn(self, check: Callable[[], None]) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise Refused(503, "too many questions at once; try again", Retry_After="1")
        try:
            try:
                while not self._model.acquire(timeout=_LOOK):
                    check()
            except TimeoutError:
                raise Refused(503, "model is busy; try again", Retry_After="1") from None
            try:
                check()
                self.answered += 1
                yield
            finally:
                self._model.release()
        finally:
            self._places.release()


def _files(site: Artifact, info: dict[str, Any]) -> dict[str, Answer]:
    """Address → file, for the files that the site's manifest lists, and the page made a live one."""
    root = site.path.resolve()
    found: dict[str, Answer] = {}
    for name in site.manifest.files:
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.suffix in _TYPES:
            found[f"/{name}"] = Answer(path, _TYPES[path.suffix])
    page, policy = _live_page((root / INDEX).read_text(encoding="utf-8"), info)
    found["/"] = found[f"/{INDEX}"] = Answer(
        page.encode(), _TYPES[".html"], headers={"Content-Security-Policy": policy}
    )
    return found


def _live_page(page: str, info: dict[str, Any]) -> tuple[str, str]:
    """A site's page with the view that asks the model, and its policy, which becomes a header.

    Policies only add up: one left in the page would forbid it to ask the server.
    """
    meta = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">\n?', page)
    block = re.search(r'(<script type="application/json" id="b-site">)(.*?)</script>', page)
    end = page.rfind("</body>")
    if meta is None or block is None or end < 0:
        raise MechlabError("page of the site cannot be read", INDEX, "build the dashboard again")
    facts = script_json({**json.loads(block[2]), "live": info})
    script, style = ((CLIENT / f"live.{ending}").read_text() for ending in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(meta[1]).replace("script-src ", f"script-src 'sha256-{digest}' ")
    head = page[: meta.start()] + page[meta.end() : block.start(2)] + str(facts)
    view = f"<style>{style}</style><script>{script}</script>"
    live = head + page[block.end(2) : end] + view + page[end:]
    return live, f"{policy}; connect-src 'self'; frame-ancestors 'none'"


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _complaint(error: ValidationError) -> str:
    """The first thing wrong with a question, on one line and without what was sent."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return " ".join(f"{place}: {first['msg']}".removeprefix(": ").split())[:300]
