"""Accessibility of the pages as axe-core sees it in a real browser: both themes, narrow screens, focus."""

from __future__ import annotations

from importlib.resources import files

import pytest

from dashboards.toy_features import SITE

pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.browser
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(tab) -> list[str]:
    """What is wrong at the moment, one line per element."""
    tab.evaluate(AXE)
    found = tab.evaluate("rules => axe.run(document, { runOnly: rules })", RULES)
    return [
        f"{each['impact']} {each['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


def test_violations_are_found(visit_site):
    tab = visit_site(SITE, "#/features")
    tab.wait_for_selector("#view h2")
    tab.evaluate("() => document.querySelector('#view').append(document.createElement('button'))")
    assert [line.split()[:2] for line in violations(tab)] == [["critical", "button-name:"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "address",
    [
        "#/features?plot=1&sort=score&down=1",
        "#/features?q=oops:1",
        "#/feature/33",
        "#/feature/33?tab=judged&full=1&lines=1",
        "#/feature/69",
        "#/feature/none",
    ],
)
def test_features(visit_site, address, scheme):
    tab = visit_site(SITE, address)
    tab.emulate_media(color_scheme=scheme)
    tab.wait_for_selector("#view h2")
    for summary in tab.locator("summary").all():
        summary.click()
    assert violations(tab) == []


@pytest.mark.parametrize("address", ["#/features?plot=1", "#/feature/33?tab=judged"])
def test_narrow_screens(visit_site, address):
    tab = visit_site(SITE, address)
    tab.set_viewport_size({"width": 360, "height": 700})
    tab.wait_for_selector("#view h2")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert violations(tab) == []


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
