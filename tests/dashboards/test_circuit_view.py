"""The circuit view in a real browser, from a file."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from dashboards.circuit_parts import feature_graph, found, prompts
from dashboards.conftest import HOSTILE
from dashboards.test_axe import violations
from features.exchanged import random_index
from mechlab.dashboards.build import Findings, site_of
from mechlab.dashboards.circuit_block import circuit_block, graph_block
from mechlab.dashboards.site import Site

pytestmark = pytest.mark.browser
ALL = " ".join(HOSTILE)
FACTS = {"model": "fable", "site": "blocks.2.hook_resid_post"}


@functools.cache
def full() -> str:
    subject, _, judge = prompts()
    return json.dumps(circuit_block(found(), subject, judge))


def site(block: Any, views: tuple[str, ...] = ("circuit",)) -> Site:
    return Site("A circuit", views, FACTS, lambda: iter([("circuit", block)]))


@pytest.fixture
def circuit(visit_site):
    return lambda address="#/circuit": visit_site(site(json.loads(full())), address)


def drawn(tab) -> int:
    tab.wait_for_selector(".graph svg")
    return tab.locator(".graph .edge:not(.off)").count()


def at(block: dict[str, Any], n: int) -> int:
    return sum(joins is not None and joins <= n for joins in block["edges"]["joins"])


def test_the_circuit_found_is_shown_first(circuit):
    tab, block = circuit(), json.loads(full())
    assert drawn(tab) == found().n_edges
    assert tab.locator(".sizes button").get_attribute("aria-pressed") == "true"
    assert f"{found().n_edges} edges of the circuit found" in tab.locator(".size-now").inner_text()
    text = tab.locator(".measured").inner_text()
    assert "random circuits of this size" in text
    assert "24 held-out prompts" in text
    assert "resample" in tab.locator(".circuit-facts").inner_text()
    assert tab.locator(".scores tbody tr").count() == len(block["scores"])
    assert tab.locator(".chart .line").count() == 2
    assert "name mover" in tab.locator(".node[data-name='a2.h2'] .class").text_content()
    negative = sum(
        score < 0 and own for score, own in zip(block["edges"]["score"], block["edges"]["found"], strict=True)
    )
    assert tab.locator(".edge.negative:not(.off)").count() == negative


def test_the_slider_changes_edges_curve_and_address(circuit):
    tab, block = circuit(), json.loads(full())
    before = drawn(tab)
    slider = tab.locator("#circuit-size")
    slider.fill("60")
    assert drawn(tab) == at(block, 60) != before
    assert "60 edges taken" in slider.get_attribute("aria-valuetext")
    assert tab.url.endswith("#/circuit?edges=60")
    assert tab.locator(".chart .mark").count() == 2
    assert "edges" in tab.locator(".measured").inner_text()
    slider.focus()
    tab.keyboard.press("ArrowRight")
    assert drawn(tab) == at(block, 61)
    tab.locator(".sizes button").click()
    assert drawn(tab) == before
    assert tab.url.endswith("#/circuit")


def test_a_deep_link_opens_size_node_and_prompt(circuit):
    tab, block = circuit("#/circuit?edges=40&node=a2.h2&prompt=2"), json.loads(full())
    assert drawn(tab) == at(block, 40)
    assert tab.locator(".node-name").inner_text().startswith("a2.h2 name mover")
    assert tab.locator(".node.chosen").get_attribute("data-name") == "a2.h2"
    assert tab.input_value("#circuit-prompt") == "1"
    label = tab.locator(".heat-map").get_attribute("aria-label")
    assert label.startswith("Attention of a2.h2 on prompt 2. From the last token")
    assert "to IO" in tab.locator(".panel").inner_text()
    tab.select_option("#circuit-prompt", "0")
    assert "prompt 1" in tab.locator(".heat-map").get_attribute("aria-label")
    assert "prompt=" not in tab.url
    assert (
        tab.locator(".attention-contexts .asks").count() == tab.locator(".attention-contexts li").count() > 0
    )


def test_nonsense_in_the_address_is_not_an_error(circuit):
    tab = circuit("#/circuit?edges=many&node=nobody&prompt=-3")
    assert drawn(tab) == found().n_edges
    tab.goto(tab.url.split("#")[0] + "#/circuit?edges=99999999&node=a2.h2&prompt=99")
    tab.wait_for_selector(".heat-map")
    assert tab.input_value("#circuit-size") == "400"


def test_pointing_at_an_edge_or_a_node_says_its_value(circuit):
    tab = circuit()
    drawn(tab)
    edge = tab.locator(".edge:not(.off)").last
    edge.dispatch_event("mouseenter")
    said = tab.locator(".readout").inner_text()
    assert said == edge.locator("title").text_content()
    assert "→" in said
    assert tab.locator(".edge.lit").count() == 1
    edge.dispatch_event("mouseleave")
    assert tab.locator(".edge.lit").count() == 0
    tab.locator(".node[data-name='a2.h2']").focus()
    assert tab.locator(".readout").inner_text().startswith("a2.h2, name mover: ")
    assert tab.locator(".edge.lit").count() > 1


def test_the_keyboard_alone(circuit):
    tab = circuit()
    drawn(tab)
    assert tab.locator(".node[tabindex='0']").count() == 1  # one stop, then arrows
    tab.locator(".node[data-name='embed']").focus()
    tab.keyboard.press("ArrowUp")
    name = tab.evaluate("document.activeElement.dataset.name")
    assert name != "embed"
    tab.keyboard.press("Enter")
    assert tab.locator(".node-name").inner_text().startswith(name)
    assert f"node={name}" in tab.url
    tab.keyboard.press("Escape")
    assert tab.locator(".node-name").count() == 0
    tab.keyboard.press("]")
    bigger = drawn(tab)
    assert f"edges={json.loads(full())['size']['top'] + 1}" in tab.url
    tab.keyboard.press("[")
    assert drawn(tab) <= bigger
    tab.keyboard.press("j")
    first = tab.locator(".node-name").inner_text()
    tab.keyboard.press("j")
    assert tab.locator(".node-name").inner_text() != first
    tab.keyboard.press("k")
    assert tab.locator(".node-name").inner_text() == first
    tab.keyboard.press("?")
    assert "fewer and more edges" in tab.locator("#help").inner_text()


def test_a_panel_lists_edges_in_and_out_with_links(circuit):
    tab, block = circuit("#/circuit?node=a2.h2"), json.loads(full())
    drawn(tab)
    number = [node["name"] for node in block["nodes"]].index("a2.h2")
    for title, key in (("Reads from", "to"), ("Read by", "from")):
        ends = zip(block["edges"][key], block["edges"]["found"], strict=True)
        count = sum(end == number and own == 1 for end, own in ends)
        assert tab.locator(".edge-list h3", has_text=f"{title} ({count})").count() == 1
    link = tab.locator(".edge-list a").first
    name = link.inner_text()
    link.click()
    assert tab.locator(".node-name").inner_text().startswith(name.split(".q")[0])
    tab.locator(".panel > header button").click()
    assert "Nodes: estimate beside measurement" in tab.locator(".panel").inner_text()
    assert tab.locator(".panel table").nth(1).locator("tbody tr").count() == 6  # so many were patched


def test_features_lead_to_their_pages_where_they_have_some(visit_site):
    block = graph_block(feature_graph(), "a prompt", {"prompt": "two words"})
    tab = visit_site(site(block, ("features", "circuit")), "#/circuit?node=blocks.2.hook_resid_post%2Ff1%401")
    drawn(tab)
    assert tab.locator(".panel p a").get_attribute("href") == "#/feature/1"
    assert "two words" in tab.locator(".circuit-facts").inner_text()
    tab.locator(".node[data-name='blocks.1.hook_resid_post/f7@0']").click()
    assert tab.locator(".panel p a").count() == 0
    assert "Feature 7 of blocks.1.hook_resid_post" in tab.locator(".panel").inner_text()
    tab.locator("#circuit-size").fill("1")
    assert drawn(tab) == 1


def test_hostile_strings_are_shown_and_not_run(visit_site):
    subject, _, judge = prompts()
    block = circuit_block(
        replace(found(), task=ALL, method=ALL), subject, judge, classes={"a2.h2": ALL, "m1": ALL}
    )
    block["strings"] = [HOSTILE[n % len(HOSTILE)] for n in range(len(block["strings"]))]
    tab = visit_site(site(block), "#/circuit?node=a2.h2")
    drawn(tab)
    assert tab.evaluate("window.hit") is None
    assert tab.locator("main img, main script").count() == 0
    for where in (".node-name", ".circuit-facts", "main h2", ".attention-contexts"):
        assert "<script>window.hit=1</script>" in tab.locator(where).inner_text().replace("·", " "), where
    assert (
        "\\u202e" in tab.locator(".attended").inner_text() + tab.locator(".attention-contexts").inner_text()
    )
    graph = graph_block(feature_graph(site=ALL, other=HOSTILE[1]), ALL, {ALL: ALL})
    tab = visit_site(site(graph), "#/circuit")
    drawn(tab)
    tab.locator(".node").last.click()
    assert tab.evaluate("window.hit") is None
    assert tab.locator("main img, main script").count() == 0


def test_a_circuit_without_edges(visit_site):
    empty = replace(found(), mask=torch.zeros_like(found().mask), scores=torch.zeros_like(found().scores))
    tab = visit_site(site(circuit_block(empty)), "#/circuit?edges=3&node=m1")
    assert drawn(tab) == 0
    assert "No edge is on a path" in tab.locator("main").inner_text()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize("address", ["#/circuit", "#/circuit?edges=40&node=a2.h2"])
def test_accessible(circuit, address, scheme):
    tab = circuit(address)
    drawn(tab)
    tab.emulate_media(color_scheme=scheme)
    assert violations(tab) == []


def test_narrow_screen_does_not_scroll_sideways(circuit):
    tab = circuit("#/circuit?edges=60&node=a2.h2")
    drawn(tab)
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_several_circuits_have_addresses_of_their_own(visit_site):
    first = graph_block(feature_graph(), "One")
    second = graph_block(feature_graph(), ALL)
    blocks = [("circuits", ["One", ALL]), ("circuit", first), ("circuit-1", second)]
    several = Site("Circuits", ("circuit",), FACTS, lambda: iter(blocks))
    tab = visit_site(several, "#/circuit?edges=3", limit=0)
    assert drawn(tab) == 3
    links = tab.locator(".circuits a")
    assert links.count() == 2
    assert tab.locator(".circuits a[aria-current=page]").inner_text() == "One"
    links.nth(1).click()
    tab.wait_for_selector(".circuits a[aria-current=page][href$='#/circuit/1']")
    assert drawn(tab) == 6
    tab.keyboard.press("[")
    assert tab.url.endswith("#/circuit/1?edges=5")
    tab.reload()
    assert drawn(tab) == 5
    assert tab.evaluate("window.hit") is None
    assert violations(tab) == []
    tab.goto(tab.url.partition("#")[0] + "#/circuit/7")
    tab.wait_for_selector("#view [role=alert]")


def test_features_of_transcoders_lead_to_their_pages(visit_site):
    """A graph names them by the site they write, an index by the one they read."""
    index = random_index(0, features=9)
    index = replace(index, about={**index.about, "outputs": ["blocks.1.hook_mlp_out"]})
    graph = feature_graph(site="blocks.1.hook_mlp_out", other="blocks.0.hook_mlp_out")
    found = Findings(
        "Graph", {"model": "tiny", "site": "blocks.1.mlp.hook_in"}, index=index, graphs={"a prompt": graph}
    )
    tab = visit_site(site_of(found), "#/circuit?node=blocks.1.hook_mlp_out%2Ff1%401")
    assert drawn(tab) == 6
    panel = tab.locator(".panel")
    panel.get_by_role("link", name="Feature 1").click()
    tab.get_by_role("heading", name="Feature 1", exact=True).wait_for()
    tab.evaluate("location.hash = '#/circuit?node=blocks.0.hook_mlp_out%2Ff7%400'")
    tab.get_by_text("Feature 7 of blocks.0.hook_mlp_out").wait_for()
