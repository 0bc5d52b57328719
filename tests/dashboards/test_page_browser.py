"""The page in a real browser, from a file, with the network watched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mechlab.dashboards.page import Page, render_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page at a fragment; at the end, no error and no request but the file may have happened."""
    complaints: list[str] = []
    requests: list[str] = []
    path: Path = tmp_path / "page.html"
    tab = browser.new_page(viewport={"width": 1300, "height": 800})
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))

    def go(page: Page, fragment: str = "") -> playwright.Page:
        path.write_text(render_page(page))
        tab.goto(path.as_uri() + fragment)
        return tab

    yield go
    assert complaints == []
    assert {url.split("#")[0] for url in requests if not url.startswith("data:")} == {path.as_uri()}
    tab.close()


def heading(tab) -> str:
    return tab.locator("#feature h2").inner_text()


def listed(tab) -> list[str]:
    return tab.locator("#list tbody tr td:first-child").all_inner_texts()


def test_features_are_listed_and_the_first_is_open(visit, page):
    tab = visit(page)
    assert listed(tab) == [str(n) for n in range(7)]
    assert heading(tab) == "Feature 0"
    assert "fires on 'word0'" in tab.locator(".explanation").inner_text()
    assert tab.locator("tr[aria-current]").count() == 1


def test_search_over_words_tokens_numbers_and_conditions(visit, page):
    tab = visit(page)
    for query, expected in [
        ("word3", ["3"]),
        ("WORD3", ["3"]),
        ("#5", ["5"]),
        ("time", ["0", "1", "2", "3", "4", "5"]),
        ("score>.7 density<0.06", ["4"]),
        ("nothing at all", ["Nothing matches."]),
        ("", [str(n) for n in range(7)]),
    ]:
        tab.fill("#search", query)
        assert listed(tab) == expected, query


def test_sorting_goes_both_ways_and_keeps_the_unscored_last(visit, page):
    tab = visit(page)
    button = tab.locator("[data-sort=score]")
    button.click()
    assert listed(tab) == ["5", "4", "3", "2", "1", "0", "6"]
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    button.click()
    assert listed(tab) == ["0", "1", "2", "3", "4", "5", "6"]


def test_deep_link_click_and_keys(visit, page):
    tab = visit(page, "#f=3")
    assert heading(tab) == "Feature 3"
    tab.keyboard.press("j")
    assert heading(tab) == "Feature 4"
    assert tab.url.endswith("#f=4")
    tab.keyboard.press("k")
    tab.keyboard.press("k")
    assert heading(tab) == "Feature 2"
    tab.locator("tr[data-index='5'] td:nth-child(2)").click()
    assert heading(tab) == "Feature 5"
    tab.evaluate("location.hash = 'f=1'")
    tab.wait_for_function("document.querySelector('#feature h2').textContent === 'Feature 1'")


def test_slash_moves_to_the_search_where_letters_are_letters(visit, page):
    tab = visit(page)
    tab.keyboard.press("/")
    tab.keyboard.type("jk")
    assert tab.input_value("#search") == "jk"
    assert heading(tab) == "Feature 0"
    tab.fill("#search", "word4")
    tab.keyboard.press("Enter")
    assert heading(tab) == "Feature 4"


def test_unknown_link_and_dead_feature_say_so(visit, page):
    tab = visit(page, "#f=99")
    assert "no feature 99" in tab.locator("#feature").inner_text()
    tab.evaluate("location.hash = 'f=6'")
    tab.wait_for_function("document.querySelector('#feature h2')?.textContent === 'Feature 6'")
    text = tab.locator("#feature").inner_text()
    assert "Dead" in text
    assert "Not scored: never fired." in text
    assert "Never active." in text


def test_tokens_show_their_activation_in_two_ways(visit, page):
    tab = visit(page)
    token = tab.locator(".text .centre")
    assert token.inner_text() == "·time"
    assert token.get_attribute("aria-label") == " time, activation 3.00"
    weak = tab.locator(".text .on").first
    thick = "el => parseFloat(getComputedStyle(el).borderBottomWidth)"
    assert token.evaluate(thick) > weak.evaluate(thick) > 0
    shade = "el => getComputedStyle(el).backgroundColor"
    assert token.evaluate(shade) != weak.evaluate(shade)


def test_hostile_strings_are_shown_and_not_run(visit, hostile):
    tab = visit(hostile)
    text = tab.locator(".text").inner_text()
    for piece in (
        "<script>window.hit=1</script>",
        "</style><img",
        "onerror=window.hit=1>",
        "<!--",
        "&·&amp;",
    ):
        assert piece in text
    assert "\\u202e" in text  # an override is spelled out instead of turning the line around
    assert "\\u2028" in text
    assert "\\ud83d" in text
    assert tab.evaluate("window.hit") is None
    assert tab.locator("img").count() == 0
    assert "<script>window.hit=1</script>" in tab.locator("h1").inner_text()
    assert "<script>window.hit=1</script>" in tab.locator(".explanation").inner_text()
    assert tab.locator("#graph .node").count() == 2


def test_circuit_is_visible_and_lights_up(visit, page):
    tab = visit(page)
    nodes = tab.locator("#graph .node")
    assert nodes.count() == 6
    assert all(nodes.nth(n).is_visible() for n in range(6))
    assert tab.locator("#graph .edge").count() == 4
    tab.locator("#graph .node[data-name='embed']").focus()
    assert tab.locator("#graph .edge.lit").count() == 2
    assert "a0.h1" in tab.locator(".heads").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(visit, page, scheme):
    """WCAG 2 AA, 4.5 : 1, for ink and quiet ink on paper and for text on a full highlight."""
    tab = visit(page)
    tab.emulate_media(color_scheme=scheme)
    pairs = [
        ("--ink", "--card"),
        ("--quiet", "--card"),
        ("--quiet", "--paper"),
        ("--quiet", "--soft"),
        ("--accent", "--card"),
        ("--accent", "--accent-soft"),
        ("--ink", "--heat"),
        ("--ink", "--accent-soft"),
    ]
    ratio = """([a, b]) => {
      const level = (name) => {
        const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
        const [r, g, bl] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
          .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * bl;
      };
      const [x, y] = [level(a), level(b)].sort((p, q) => q - p);
      return (x + 0.05) / (y + 0.05);
    }"""
    for pair in pairs:
        assert tab.evaluate(ratio, pair) >= 4.5, pair


def test_page_without_circuit_or_features(visit, page):
    tab = visit(replace(page, circuit=None, features=()))
    assert listed(tab) == ["This run has no features."]
    assert tab.locator("#circuit").count() == 0
    assert not tab.locator("#feature").is_visible()
    assert "mechlab run --seed 0" in tab.locator("#command").inner_text()


def test_long_list_grows_on_request(visit, page):
    many = tuple(replace(page.features[0], index=n) for n in range(700))
    tab = visit(replace(page, features=many))
    assert len(listed(tab)) == 300
    tab.locator("#more").click()
    assert len(listed(tab)) == 600
    tab.keyboard.press("j")
    assert heading(tab) == "Feature 1"


def test_narrow_screen_does_not_scroll_sideways(visit, page):
    tab = visit(page)
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
