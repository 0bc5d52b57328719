"""Accessibility of the pages as axe-core sees it in a real browser: both themes, narrow screens, focus."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from cli.features_made import made
from dashboards.circuit_parts import found, prompts
from dashboards.live_parts import TEXT, live_of, site_at
from dashboards.serve_client import running
from dashboards.toy_features import SITE, blocks
from mechlab.dashboards.build import read_parts, site_of
from mechlab.dashboards.compare_block import Side, compare_block
from mechlab.dashboards.site import Site
from mechlab.features.building import load_index
from mechlab.sae.dictionary import load_sae

pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.browser
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
# Rows of a table are alike, and axe-core looks long at each: here every kind of feature is there once.
FEW = replace(SITE, blocks=lambda: blocks(6))
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(tab) -> list[str]:
    """What is wrong at the moment, one line per element."""
    if tab.evaluate("typeof axe") == "undefined":
        tab.evaluate(AXE)
    found = tab.evaluate("rules => axe.run(document, { runOnly: rules })", RULES)
    return [
        f"{each['impact']} {each['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


def test_violations_are_found(visit_site):
    tab = visit_site(FEW, "#/features")
    tab.wait_for_selector("#view h2")
    tab.evaluate("() => document.querySelector('#view').append(document.createElement('button'))")
    assert [line.split()[:2] for line in violations(tab)] == [["critical", "button-name:"]]


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1300),
        pytest.param("dark", 1300, marks=pytest.mark.slow),
        pytest.param("light", 360, marks=pytest.mark.slow),
    ],
)
def test_features(visit_site, scheme, width):
    tab = visit_site(FEW)
    tab.set_viewport_size({"width": width, "height": 800})
    tab.emulate_media(color_scheme=scheme)
    wrong = {}
    for address in (
        "#/features?plot=1&sort=score&down=1",
        "#/features?q=oops:1",
        "#/feature/3",
        "#/feature/3?tab=judged&full=1&lines=1",
        "#/feature/5",
        "#/feature/none",
    ):
        tab.evaluate(f"document.querySelector('#view').replaceChildren(); location.hash = '{address}'")
        tab.wait_for_selector("#view h2")
        for summary in tab.locator("summary").all():
            summary.click()
        sideways = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
        wrong[address] = violations(tab) + ([f"{sideways} pixels too wide"] if sideways > 0 else [])
    assert {address: lines for address, lines in wrong.items() if lines} == {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Site:
    """A site of the bundled model with all views but the comparison."""
    folder: Path = made(tmp_path_factory.getbasetemp())
    subject, _, judge = prompts()
    parts = {"index": folder / "index", "dictionary": folder / "sae"}
    read = read_parts(parts, subject=subject, title="Whole", facts={"model": "fable"})
    site = site_of(replace(read, circuit=found(), prompts=judge), steer=3, documents=3)
    made_once = list(site.blocks())
    return replace(site, blocks=lambda: iter(made_once))


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Site:
    """Two dictionaries and two circuits."""
    folder: Path = made(tmp_path_factory.getbasetemp())
    sides = [
        Side(sae, load_sae(folder / sae), found(method), load_index(folder / index))
        for sae, index, method in (("sae", "index", "eap-ig"), ("other", "elsewhere", "path"))
    ]
    block = compare_block(*sides)
    return Site("Compared", ("compare",), {}, lambda: iter([("compare", block)]))


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1300), ("dark", 360)])
def test_every_view(visit_site, whole, compared, scheme, width):
    assert whole.views == ("features", "circuit", "tokens", "run")
    addresses = [f"#/{view}" for view in whole.views]
    more = ["#/feature/0", "#/circuit?node=a2.h2", "#/circuit?node=m1", "#/tokens?at=3&feature=1"]
    wrong = {}
    for site, address in [*((whole, each) for each in [*addresses, *more]), (compared, "#/compare")]:
        tab = visit_site(site, address)
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_selector("#view h2, #view h3, #view table")
        tab.wait_for_timeout(300)  # parts that are loaded one after the other
        assert tab.locator("#view [role=alert]:not(:empty)").count() == 0
        sideways = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
        wrong[address] = violations(tab) + ([f"{sideways} pixels too wide"] if sideways > 0 else [])
    assert {address: lines for address, lines in wrong.items() if lines} == {}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_live_view(browser, tmp_path, tmp_path_factory, scheme):
    live = live_of(tmp_path_factory.getbasetemp())
    with running(live, site_at(tmp_path / "site"), token="for-the-browser-test") as server:
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(server.url + "#/live")
        tab.fill("#live-text", TEXT)
        tab.keyboard.press("Control+Enter")
        tab.wait_for_selector(".chip")
        assert violations(tab) == []
        tab.close()


def test_focus_is_seen_and_nothing_moves_for_those_who_mind(visit_site):
    tab = visit_site(SITE, "#/feature/33")
    tab.wait_for_selector("#view h2")
    tab.emulate_media(reduced_motion="reduce")
    seen = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        style = tab.evaluate(
            "() => { const at = document.activeElement, s = getComputedStyle(at);"
            " return [at.tagName, s.outlineStyle, s.animationName, s.transitionDuration]; }"
        )
        if style[0] == "BODY":
            break
        seen.add(style[0])
        assert style[1] != "none", style
        assert style[2:] == ["none", "0s"], style
    assert {"A", "BUTTON", "SPAN", "INPUT"} <= seen
