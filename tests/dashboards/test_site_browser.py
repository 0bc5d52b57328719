"""The shell of a site in a real browser, with a small view of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.conftest import HOSTILE
from mechlab.dashboards import site as room
from mechlab.dashboards.site import Site

pytestmark = pytest.mark.browser

TOY = (Path(__file__).parent / "toy_view.js").read_text()


def blocks() -> Iterator[tuple[str, Any]]:
    yield "overview", {"features": 1}
    yield (
        "features-0",
        {
            "strings": list(HOSTILE),
            "contexts": [
                {
                    "d": 1,
                    "c": 1,
                    "t": list(range(len(HOSTILE))),
                    "a": [[0, 1.0], [1, 4.0], [2, 2.0]],
                }
            ],
            "rows": [
                {"n": n, "said": said, "score": score}
                for n, (said, score) in enumerate([("b", 0.5), ("a", None), ("d", 0.9), ("c", 0.1)])
            ],
        },
    )


SITE = Site(
    title=" ".join(HOSTILE),
    views=("compare", "run"),
    facts={"model": HOSTILE[0], "site": HOSTILE[1], "tokens": 123456, "features": 1},
    blocks=blocks,
)


@pytest.fixture
def toy(visit_site, monkeypatch):
    """Open the toy site; only the shell of the real script is used."""
    real = room.script
    parts = ("core", "parts", "chart")
    monkeypatch.setattr(room, "_PARTS", parts)
    monkeypatch.setattr(room, "script", lambda: real() + TOY)
    return lambda address="#/run", limit=room.LIMIT: visit_site(SITE, address, limit=limit)


def says(tab, text: str) -> None:
    """Wait for a heading; the policy lets no string be evaluated on the page, as wait_for_function would."""
    tab.locator("main h2", has_text=re.compile(f"^{re.escape(text)}")).wait_for()


def ready(tab) -> None:
    tab.wait_for_selector(".chart-box .marker, .chart-box canvas")


@pytest.mark.parametrize("limit", [room.LIMIT, 0])
def test_one_file_and_many_show_the_same(toy, limit):
    tab = toy(limit=limit)
    tab.wait_for_selector(".text .peak")
    text = tab.locator(".text").inner_text()
    for piece in ("<script>window.hit=1</script>", "</style><img", "<!--", "\\u202e", "\\u2028", "\\ud83d"):
        assert piece in text
    assert tab.evaluate("window.hit") is None
    assert tab.locator("main img").count() == 0
    assert "<script>window.hit=1</script>" in tab.locator("h1").inner_text()
    assert "123\u202f456 tokens" in tab.locator("#facts").inner_text()
    assert tab.locator("#nav a[aria-current]").inner_text() == "Toy"


def test_nothing_is_allowed_but_the_page_s_own_script(toy, browser, tmp_path):
    """The policy stops an inline script, a fetch and an image; the tab that tries is not watched."""
    toy(limit=0)
    tab = browser.new_page()
    tab.goto((tmp_path / "site/index.html").as_uri() + "#/run")
    tab.wait_for_selector(".text .peak")
    tab.evaluate("""() => {
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hit=1'>");
        const inline = document.createElement("button");
        inline.setAttribute("onclick", "window.hit=1");
        document.body.append(inline);
        inline.click();
    }""")
    refused = tab.evaluate("fetch('http://127.0.0.1:9/').then(() => 'went', () => 'refused')")
    assert refused == "refused"
    assert tab.evaluate("window.hit") is None
    tab.close()


def test_missing_data_is_a_line_on_the_page(toy):
    tab = toy("#/compare")
    assert tab.wait_for_selector("[role=alert]").inner_text() == "This site has no data named nothing."
    tab.evaluate("location.hash = '#/elsewhere'")
    tab.locator("[role=alert]", has_text="elsewhere").wait_for()


def test_a_file_that_is_gone_is_a_line_on_the_page(toy, browser, tmp_path):
    toy(limit=0)
    (tmp_path / "site/data/features-0.js").unlink()
    tab = browser.new_page()  # the browser itself complains of the file, on the console
    tab.goto((tmp_path / "site/index.html").as_uri() + "#/run")
    assert "data/features-0.js cannot be read" in tab.wait_for_selector("[role=alert]").inner_text()
    tab.close()


def test_addresses_go_forth_and_back(toy):
    tab = toy("#/run/a%2Fb?q=x%26y")
    assert tab.locator("h2").first.inner_text() == "Toy a/b x&y"
    ready(tab)
    assert tab.evaluate("mechlab.link(['run', 'a/b'], { q: 'x&y', no: '' })") == "#/run/a%2Fb?q=x%26y"
    tab.evaluate("mechlab.go(['run', '1'], { q: 'two' })")
    says(tab, "Toy 1 two")
    assert tab.evaluate("document.activeElement.id") == "view"
    ready(tab)
    tab.evaluate("mechlab.go(['run', '2'], {}, { replace: true })")
    assert tab.locator("h2").first.inner_text() == "Toy 1 two"
    assert tab.url.endswith("#/run/2")
    tab.go_back()
    says(tab, "Toy a/b x&y")
    tab.evaluate("location.hash = '#/run/%'")
    says(tab, "Toy % ")


def test_keys_help_and_search(toy):
    tab = toy()
    ready(tab)
    tab.keyboard.press("j")
    says(tab, "Toy 1")
    ready(tab)
    tab.keyboard.press("?")
    lines = tab.locator("#help dl div").all_text_contents()
    assert lines == ["jnext", "/search", "?this list", "Escclose"]
    tab.keyboard.press("j")
    tab.keyboard.press("Escape")
    assert not tab.locator("#help").is_visible()
    tab.keyboard.press("/")
    tab.keyboard.type("j?")
    assert tab.input_value("[data-search]") == "j?"
    assert tab.locator("h2").first.inner_text().startswith("Toy 1")
    tab.keyboard.press("Escape")
    tab.keyboard.press("j")
    says(tab, "Toy 2")


def test_table_sorts_both_ways_with_the_empty_last_and_grows(toy):
    tab = toy()
    ready(tab)
    names = lambda: tab.locator(".table tbody td:nth-child(2)").all_inner_texts()  # noqa: E731
    assert names() == ["b", "a", "d"]
    tab.get_by_role("button", name="Score").click()
    assert names() == ["d", "b", "c"]
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    tab.get_by_role("button", name="Score").click()
    assert names() == ["c", "b", "d"]
    tab.get_by_role("button", name="Show 1 more of 4").click()
    assert names() == ["c", "b", "d", "a"]
    assert not tab.locator(".more").is_visible()


def test_tokens_show_values_in_two_ways(toy):
    tab = toy()
    peak = tab.locator(".text .peak")
    assert peak.get_attribute("title") == "activation 4"
    thick = "el => parseFloat(getComputedStyle(el).borderBottomWidth)"
    shade = "el => getComputedStyle(el).backgroundColor"
    weak = tab.locator(".text .on").first
    assert peak.evaluate(thick) > weak.evaluate(thick) > 0
    assert peak.evaluate(shade) != weak.evaluate(shade)


@pytest.mark.parametrize("points", [5, 4000])
def test_scatters_lead_somewhere(toy, points):
    tab = toy(f"#/run?points={points}")
    ready(tab)
    assert tab.locator("canvas").count() == (points > 3000)
    if points > 3000:
        canvas = tab.locator("canvas")
        unit = canvas.bounding_box()["width"] / 560
        # The first point: largest x, smallest y.
        canvas.click(position={"x": unit * (560 - 14 - 6), "y": unit * (260 - 42 - 6)})
    else:
        tab.locator(".marker.linked").first.click()
    says(tab, "Toy 0")


def test_charts_have_names_marks_and_differ_without_colour(toy):
    tab = toy()
    ready(tab)
    assert tab.locator("svg.chart[role=img]").count() == 3
    assert tab.locator("svg.chart").nth(1).get_attribute("aria-label") == "y against x: a, b"
    dashes = tab.locator("svg.chart polyline").evaluate_all(
        "all => all.map((l) => l.getAttribute('stroke-dasharray'))"
    )
    assert dashes == ["", "7 4"]
    assert tab.locator("svg.chart .mark").first.get_attribute("visibility") == "visible"
    assert tab.locator("svg.chart .bin").first.locator("title").text_content() == "0 to 1: 9"


def test_theme_is_chosen_and_kept(toy):
    tab = toy()
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_selector("html[data-theme=dark]")
    tab.locator("#theme").click()
    theme = "document.documentElement.dataset.theme"
    assert tab.evaluate(theme) == "light"
    # The browser keeps it in another process: a page opened at once may not find it yet.
    for _ in range(20):
        tab.wait_for_timeout(100)
        tab.reload()
        ready(tab)
        if tab.evaluate(theme) == "light":
            break
    assert tab.evaluate(theme) == "light"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(toy, scheme):
    """WCAG 2 AA: 4.5 : 1 for text, 3 : 1 for the edges of what can be used."""
    tab = toy()
    tab.emulate_media(color_scheme=scheme)
    tab.wait_for_selector(f"html[data-theme={scheme}]")
    pairs = [
        *(
            (ink, on, 4.5)
            for ink in ("--ink", "--quiet", "--accent", "--bad", "--good", "--heat-ink")
            for on in ("--card", "--paper")
        ),
        *((ink, on, 4.5) for ink in ("--ink", "--quiet", "--accent") for on in ("--soft", "--accent-soft")),
        ("--ink", "--heat", 4.5),
        ("--edge", "--card", 3.0),
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
    short = {
        (a, b): tab.evaluate(ratio, [a, b]) for a, b, least in pairs if tab.evaluate(ratio, [a, b]) < least
    }
    assert short == {}


def test_narrow_screen_does_not_scroll_sideways(toy):
    tab = toy()
    ready(tab)
    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
