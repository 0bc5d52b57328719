"""The compare view in a real browser, from a file."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.features_made import made
from dashboards.circuit_parts import found
from dashboards.conftest import HOSTILE
from dashboards.test_axe import violations
from mechlab.dashboards.compare_block import Side, compare_block
from mechlab.dashboards.site import Site
from mechlab.features.building import load_index
from mechlab.features.explanations import Explanation, Explanations
from mechlab.sae.dictionary import load_sae

pytestmark = pytest.mark.browser
ALL = " ".join(HOSTILE)


@functools.cache
def full(base: Path) -> str:
    """Two dictionaries and two circuits."""
    folder = made(base)
    left = found()
    dropped = min(left.edges, key=lambda edge: abs(edge.score))
    mask = left.mask.clone()
    mask[left.graph.source(dropped.source), left.graph.reader(dropped.reader)] = False
    mask[0, -1] = True
    items = tuple(Explanation(n, "rules", f"fires on 'word{n}'") for n in range(96))
    one = Side(
        "first",
        load_sae(folder / "sae"),
        left,
        load_index(folder / "index"),
        Explanations(items, (), 96),
        page="",
    )
    other = Side(
        "second", load_sae(folder / "other"), replace(left, mask=mask, method="another"),
        load_index(folder / "elsewhere"), page="../b/index.html",
    )  # fmt: skip
    return json.dumps(compare_block(one, other))


@pytest.fixture
def block(tmp_path_factory) -> dict[str, Any]:
    return json.loads(full(tmp_path_factory.getbasetemp()))


@pytest.fixture
def compared(visit_site, block):
    def go(address: str = "#/compare", shown: dict[str, Any] | None = None) -> Any:
        found = block if shown is None else shown
        tab = visit_site(
            Site("Two", ("compare",), {"model": "fable"}, lambda: iter([("compare", found)])), address
        )
        tab.wait_for_selector("main table")
        return tab

    return go


def listed(tab) -> list[list[str]]:
    rows = tab.locator("section.card .table tbody tr").all()
    return [row.locator("td").all_inner_texts() for row in rows]


def test_dictionaries_side_by_side(compared, block):
    tab, found = compared(), block["dictionaries"]
    assert tab.locator("h2").first.inner_text() == "first and second"
    matched = [n for n, cosine in enumerate(found["pairs"]["cosine"]) if cosine >= 0.7]
    assert f"matched ({len(matched)})" in tab.locator(".kinds").nth(1).inner_text()
    assert tab.locator(".scores tbody tr").count() == 5
    assert "Histogram of 96 cosines" in tab.locator(".chart").get_attribute("aria-label")
    tab.locator(".kinds button", has_text="all pairs (96)").click()
    rows = listed(tab)
    assert len(rows) == 50
    best = max(range(96), key=lambda n: found["pairs"]["cosine"][n])
    assert rows[0][0] == str(found["pairs"]["left"][best])
    assert f"word{rows[0][0]}" in rows[0][1]
    tab.locator(".more").click()
    assert len(listed(tab)) == 96
    assert "show=all" in tab.url


def test_features_link_to_their_pages(compared, block):
    tab = compared("#/compare?show=all")
    hrefs = [link.get_attribute("href") for link in tab.locator("tbody tr").last.locator("a").all()]
    assert len(hrefs) == 2
    assert hrefs[0].startswith("#/feature/")
    assert hrefs[1].startswith("../b/index.html#/feature/")
    plain = copy.deepcopy(block)
    plain["dictionaries"]["sides"][1]["page"] = None
    tab = compared("#/compare?show=all", plain)
    assert tab.locator("tbody tr").last.locator("a").count() == 1


def test_what_only_one_has(compared, block):
    found = block["dictionaries"]
    for show, side in (("left", found["sides"][0]), ("right", found["sides"][1])):
        tab = compared(f"#/compare?show={show}")
        alone = sorted((cosine, n) for n, cosine in enumerate(side["nearest"]) if cosine < 0.7)
        assert f"({len(alone)})" in tab.locator(".controls button[aria-pressed=true]").inner_text()
        rows = listed(tab)
        assert len(rows) == min(50, len(alone))
        if rows:
            assert rows[0][0] == str(alone[0][1])  # the least like any comes first


def test_search_sort_and_address(compared):
    tab = compared("#/compare?show=all")
    tab.fill("[data-search]", "word17")
    assert [row[0] for row in listed(tab)] == ["17"]
    assert "q=word17" in tab.url
    tab.fill("[data-search]", "")
    tab.locator("thead button", has_text="first").click()
    assert [int(row[0]) for row in listed(tab)] == list(range(95, 45, -1))
    assert "sort=left.down" in tab.url
    again = compared(tab.url[tab.url.index("#") :])
    assert int(listed(again)[0][0]) == 95
    odd = compared("#/compare?show=nothing&sort=nobody.down&part=cakes")
    assert "matched" in odd.locator(".controls button[aria-pressed=true]").inner_text()


def test_circuits_edge_by_edge(compared, block):
    tab, found = compared("#/compare?part=circuits"), block["circuits"]
    shared, left, right = found["counts"]
    edges = tab.locator(".graph .edge:not(.off)")
    assert edges.count() == shared + left + right
    for name, count, kind in (
        ("shared", shared, "both"),
        ("only in first", left, "left"),
        ("only in second", right, "right"),
    ):
        tab.locator(".kinds button", has_text=name).click()
        assert edges.count() == count
        assert tab.locator(f".graph .edge.in-{kind}:not(.off)").count() == count
        assert f"show={kind}" in tab.url
    dashes = edges.first.locator(".ink").evaluate("el => getComputedStyle(el).strokeDasharray")
    assert dashes != "none"  # not by colour alone
    assert "They differ in method: eap-ig, another" in tab.locator("main").inner_text()
    edge = edges.first
    edge.dispatch_event("mouseenter")
    assert ", only in second: " in tab.locator(".readout").inner_text()
    again = compared("#/compare?part=circuits&show=left&node=a2.h2")
    assert again.locator(".node.chosen").get_attribute("data-name") == "a2.h2"
    again.locator(".node.chosen").focus()
    again.keyboard.press("Escape")
    assert again.locator(".node.chosen").count() == 0


def test_tabs_change_between_dictionaries_and_circuits(compared):
    tab = compared("#/compare?show=right")
    tab.locator(".kinds button", has_text="circuits").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".graph svg")
    assert tab.url.endswith("#/compare?part=circuits")
    tab.locator(".kinds button", has_text="dictionaries").click()
    assert tab.locator(".graph").count() == 0


def test_only_circuits(compared, block):
    tab = compared(shown={name: block[name] for name in ("names", "circuits")})
    assert tab.locator(".graph svg").count() == 1
    assert tab.locator(".kinds").count() == 1


def test_hostile_strings_are_shown_and_not_run(compared, block):
    block["names"] = [ALL, HOSTILE[1]]
    for side in block["dictionaries"]["sides"]:
        side["said"] = [HOSTILE[n % len(HOSTILE)] for n in range(side["n"])]
        side["tokens"] = [list(HOSTILE)] * side["n"]
    for node in block["circuits"]["nodes"]:
        node["class"] = ALL
    for row in (*block["circuits"]["facts"], *block["dictionaries"]["facts"]):
        row[1:] = [ALL, HOSTILE[2]]
    for part in ("dictionaries", "circuits"):
        tab = compared(f"#/compare?part={part}&show=all", block)
        assert tab.evaluate("window.hit") is None
        assert tab.locator("main img, main script").count() == 0
        assert "<script>window.hit=1</script>" in tab.locator("main").inner_text()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize("address", ["#/compare?show=all&q=word1", "#/compare?part=circuits"])
def test_accessible(compared, address, scheme):
    tab = compared(address)
    tab.emulate_media(color_scheme=scheme)
    assert violations(tab) == []


@pytest.mark.parametrize("address", ["#/compare?show=all", "#/compare?part=circuits"])
def test_narrow_screen_does_not_scroll_sideways(compared, address):
    tab = compared(address)
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
