"""The token view in a real browser: documents, tokens, features, addresses, keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from dashboards.conftest import HOSTILE
from mechlab.dashboards.site import LIMIT, Site

pytestmark = pytest.mark.browser

WORDS = [" While", " Jane", " ran", "\n", " she", "</script>"]


def block(number: int) -> dict[str, Any]:
    """Six tokens; feature 3 is active on four, feature 8 on one."""
    return {
        "d": number,
        "n": 9 if number == 30 else 6,
        "strings": [*WORDS, " sang"],
        "t": [0, 1, 2, 3, 4, 5],
        "features": [[3, 8.0, [0, 1, 2, 4], [1.0, 8.0, 2.0, 4.0]], [8, 2.0, [1], [0.5]]],
        "guesses": [[[1, 0.75], [6, 0.2]], [[6, 0.5], [2, 0.25]], None, [[4, 0.9]], [[5, 0.4]], [[0, 0.1]]],
        "effects": [
            [[3, 0.5, 0.5]],
            [[3, -2.0, 1.5], [8, 0.25, -0.1]],
            [[3, None, None]],
            [],
            [[3, 1.0, 1.0]],
            [],
        ],
    }


def blocks() -> Iterator[tuple[str, Any]]:
    yield (
        "overview",
        {
            "features": 9,
            "chunk": 64,
            "scorers": [],
            "columns": {"n": list(range(9)), "said": [f"fires on word {n}" for n in range(9)]},
        },
    )
    yield (
        "tokens",
        {
            "documents": [
                {"d": 12, "n": 6, "words": " While Jane ran"},
                {"d": 7, "n": 6, "words": " The wolf sleeps"},
                {"d": 30, "n": 9, "words": " A goat"},
            ],
            "top": 6,
            "guesses": True,
            "effects": True,
            "why": "",
        },
    )
    for place, number in enumerate((12, 7, 30)):
        yield f"tokens-{place}", block(number)


SITE = Site("A site", ("tokens", "run"), {"model": "tiny"}, blocks)


@pytest.fixture
def toy(visit_site):
    def go(address="#/tokens", limit=LIMIT, site=SITE):
        tab = visit_site(site, address, limit=limit)
        tab.wait_for_selector(".chips span, [role=alert], .notice")
        return tab

    return go


def address(tab, ending: str) -> None:
    """The address follows when the keys have rested for a moment."""
    tab.wait_for_url(lambda url: url.endswith(ending))


def panel(tab) -> str:
    return tab.locator(".token-panel").inner_text()


def chosen(tab) -> str:
    return tab.locator(".chips [aria-selected=true]").get_attribute("data-place")


@pytest.mark.parametrize("limit", [LIMIT, 0])
def test_the_first_document_is_open(toy, limit):
    tab = toy(limit=limit)
    assert tab.locator(".documents li").count() == 3
    assert tab.locator(".documents [aria-current]").inner_text().split()[0] == "12"
    assert tab.locator(".chips span").all_inner_texts() == [
        "·While", "·Jane", "·ran", "↵", "·she", "</script>",
    ]  # fmt: skip
    assert chosen(tab) == "0"
    text = panel(tab)
    assert "fires on word 3" in text
    assert "+0.500" in text
    assert "75 %" in text
    assert "✓ came next" in text
    assert "fires on word 8" not in text


def test_a_token_shows_its_features_and_what_they_do(toy):
    tab = toy()
    tab.locator(".chips span").nth(1).click()
    address(tab, "#/tokens/12?at=1")
    rows = tab.locator(".token-panel tbody tr")
    assert rows.count() == 2
    cells = [each.strip() for each in rows.nth(0).locator("td").all_inner_texts()]
    assert cells[:5] == ["3", "8", "-2", "+1.50", "fires on word 3"]
    assert "✓ came next" in panel(tab)
    # Sorted by contribution: feature 8 raises the next token, feature 3 lowers it.
    tab.get_by_role("button", name="To the next token").click()
    assert rows.nth(0).locator("td").first.inner_text() == "8"
    tab.locator(".chips span").nth(3).click()
    assert "No feature is active here." in panel(tab)
    tab.locator(".chips span").nth(2).click()
    assert "not known: parts of the context were not stored" in panel(tab)


def test_a_feature_colours_the_whole_document(toy):
    tab = toy("#/tokens/12?at=1")
    tab.get_by_role("button", name="Colour the text by feature 3").click()
    address(tab, "#/tokens/12?at=1&feature=3")
    lit = tab.locator(".chips .on")
    assert lit.count() == 4
    assert lit.nth(1).get_attribute("aria-label") == " Jane, activation 8"
    thick = "el => parseFloat(getComputedStyle(el).borderBottomWidth)"
    assert lit.nth(1).evaluate(thick) > lit.nth(0).evaluate(thick) > 0
    said = tab.locator(".colours").inner_text()
    assert "Coloured by feature 3" in said
    assert "fires on word 3" in said
    button = tab.get_by_role("button", name="Colour the text by feature 3")
    assert button.get_attribute("aria-pressed") == "true"
    assert button.evaluate("el => el === document.activeElement")
    button.click()
    assert tab.locator(".chips .on").count() == 0
    address(tab, "#/tokens/12?at=1")


def test_links_lead_to_a_token_and_a_feature(toy):
    tab = toy("#/tokens/7?at=4&feature=8")
    assert tab.locator(".documents [aria-current]").inner_text().split()[0] == "7"
    assert chosen(tab) == "4"
    assert tab.locator(".chips .on").count() == 1
    tab.evaluate("location.hash = '#/tokens/30?at=999&feature=5'")
    tab.locator(".colours", has_text="Among the strongest of no token here: feature 5").wait_for()
    assert chosen(tab) == "5"
    assert "the first 6 of 9 tokens" in tab.locator(".reading h2").first.inner_text()
    tab.evaluate("location.hash = '#/tokens/99'")
    tab.locator("[role=alert]", has_text="Document 99 is not stored with this page").wait_for()
    assert tab.locator(".documents li").count() == 3


def test_arrow_keys_move_the_token_and_letters_the_document(toy):
    tab = toy()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert chosen(tab) == "2"
    assert tab.locator(".chips [data-place='2']").evaluate("el => el === document.activeElement")
    tab.keyboard.press("ArrowLeft")
    assert chosen(tab) == "1"
    address(tab, "?at=1")
    tab.keyboard.press("End")
    assert chosen(tab) == "5"
    tab.keyboard.press("ArrowRight")
    assert chosen(tab) == "5"
    tab.keyboard.press("Home")
    assert chosen(tab) == "0"
    assert tab.locator(".chips [tabindex='0']").count() == 1
    tab.keyboard.press("j")
    tab.locator(".reading h2", has_text="Document 7").wait_for()
    tab.keyboard.press("k")
    tab.locator(".reading h2", has_text="Document 12").wait_for()


def test_arrow_keys_go_from_line_to_line(toy):
    tab = toy()
    tab.set_viewport_size({"width": 220, "height": 800})
    tops = tab.locator(".chips span").evaluate_all("all => all.map((el) => el.getBoundingClientRect().top)")
    assert len({round(top) for top in tops}) > 1, "the tokens must not fit on one line"
    tab.locator(".chips span").first.click()
    tab.keyboard.press("ArrowDown")
    below = int(chosen(tab))
    assert tops[below] > tops[0]
    tab.keyboard.press("ArrowUp")
    assert tops[int(chosen(tab))] == tops[0]


def test_documents_are_searched_by_words_and_number(toy):
    tab = toy()
    tab.keyboard.press("/")
    tab.keyboard.type("wolf sl")
    assert tab.locator(".documents li").count() == 1
    address(tab, "#/tokens/12?q=wolf%20sl")
    assert tab.locator("#status").inner_text() == "1 of 3 documents"
    tab.locator(".documents a").click()
    tab.locator(".reading h2", has_text="Document 7").wait_for()
    assert tab.input_value("[data-search]") == "wolf sl"
    tab.fill("[data-search]", "30")
    assert tab.locator(".documents b").all_inner_texts() == ["30"]
    tab.locator(".chips span").nth(2).click()
    tab.fill("[data-search]", "zebra")
    address(tab, "#/tokens/7?q=zebra&at=2")
    assert "No document begins like that." in tab.locator(".documents").inner_text()


def test_without_a_model_the_view_says_what_is_missing(toy):
    def bare() -> Iterator[tuple[str, Any]]:
        for name, value in blocks():
            if name == "tokens":
                value = {**value, "guesses": False, "effects": False, "why": "the model was not loaded"}
            if name.startswith("tokens-"):
                value = {key: each for key, each in value.items() if key not in ("guesses", "effects")}
            if name != "overview":
                yield name, value

    tab = toy(site=replace(SITE, blocks=bare))
    assert "not known: the model was not loaded" in panel(tab)
    assert "expects next" not in panel(tab)
    assert tab.locator(".token-panel th").all_inner_texts() == [
        "Feature",
        "Activation",
        "Explanation",
        "Colour",
    ]


def test_hostile_strings_are_shown_and_not_run(toy):
    def hostile() -> Iterator[tuple[str, Any]]:
        everything = " ".join(HOSTILE)
        yield "overview", {"features": 4, "columns": {"n": [3], "said": [everything]}}
        listed = {"documents": [{"d": 1, "n": len(HOSTILE), "words": everything}], "top": 6}
        yield "tokens", {**listed, "guesses": True, "effects": False, "why": everything}
        yield (
            "tokens-0",
            {
                "d": 1,
                "n": len(HOSTILE),
                "strings": list(HOSTILE),
                "t": list(range(len(HOSTILE))),
                "features": [[3, 2.0, list(range(len(HOSTILE))), [1.0] * len(HOSTILE)]],
                "guesses": [[[n, 0.5]] for n in range(len(HOSTILE))],
            },
        )

    tab = toy("#/tokens/1?at=2&feature=3", site=replace(SITE, blocks=hostile, title=HOSTILE[0]))
    text = tab.locator(".chips").inner_text()
    for piece in ("<script>window.hit=1</script>", "</style><img", "<!--", "\\u202e", "\\u2028", "\\ud83d"):
        assert piece in text
    assert "<script>window.hit=1</script>" in panel(tab)
    assert "<script>window.hit=1</script>" in tab.locator(".documents").inner_text()
    assert tab.evaluate("window.hit") is None
    assert tab.locator("main img").count() == 0


def test_no_document_is_no_error(toy):
    def none() -> Iterator[tuple[str, Any]]:
        yield "tokens", {"documents": [], "top": 6, "guesses": False, "effects": False, "why": ""}

    tab = toy(site=replace(SITE, blocks=none))
    assert "No document is stored" in tab.locator(".notice").inner_text()


def test_narrow_screens_do_not_scroll_sideways(toy):
    tab = toy("#/tokens/12?at=1&feature=3")
    tab.set_viewport_size({"width": 380, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
