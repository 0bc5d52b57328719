"""``mechlab dashboard serve``."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import webbrowser
from pathlib import Path

import tyro

from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_directory
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings


class ServeConfig(Settings):
    """Show the dashboard of a run with its model loaded, until Ctrl-C.

    Type a text, see which features it activates, ablate or steer some and see what the model then says.
    A run without a dashboard gets one first. Only this machine can reach it, unless --host says
    otherwise; then a token is needed, which is part of the address that is printed.

    Example: mechlab dashboard serve runs/demo --open
    """

    run: tyro.conf.Positional[Path] = Path("runs/demo")
    """Directory of the run."""
    site: Path | None = None
    """A dashboard that was built of it; RUN/dashboard by default."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = 0
    """Port; 0 takes any free one."""
    token: str | None = None
    """What clients must show; made up where one is needed and none is given."""
    open: bool = False
    """Open a browser."""
    seconds: float = 30.0
    """Longest that a question may wait and be worked on."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    trust_remote_code: bool = False
    """Allow a hub model to run its own code."""


def serve(words: list[str], program: str) -> Outcome:
    """Serve until interrupted."""
    config = parse(ServeConfig, words, program)

    from mechlab.artifacts import open_artifact
    from mechlab.dashboards.live import open_live
    from mechlab.dashboards.serve import Server
    from mechlab.dashboards.site import KIND, client_digest

    open_artifact(config.run, "run")
    with contextlib.ExitStack() as rest:
        site = open_artifact(_page(config, rest), KIND)
        if site.manifest.config.get("client") != client_digest():
            _say(f"{site.path} was built by another version; build it again should a view fail")
        live = open_live(config.run, device=config.device, trust_remote_code=config.trust_remote_code)
        server = Server(
            live, site, host=config.host, port=config.port, token=config.token, seconds=float(config.seconds)
        )
        try:
            _say(f"serving {server.url}")
            _say("Ctrl-C ends")
            if config.open:
                webbrowser.open(server.url)
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
    payload = {"port": server.port, "questions": server.answered}
    return Outcome(payload, f"ended after {server.answered} questions")


def _page(config: ServeConfig, rest: contextlib.ExitStack) -> Path:
    """Where the dashboard stands. A run without one gets it; for a while only, where it cannot be written."""
    from mechlab.artifacts import exists
    from mechlab.dashboards.build import dashboard

    place = config.site or config.run / "dashboard"
    if exists(place):
        return place
    if config.site is not None:
        raise MechlabError("no dashboard here", place, f"mechlab dashboard build {config.run} --out {place}")
    try:
        require_directory(place)
    except MechlabError:
        place = Path(rest.enter_context(tempfile.TemporaryDirectory(prefix="mechlab-"))) / "dashboard"
    with Reporter() as report:
        report.say(f"{config.run} has no dashboard yet: building {place}")
        dashboard(
            config.run,
            place,
            trust_remote_code=config.trust_remote_code,
            progress=lambda step, done, total: report(step, done, total, {}),
        )
    return place


def _say(line: str) -> None:
    print(f"mechlab: {line}", file=sys.stderr, flush=True)
