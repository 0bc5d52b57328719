"""A small page, and one full of strings that try to break out of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mechlab.dashboards.drawing import CircuitRecord, HeadRecord
from mechlab.dashboards.page import ContextRecord, FeatureRecord, Page, Result
from mechlab.dashboards.site import LIMIT, Site, write_site
from mechlab.scores import Score

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


def make_score(value: float) -> Score:
    null = Score("detection", 0.49, 0.41, 0.58, 80, None, 0.5)
    return Score("detection", value, value - 0.08, min(1.0, value + 0.05), 80, null, 0.5)


def make_feature(number: int, tokens: tuple[str, ...] = ("Once", " upon", " a", " time")) -> FeatureRecord:
    activations = tuple(float(i) for i in range(len(tokens)))
    return FeatureRecord(
        index=number,
        density=0.01 * (number + 1),
        maximum=max(activations),
        mean=1.5,
        histogram=(9, 0, 3, 1),
        explanation=f"fires on 'word{number}' (90 % of its activation)",
        score=make_score(0.6 + 0.03 * number),
        contexts=(ContextRecord(tokens, activations, document=7, centre=len(tokens) - 1),),
    )


CIRCUIT = CircuitRecord(
    task="greater-than",
    method="EAP-IG",
    n_edges=4,
    faithfulness=Score("faithfulness", 0.9, 0.85, 0.94, 64, Score("random", 0.02, -0.03, 0.08, 64)),
    edges=(
        ("embed", "a0.h1.q", 0.5),
        ("a0.h1", "m1", -0.25),
        ("m1", "logits", 1.0),
        ("embed", "a1.h0.v", 0.1),
    ),
    heads=(HeadRecord("a0.h1", 0.4, 0.5), HeadRecord("a1.h0", 0.1, None), HeadRecord("a1.h3", -0.8, -0.7)),
)


@pytest.fixture
def page() -> Page:
    return Page(
        title="A run",
        model="tiny",
        site="blocks.1.hook_resid_post",
        tokens=123456,
        command="mechlab run --seed 0 --out 'my run'",
        config={"width": 8, "nested": {"k": 2}},
        fingerprints={"model": "ab" * 32},
        results=(Result.of(make_score(0.8), "Detection"), Result("Live", "7 of 8")),
        timings={"harvest": 1.5, "train": 20.0},
        features=(
            *(make_feature(n) for n in range(6)),
            FeatureRecord(6, 0.0, 0.0, 0.0, unscored="never fired"),
        ),
        circuit=CIRCUIT,
    )


@pytest.fixture
def hostile(page) -> Page:
    all_of_them = " ".join(HOSTILE)
    return replace(
        page,
        title=all_of_them,
        model=all_of_them,
        site=all_of_them,
        command=all_of_them,
        config={all_of_them: all_of_them},
        fingerprints={all_of_them: all_of_them},
        results=(Result(all_of_them, all_of_them, note=all_of_them),),
        timings={all_of_them: 1.0},
        features=(
            replace(make_feature(0, HOSTILE), explanation=all_of_them, score=None, unscored=all_of_them),
        ),
        circuit=replace(
            CIRCUIT,
            task=all_of_them,
            method=all_of_them,
            edges=((all_of_them, "logits", 1.0),),
            heads=(HeadRecord(all_of_them, 1.0, 1.0),),
        ),
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

    At the end there may have been no complaint on the console, and no request but for files of the
    site's own directory.
    """
    complaints: list[str] = []
    requests: list[str] = []
    folder: Path = tmp_path / "site"
    tab = browser.new_page(viewport={"width": 1300, "height": 800})
    tab.set_default_timeout(10_000)
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))

    def go(site: Site, address: str = "", limit: int = LIMIT) -> Any:
        written = write_site(site, folder, limit=limit, overwrite=True)
        tab.goto("about:blank")
        tab.goto(written.path.as_uri() + address)
        return tab

    yield go
    tab.close()
    assert complaints == []
    foreign = [url for url in requests if not url.startswith((folder.as_uri() + "/", "data:", "about:blank"))]
    assert foreign == []
