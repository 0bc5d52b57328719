"""All features in a real browser: table, search, plot, addresses, keys."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import unquote

import pytest

from dashboards.conftest import HOSTILE
from dashboards.toy_features import SITE, N, blocks

pytestmark = pytest.mark.browser


def numbers(tab) -> list[int]:
    return [int(text.strip("★ ")) for text in tab.locator("#view tbody td:first-child").all_inner_texts()]


def ready(tab) -> None:
    tab.wait_for_selector("#view tbody td")


def opened(tab, title: str) -> None:
    tab.get_by_role("heading", name=title, exact=True).wait_for()


@pytest.fixture
def toy(visit_site):
    def go(address="#/features", limit=30_000_000):
        tab = visit_site(SITE, address, limit=limit)
        ready(tab)
        return tab

    return go


@pytest.mark.parametrize("limit", [0, 30_000_000])
def test_all_features_are_listed(toy, limit):
    tab = toy(limit=limit)
    assert numbers(tab) == list(range(N))
    assert tab.locator(".find output").inner_text() == f"{N} features"
    last = tab.locator("#view tbody tr").last.inner_text()
    assert "never fires" in last
    assert "dead" in last


def search(tab, query: str) -> list[int]:
    tab.fill("[data-search]", query)
    if tab.locator("#view tbody td[colspan]").count():
        return []
    return numbers(tab)


ODD = [*range(1, N - 1, 2)]


SEARCHES = {
    "word33": [33],
    "WORD33": [33],
    "#33": [33],
    "5": [5, 15, 25, 35, 45, *range(50, 60), 65],  # the number, or the text "word5…"
    '"on word3"': [3, *range(30, 40)],
    "cats": [3],
    "animal": [4, 14, 24, 34, 44, 54, 64],
    "label:": [3],
    "concept:ANI word6": [64],
    "token:the": [*range(N - 1)],
    'token:" the"': ODD,
    'token:"the"': [],
    "token:The -token:cat": [k for k in range(N - 1) if k % 2 == 0],
    "by:rules word1 -5": [1, 10, 11, 12, 13, 14, 16, 17, 18, 19],
    "score>0.66 density<=0.065": [61, 62, 63, 64],
    "detection<0.602": [0, 1],
    "top-minus-rest=0.1 n>67": [68, 69],
    "density<1e-3": [69],
    "max>=4 mean=1.5 n<2": [0, 1],
    "flag:dead": [69],
    "flag:dense": [68],
    "-flag:dead n>66": [67, 68],
    "-score>0": [69],
    "nothing at all": [],
    "-": [*range(N)],
    "": [*range(N)],
}


def test_search(toy):
    tab, found = toy(), {}
    for query, expected in SEARCHES.items():
        found[query] = search(tab, query)
        assert tab.locator("#wrong").inner_text() == ""
        count = tab.locator(".find output").inner_text()
        assert count == (f"{N} features" if len(expected) == N else f"{len(expected)} of {N} features")
        assert tab.evaluate("mechlab.state().query.get('q') ?? ''") == query
    assert found == SEARCHES


MISTAKES = {
    "tokn:the": "no operator “tokn:”; there are token:",
    "scor>0.8": "no number “scor”; there are n, density, max, mean, detection, top-minus-rest, score",
    "score>high": "“score>” wants a number",
    "density<": "“density<” wants a number",
    "flag:alive": "dead, dense or star, not “alive”",
    "score:0.8": "write score>0.8 or score<0.8",
    "constructor:x": "no operator",
    "__proto__>1": "no number",
}


def test_a_wrong_operator_is_explained(toy):
    tab = toy()
    for query, words in MISTAKES.items():
        assert search(tab, "word33") == [33]
        assert search(tab, query) == [33]  # as it was
        assert words in tab.locator("#wrong").inner_text()
        assert search(tab, f'"{query}"') == []  # as text
        assert tab.locator("#wrong").inner_text() == ""


def test_sorting_is_in_the_address_and_back(toy):
    tab = toy()
    tab.get_by_role("button", name="detection").click()
    assert numbers(tab)[:2] == [68, 67]
    assert numbers(tab)[-1] == 69
    assert tab.evaluate("location.hash").endswith("#/features?sort=detection&down=1")
    tab.get_by_role("button", name="detection").click()
    assert numbers(tab)[:2] == [0, 1]
    assert numbers(tab)[-1] == 69  # what has no value stays last
    tab = toy("#/features?q=word6&sort=score&down=1&plot=1")
    assert numbers(tab) == [68, 67, 66, 65, 64, 63, 62, 61, 60, 6]
    assert tab.input_value("[data-search]") == "word6"
    assert tab.locator("th[aria-sort=descending]").inner_text() == "detection"
    tab.wait_for_selector(".chart-box")
    tab.fill("[data-search]", "word68")
    assert tab.evaluate("location.hash").endswith("?q=word68&sort=score&down=1&plot=1")


def test_scores_show_value_interval_and_control(toy):
    tab = toy("#/features?q=%2333")
    bar = tab.locator("#view tbody svg.score").first
    assert bar.get_attribute("aria-label") == "detection 0.633, interval 0.533 to 0.733, control 0.500"
    tip = tab.locator("#view tbody .tip").first
    assert not tip.is_visible()
    tab.locator("#view tbody td a").focus()
    assert tip.inner_text() == "0.533 to 0.733\n◇ 0.500"
    tab.locator("#view tbody td a").blur()
    tab.locator("#view tbody .cell").first.hover()
    assert tip.is_visible()


def test_plot_of_density_against_score_leads_to_features(toy):
    tab = toy()
    tab.keyboard.press("p")
    named = tab.locator("svg.chart").get_attribute("aria-label")
    assert named == "detection against density (log), 69 points"
    tab.fill("[data-search]", "word33")
    # Once all other points are plain: the policy lets no condition be evaluated on the page.
    for _ in range(200):
        if tab.locator(".marker.linked").count() == 1:
            break
        tab.wait_for_timeout(50)
    tab.locator(".marker.linked").click()
    opened(tab, "Feature 33")
    assert tab.evaluate("mechlab.state().query.get('q')") == "word33"


def test_keyboard_alone_finds_a_feature(toy):
    tab = toy()
    tab.keyboard.press("/")
    tab.keyboard.type("word1 -word10")
    assert tab.evaluate("document.activeElement.type") == "search"
    tab.keyboard.press("Escape")
    tab.keyboard.press("j")
    tab.keyboard.press("j")
    assert tab.evaluate("document.activeElement.textContent") == "11"
    tab.keyboard.press("k")
    assert tab.evaluate("document.activeElement.textContent") == "1"
    tab.keyboard.press("j")
    tab.keyboard.press("Enter")
    opened(tab, "Feature 11")
    tab.go_back()
    tab.wait_for_selector("[data-search]")
    assert tab.input_value("[data-search]") == "word1 -word10"
    tab.keyboard.press("/")
    tab.keyboard.press("Enter")
    opened(tab, "Feature 1")


def test_a_click_anywhere_in_a_row_opens_it(toy):
    tab = toy()
    tab.locator("#view tbody tr").nth(5).locator(".explanation").click()
    opened(tab, "Feature 5")


def test_favourites_are_kept_found_and_saved(toy):
    tab = toy("#/feature/33")
    tab.keyboard.press("s")
    assert tab.get_by_role("button", name="Favourite").get_attribute("aria-pressed") == "true"
    # The browser keeps it in another process: a page opened at once may not find it yet.
    for _ in range(20):
        tab.wait_for_timeout(100)
        tab.reload()
        star = tab.get_by_role("button", name="Favourite")
        star.wait_for()
        if star.get_attribute("aria-pressed") == "true":
            break
    tab.evaluate("location.hash = '#/features?q=flag:star'")
    tab.wait_for_selector("[download]")
    assert numbers(tab) == [33]
    with tab.expect_download() as started:
        tab.locator("[download]").click()
    saved = json.loads(started.value.path().read_text())
    assert started.value.suggested_filename == "favourites.json"
    assert saved["favourites"] == [{"feature": 33, "explanation": "fires on word33", "label": ""}]
    assert saved["model"] == "tiny"


def test_hostile_strings_are_text(visit_site):
    def hostile():
        for name, block in blocks():
            if name == "overview":
                columns = block["columns"]
                columns["said"][:11] = HOSTILE
                columns["label"][:11] = HOSTILE
                columns["concept"][:11] = HOSTILE
                columns["tokens"][:11] = [[each] for each in HOSTILE]
                block["scorers"].append(HOSTILE[0])
                columns["scores"][HOSTILE[0]] = columns["scores"]["detection"]
            yield name, block

    tab = visit_site(replace(SITE, blocks=hostile), "#/features?plot=1&q=%3Cimg")
    ready(tab)
    assert numbers(tab) == [2]
    assert HOSTILE[2] in tab.locator("#view tbody").inner_text()
    assert search(tab, 'token:"<script>window.hit=1</script>"') == [0]
    tab.evaluate("mechlab.features.stars.add(9)")
    tab.evaluate("mechlab.go(['features'], {q: 'flag:star'})")
    tab.wait_for_selector("[download]")
    link = tab.locator("[download]").get_attribute("href")
    assert json.loads(unquote(link.removeprefix("data:application/json,")))["favourites"][0]["feature"] == 9
    assert tab.evaluate("window.hit") is None
    assert tab.locator("#view img, #view script").count() == 0


@pytest.mark.slow
def test_sixteen_thousand_features(visit_site):
    """The goals, 1.5 s to the table and 0.1 s for a search, with room for half as much again.

    Times are those of the page's main thread at work, which other load on the machine changes little.
    """

    def large():
        yield next(blocks(16_384))
        yield "features-0", {"strings": [], "features": {}}

    tab = visit_site(replace(SITE, blocks=large), "#/features")
    ready(tab)
    assert tab.locator("#view tbody tr").count() == 100
    protocol = tab.context.new_cdp_session(tab)
    protocol.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds(*names: str) -> float:
        found = {each["name"]: each["value"] for each in protocol.send("Performance.getMetrics")["metrics"]}
        return sum(found[f"{name}Duration"] for name in names)

    before = seconds("Task")
    tab.reload()
    ready(tab)
    assert seconds("Task") - before < 2.25
    parts = ("Script", "Layout", "RecalcStyle")
    for query in ("word1", "token:the", "score>0.7 -word3", "density<1e-3", ""):
        before = seconds(*parts)
        tab.fill("[data-search]", query)
        tab.evaluate("document.body.offsetHeight")  # the layout too
        assert seconds(*parts) - before < 0.15, query
    tab.locator(".more").click()
    assert tab.locator("#view tbody tr").count() == 200
