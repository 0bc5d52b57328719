"""``mechlab dashboard serve``."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

import tyro

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.settings import Settings


class ServeConfig(Settings):
    """Show the dashboard of a run with its model loaded, until Ctrl-C.

    Type a text, see which features it activates, ablate or steer some and see what the model then says.
    Only this machine can reach it, unless --host says otherwise; then a token is needed, which is
    part of the address that is printed.

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

    from mechlab.artifacts import exists, open_artifact
    from mechlab.dashboards.live import open_live
    from mechlab.dashboards.serve import Server
    from mechlab.dashboards.site import KIND
    from mechlab.errors import MechlabError

    place = config.site or config.run / "dashboard"
    if not exists(place):
        raise MechlabError("no dashboard here", place, f"mechlab dashboard build {config.run} --out {place}")
    site = open_artifact(place, KIND)
    live = open_live(config.run, device=config.device, trust_remote_code=config.trust_remote_code)
    server = Server(
        live, site, host=config.host, port=config.port, token=config.token, seconds=float(config.seconds)
    )
    try:
        print(f"mechlab: serving {server.url}\nmechlab: Ctrl-C ends", file=sys.stderr, flush=True)
        if config.open:
            webbrowser.open(server.url)
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    payload = {"port": server.port, "questions": server.answered}
    return Outcome(payload, f"ended after {server.answered} questions")
