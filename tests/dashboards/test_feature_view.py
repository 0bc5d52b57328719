"""One feature in a real browser: what is said, where it fires, what it does, what is near it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dashboards.conftest import HOSTILE
from dashboards.toy_features import SITE, blocks

pytestmark = pytest.mark.browser


def opened(tab, number: int) -> None:
    tab.get_by_role("heading", name=f"Feature {number}", exact=True).wait_for()


@pytest.fixture
def feature(visit_site):
    """Open the page of feature 33, or another address of it."""

    def go(query="", number=33, limit=30_000_000):
        tab = visit_site(SITE, f"#/feature/{number}{query}", limit=limit)
        opened(tab, number)
        return tab

    return go


def card(tab, title: str):
    return tab.locator(".card").filter(has=tab.get_by_role("heading", name=title, exact=True))


@pytest.mark.parametrize("limit", [0, 30_000_000])
def test_explanations_with_all_that_is_known_of_their_scores(feature, limit):
    tab = feature(limit=limit)
    first, second = card(tab, "Explanation").all()
    assert "fires (2.5) on word33" in first.inner_text()
    assert "0.633 (0.553 to 0.683)" in first.inner_text()
    for fact in (
        "n = 80",
        "40 with it, 40 without",
        "base rate 1.0 %",
        "chance 0.500",
        "control 0.490 (0.420 to 0.560)",
    ):
        assert first.inner_text().count(fact) == 2, fact
    assert "by rules; in brackets, the activation that each clause predicts" in first.inner_text()
    assert "95 % interval as a bar; ◇ control" in first.inner_text()
    assert "in brackets" not in second.inner_text()
    assert "control" not in second.inner_text()  # it has no score
    bars = first.locator("svg.score")
    assert bars.first.get_attribute("aria-label") == "detection 0.633, interval 0.553 to 0.683, control 0.490"
    at = lambda name: bars.first.locator(name).first.bounding_box()["x"]  # noqa: E731
    assert at(".track") < at(".null") < at(".within") < at(".dot")
    assert "by llm, some-model" in second.inner_text()
    assert "Not scored: too few windows." in second.inner_text()
    assert "Feature 33" in tab.title()


def test_a_long_explanation_is_folded(visit_site):
    text = " or ".join(f"' word{n}'" for n in range(200))

    def long():
        for name, block in blocks():
            if name == "features-0":
                block["features"]["33"]["said"][0]["text"] = text
            yield name, block

    tab = visit_site(replace(SITE, blocks=long), "#/feature/33")
    opened(tab, 33)
    first, second = card(tab, "Explanation").all()
    height = lambda: first.locator(".explanation").bounding_box()["height"]  # noqa: E731
    folded = height()
    assert folded < 200
    first.get_by_role("button", name="Show all of it").click()
    assert height() > 2 * folded
    assert first.get_by_role("button", name="Show less").get_attribute("aria-expanded") == "true"
    first.get_by_role("button", name="Show less").click()
    assert height() == folded
    tab.emulate_media(media="print")
    assert height() > 2 * folded
    assert second.get_by_role("button").count() == 0


def contexts(tab) -> list[str]:
    return tab.locator("#contexts .text").all_inner_texts()


def test_kinds_of_contexts(feature):
    tab = feature()
    tabs = tab.get_by_role("tab")
    assert tabs.all_inner_texts() == ["Top 3", "Quantiles 2", "Near misses 1", "Random 1", "Judged 7"]
    assert len(contexts(tab)) == 3
    tabs.nth(1).click()
    assert tab.locator("#contexts h4").all_inner_texts() == [
        "2 to 4 33 % of the passages where it fires, ranked by their peak",
        "0 to 2 67 % of the passages where it fires, ranked by their peak",
    ]
    assert tab.evaluate("location.hash").endswith("?tab=quantiles")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("[role=tab]:focus").inner_text() == "Near misses 1"
    assert tab.locator("#contexts a").get_attribute("href") == "#/feature/1"
    tab.keyboard.press("t")
    assert tab.locator("[aria-selected=true]").inner_text() == "Random 1"
    assert tab.locator("#contexts").get_attribute("aria-labelledby") == "tab-random"
    tab.keyboard.press("t")
    tab.keyboard.press("t")
    assert tab.locator("[aria-selected=true]").inner_text() == "Top 3"
    tab = feature("?tab=random&full=1")
    assert len(contexts(tab)) == 1
    assert tab.get_by_role("button", name="Long").get_attribute("aria-pressed") == "true"


def test_the_confusion_is_the_score(feature):
    tab = feature("?tab=judged")
    text = tab.locator("#contexts").inner_text()
    assert "Balanced accuracy: mean of 30/40 and 20/40 = 0.625" in text
    assert "by rules" in text
    cells = tab.locator("#contexts tbody td").all_inner_texts()
    assert cells == ["30 found", "10 missed", "20 false alarms", "20 right"]
    groups = tab.locator("#contexts details")
    assert groups.locator("summary").all_inner_texts() == [
        "Said to fire, is silent: 20 (2 shown)",
        "Fires, missed: 10 (1 shown)",
        "Fires, found: 30 (3 shown)",
        "Silent, and said to be: 20 (1 shown)",
    ]
    assert groups.nth(2).locator("li").count() == 3
    assert groups.first.locator(".on").count() == 0
    assert not groups.nth(2).locator("li").first.is_visible()
    groups.nth(2).locator("summary").click()
    assert groups.nth(2).locator("li").first.is_visible()


def test_contexts_grow_break_their_lines_and_are_copied(feature):
    tab = feature()
    short = "…·upon·a·time↵·there·was·the·cat·and·The·dog.Once…"
    assert "".join(contexts(tab)[0].split()) == short
    tab.locator("#contexts").get_by_role("button", name="longer").first.click()
    long = ["".join(text.split()) for text in contexts(tab)]
    assert long[0].startswith("Once·upon")
    assert long[0].count("Once") == 2
    assert long[1] == short
    tab.get_by_role("button", name="Long", exact=True).click()
    assert [text.count("Once") for text in contexts(tab)] == [2, 2, 2]
    assert tab.evaluate("location.hash").endswith("?full=1")
    assert tab.locator("#contexts br").count() == 0
    tab.get_by_role("button", name="Line breaks").click()
    assert tab.locator("#contexts br").count() == 6
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.locator("#contexts").get_by_role("button", name="copy").first.click()
    tab.locator("#contexts").get_by_role("button", name="copied").wait_for()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("Once upon a time\n there was the cat and The dog.Once upon")
    # Without a clipboard the text is selected for the reader to copy.
    tab.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    tab.locator("#contexts").get_by_role("button", name="copy").first.click()
    tab.locator("#contexts").get_by_role("button", name="selected").wait_for()
    assert "Once" in tab.evaluate("getSelection().toString()")


def test_pointing_at_a_context_marks_its_activation(feature):
    tab = feature()
    mark = tab.locator(".view-feature svg.chart .mark")
    place = lambda: float(mark.get_attribute("x1"))  # noqa: E731
    assert mark.get_attribute("visibility") == "hidden"
    rows = tab.locator("#contexts li")
    rows.nth(0).locator(".value").hover()
    strongest = place()
    rows.nth(2).locator(".value").hover()
    assert place() < strongest
    tab.locator("#view h2").hover()
    assert mark.get_attribute("visibility") == "hidden"
    rows.nth(0).locator(".peak").focus()
    assert place() == strongest
    assert (
        rows.nth(0).locator(".peak").evaluate("e => getComputedStyle(e, '::after').content")
        == '"activation 4"'
    )
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == " cat, activation 1"
    assert place() < strongest
    assert card(tab, "Activations when active").locator(".bin").count() == 5


def test_effects_neighbours_concepts_and_notes(feature):
    tab = feature("?q=word3")
    effects = card(tab, "Effect on the next token").locator("table")
    assert effects.nth(0).locator("td:first-child").all_inner_texts() == ["·the", "·cat"]
    assert effects.nth(1).locator("td").nth(1).inner_text() == "-1.50"
    near = card(tab, "Neighbours")
    assert near.locator("caption").all_inner_texts() == [
        "Similar direction (cosine)",
        "Fires together (Jaccard index)",
        "Heads that write it",
    ]
    assert "65 fires on word65" in near.inner_text()
    assert "0.800" in card(tab, "Concepts").inner_text()
    assert "cats seen before (Ada)" in card(tab, "Notes").inner_text()
    near.get_by_role("link", name="65").click()
    opened(tab, 65)  # of the second block
    assert "fires (2.5) on word65" in card(tab, "Explanation").first.inner_text()
    assert tab.evaluate("mechlab.state().query.get('q')") == "word3"


def test_near_misses_show_where_the_neighbour_is_active(feature):
    tab = feature("?tab=near")
    contexts = card(tab, "Contexts")
    assert contexts.locator("li .asks").all_inner_texts() == ["·the"]
    assert contexts.get_by_role("link", name="feature 1 fires").count() == 1
    assert "at the framed token" in contexts.inner_text()


def test_steering_is_shown_beside_the_unchanged(feature):
    tab = feature()
    panel = card(tab, "Steering")  # begins with the first strength from 1 on: more says less
    assert "2 × its maximum, KL 0.500 nats per token" in panel.inner_text()
    assert panel.locator(".steered p").all_inner_texts() == ["Once", "unchanged\nupon 0.0", "2 ×\nupon 2.0"]
    slider = panel.get_by_role("slider")
    slider.focus()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "-1 × its maximum, KL 0.250 nats per token"
    assert "upon -1.0" in panel.inner_text()
    assert tab.evaluate("location.hash").endswith("?steer=-1")
    tab.reload()
    opened(tab, 33)
    assert "upon -1.0" in card(tab, "Steering").inner_text()


def test_next_and_previous_follow_the_search(feature):
    tab = feature("?q=word3&sort=score&down=1&tab=random", number=38)
    nav = tab.get_by_role("navigation", name="Features")
    assert "2 of 11" in nav.inner_text()
    assert "for word3" in nav.inner_text()
    before = tab.evaluate("history.length")
    tab.keyboard.press("j")
    opened(tab, 37)
    tab.keyboard.press("k")
    opened(tab, 38)
    tab.keyboard.press("k")
    opened(tab, 39)
    tab.keyboard.press("k")  # the first of them
    assert nav.locator("[aria-disabled]").get_attribute("aria-label") == "Previous feature"
    assert tab.evaluate("history.length") == before
    assert tab.locator("[aria-selected=true]").inner_text() == "Random 1"
    nav.get_by_role("link", name="Next feature").click()
    opened(tab, 38)
    nav.get_by_role("link", name="2 of 11").click()
    tab.wait_for_selector("[data-search]")
    assert tab.input_value("[data-search]") == "word3"
    tab = feature("?q=word3", number=50)
    assert "All features" in nav.inner_text()
    tab = feature("?q=oops:3", number=50)
    assert "51 of 70" in nav.inner_text()


def test_dead_features_and_numbers_that_are_none(feature, visit_site):
    tab = feature(number=69)
    text = tab.locator("#view").inner_text()
    assert "It never fires on this text." in text
    assert "Never active." in text
    for address in ("99", "x", "", "-1"):
        tab = visit_site(SITE, f"#/feature/{address}")
        tab.get_by_role("heading", name="There is no feature").wait_for()


def test_what_is_not_known_is_left_out(visit_site):
    def bare():
        for name, block in blocks():
            if name != "overview":
                block["features"] = {
                    n: {"hist": r["hist"]} if r else {} for n, r in block["features"].items()
                }
            yield name, block

    tab = visit_site(replace(SITE, blocks=bare), "#/feature/33")
    opened(tab, 33)
    assert tab.locator(".card h3").all_inner_texts() == ["Explanation", "Contexts", "Activations when active"]


def test_links_to_other_pages_only_where_they_are(visit_site, feature):
    tab = feature()
    assert tab.locator("#view a[href^='#/tokens'], #view a[href^='#/circuit']").count() == 0

    def with_documents():
        yield from blocks()
        yield "tokens", {"documents": [{"d": 1, "n": 200, "words": "The"}]}

    views = ("features", "circuit", "tokens")
    tab = visit_site(replace(SITE, views=views, blocks=with_documents), "#/feature/33")
    opened(tab, 33)
    assert (
        tab.locator("#view a[href^='#/tokens']").count()
        == tab.locator("#view").get_by_text("doc 1", exact=True).count()
    )
    assert (
        tab.get_by_role("link", name="doc 1", exact=True).first.get_attribute("href")
        == "#/tokens/1?at=107&feature=33"
    )
    assert tab.get_by_role("link", name="a0.h1").get_attribute("href") == "#/circuit?node=a0.h1"


def test_hostile_strings_are_text(visit_site):
    every = " ".join(HOSTILE)

    def poison(value):
        """Every text within becomes a hostile one."""
        if isinstance(value, dict):
            return {key: poison(each) for key, each in value.items()}
        if isinstance(value, list):
            return [poison(each) for each in value]
        return every if isinstance(value, str) else value

    def hostile():
        for name, block in blocks():
            if name != "overview":
                block["strings"] = [*HOSTILE, "a", "b"]
                block["features"] = {n: poison(record) for n, record in block["features"].items()}
            yield name, block

    tab = visit_site(
        replace(SITE, blocks=hostile), "#/feature/33?tab=judged&full=1&lines=1&q=%3Cimg%20src%3Dx%3E"
    )
    opened(tab, 33)
    for kind in ("quantiles", "near", "random", "top"):
        tab.locator(f"#tab-{kind}").click()
    shown = tab.locator("#view").inner_text()
    for piece in ("<script>window.hit=1</script>", "</style><img", "onerror=window.hit=1>"):
        assert piece in shown
    assert "\\u202e" in "".join(contexts(tab))
    assert tab.locator("#view img, #view script, #view [onmouseover], #view [onerror]").count() == 0
    assert tab.evaluate("window.hit") is None


def test_print_holds_contexts_and_scores(feature):
    tab = feature()
    tab.emulate_media(media="print")
    assert tab.locator("#contexts li").first.is_visible()
    assert tab.locator(".scored").first.is_visible()
    assert not tab.locator(".view-feature nav").is_visible()
    assert not tab.locator("#contexts button").first.is_visible()
