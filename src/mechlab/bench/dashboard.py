"""What a dashboard costs: building it, its size, and how fast a browser shows and filters it.

The index is made up (``bench.features``), and so is what is said of its features: sentences and scores as
long as real ones. With a finished run, what the page of that takes is measured beside it, with model,
logits and the items behind its scores. Times in the browser are those of its own clock: from the start of
the navigation until rows of the table are painted, and from a change of the search until rows are laid out.
"""

from __future__ import annotations

import re
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mechlab.bench.feature_peers import measure_peers
from mechlab.bench.features import Sizes, build, make_problem
from mechlab.bench.peers import FOLDER
from mechlab.dashboards.build import Findings, read_run, site_of
from mechlab.dashboards.site import Site, write_site
from mechlab.features.building import load_index
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.scorecard import Scorecard, Scored
from mechlab.features.statistics import statistics_of
from mechlab.scores import Score

Progress = Callable[[str, int, int, dict[str, float]], None]
QUERIES = ("w12", "detection>0.8", "density<1e-3 -w1", 'token:" w7"', "flag:dead", "")
_DOCUMENTS = 4
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Rows are there, and have been painted: two frames later.
_WATCH = """new MutationObserver((_, observer) => {
  if (!document.querySelector("main tbody tr td a")) return;
  observer.disconnect();
  requestAnimationFrame(() => requestAnimationFrame(() => { window.shown = performance.now(); }));
}).observe(document, { childList: true, subtree: true });"""
_FILTER = """(query) => {
  const search = document.querySelector("[data-search]");
  const started = performance.now();
  search.value = query;
  search.dispatchEvent(new Event("input", { bubbles: true }));
  document.body.getBoundingClientRect();
  return performance.now() - started;
}"""


# Inline blocks about features: the overview always, and all in a page of one file.
_FEATURES = re.compile(rb'<script type="application/json" id="b-(?:overview|features-\d+)">[^<]*')


def said_of(index: FeatureIndex, seed: int = 0) -> tuple[Explanations, Scorecard]:
    """A sentence and two scores of every live feature, made up."""
    generator = np.random.default_rng(seed)
    items, scored = [], []
    for feature in index.live.tolist():
        words = ", ".join(f"'w{word}'" for word in generator.integers(8192, size=3).tolist())
        text = f"fires on one of the words {words} ({generator.integers(40, 100)} % of its activation)"
        items.append(Explanation(feature, "rules", text))
        for scorer in ("detection", "fuzzing"):
            value, half = float(generator.random()), 0.08
            null = Score(f"{scorer}, control", 0.5, 0.42, 0.58, 100, chance=0.5)
            score = Score(scorer, value, value - half, value + half, 100, chance=0.5, null=null)
            scored.append(Scored(feature, "rules", scorer, score, 0.01, 0, 50, 50))
    return Explanations(tuple(items), (), index.n_features), Scorecard(tuple(scored), ())


def built(site: Site, out: Path) -> dict[str, Any]:
    """Writes a site: seconds, features a minute, its bytes, and those of what it says of a feature."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    written = write_site(site, out)
    seconds = time.perf_counter() - started
    features = site.facts["features"]
    inline = sum(len(block) for block in _FEATURES.findall((out / "index.html").read_bytes()))
    shards = sum(path.stat().st_size for path in out.glob("data/features-*.js"))
    return {
        "features": features,
        "seconds": seconds,
        "features_per_minute": 60 * features / seconds,
        "bytes": written.bytes,
        "bytes_per_feature": (inline + shards) / features,
        "files": written.n_files,
    }


def browsed(page: Path, *, repeats: int, progress: Progress | None = None) -> dict[str, Any] | None:
    """First view and filtering in headless Chromium, medians of ``repeats`` fresh tabs, in ms.

    The filter is that of the slowest of ``QUERIES``. None where playwright or a Chromium is not there.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    executable = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if executable is None:
        return None
    first: list[float] = []
    filters: dict[str, list[float]] = {query: [] for query in QUERIES}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for done in range(repeats + 1):
            tab = browser.new_page(viewport={"width": 1300, "height": 800})
            tab.add_init_script(_WATCH)
            tab.goto(page.resolve().as_uri())
            tab.locator("main tbody tr td a").first.wait_for()
            while (shown := tab.evaluate("window.shown")) is None:
                tab.wait_for_timeout(5)
            shown = float(shown)  # a whole number of milliseconds comes out of the browser as an int
            times = {query: float(tab.evaluate(_FILTER, query)) for query in QUERIES}
            tab.close()
            if done:  # the first one warms up
                first.append(shown)
                for query, took in times.items():
                    filters[query].append(took)
            if progress:
                progress("browser", done, repeats, {"first view ms": shown})
        version = browser.version
        browser.close()
    slowest = {query: statistics.median(took) for query, took in filters.items()}
    return {
        "version": version,
        "first_view_ms": statistics.median(first),
        "first_view_range": [min(first), max(first)],
        "filter_ms": max(slowest.values()),
        "filters": slowest,
    }


def measure(
    sizes: Sizes,
    work: Path,
    *,
    run: Path | None = None,
    repeats: int = 5,
    peers: bool = True,
    peer_folder: Path = FOLDER,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All figures.

    Args:
        run: a finished run, whose page is built too.
        repeats: tabs that count.
        peers: measure SAEDashboard, where its environment is there.

    Raises MechlabError when there is no such run.
    """
    index = _index(sizes, work / "index", seed)
    explanations, scores = said_of(index, seed)
    found = Findings(
        title="made up",
        facts={"model": "made up", "site": "made up"},
        index=index,
        statistics=statistics_of(index),
        explanations=explanations,
        scores=scores,
    )

    def tell(step: str, done: int, total: int) -> None:
        if progress:
            progress(step, done, total, {})

    payload: dict[str, Any] = {
        "sizes": {"entries": sizes.entries, "features": sizes.features, "rows": sizes.rows},
        "build": built(site_of(found, documents=_DOCUMENTS, progress=tell), work / "site"),
        "browser": browsed(work / "site" / "index.html", repeats=repeats, progress=progress),
    }
    if run is not None:
        payload["run"] = built(site_of(read_run(run), progress=tell), work / "run")
    if peers:
        made, payload["missing"] = measure_peers(
            index, work, names=("saedashboard",), folder=peer_folder, progress=progress
        )
        payload["peers"] = made
        ours = payload["build"]["seconds"] / payload["build"]["features"]
        payload["ratios"] = {name: each["feature"] / ours for name, each in made.items()}
    return payload


def _index(sizes: Sizes, path: Path, seed: int) -> FeatureIndex:
    build(make_problem(sizes, seed), path)
    return load_index(path)
