"""A browser that is watched while it shows a site, strings that try to break out of one, a live server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.live_parts import live_of, site_at
from dashboards.serve_client import running
from mechlab.artifacts import Artifact
from mechlab.dashboards.live import Live
from mechlab.dashboards.serve import Server
from mechlab.dashboards.site import LIMIT, Site, write_site

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

HOSTILE = (
    "<script>window.hit=1</script>",
    "</script><script>window.hit=1</script>",
    "</style><img src=x onerror=window.hit=1>",
    "<!--",
    '" onmouseover="window.hit=1',
    "' & &amp; `${window.hit=1}`",
    "{{ 7 * 7 }}",
    "\u202eRTL שלום",
    "line\u2028end",
    "half \ud83d of a pair",
    "null \x00 byte",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium under playwright; tests that need it are skipped where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit_site(browser, tmp_path) -> Iterator[Any]:
    """Write a site and open it from its file: ``visit_site(site, "#/run", limit=0)`` gives the tab.

    At the end there may have been no complaint on the console, no request but for files of the site's own
    directory, and no value of the script's own in the text.
    """
    complaints: list[str] = []
    requests: list[str] = []
    folder: Path = tmp_path / "site"
    tab = browser.new_page(viewport={"width": 1300, "height": 800})
    tab.set_default_timeout(30_000)  # slow only where other work shares the processor
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))

    def go(site: Site, address: str = "", limit: int = LIMIT) -> Any:
        written = write_site(site, folder, limit=limit, overwrite=True)
        tab.goto("about:blank")
        tab.goto(written.path.as_uri() + address)
        return tab

    yield go
    words = tab.locator("body").inner_text().splitlines() if tab.url != "about:blank" else []
    tab.close()
    assert not {"false", "true", "null", "undefined", "NaN", "[object Object]"}.intersection(words)
    assert complaints == []
    foreign = [url for url in requests if not url.startswith((folder.as_uri() + "/", "data:", "about:blank"))]
    assert foreign == []


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """The bundled model with a dictionary of 96 features."""
    return live_of(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A small site of as many features, in shards."""
    return site_at(tmp_path_factory.mktemp("served") / "site")


@pytest.fixture(scope="module")
def server(live: Live, site: Artifact) -> Iterator[Server]:
    """Both, served without a token."""
    with running(live, site) as started:
        yield started
