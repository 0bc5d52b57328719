"""The live view in a real browser, with a model behind it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dashboards.live_parts import TEXT, codes_of, resid, site_at
from dashboards.serve_client import STEER, running
from mechlab.dashboards.serve import Server

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(live, site) -> Iterator[Server]:
    with running(live, site, token="for-the-browser-test") as it:
        yield it


@pytest.fixture
def visit(browser, server) -> Iterator[Any]:
    """Open an address of the served site; at the end nothing but the server may have been asked."""
    complaints: list[str] = []
    requests: list[str] = []
    context = browser.new_context(viewport={"width": 1300, "height": 800})
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.expected = []

    def go(address: str = "#/live") -> Any:
        tab.goto(server.url + address)
        return tab

    yield go
    unexpected = [line for line in complaints if not any(part in line for part in tab.expected)]
    context.close()
    assert unexpected == []
    assert {
        url for url in requests if not url.startswith((f"http://127.0.0.1:{server.port}/", "data:"))
    } == set()


def typed(tab, text: str = TEXT) -> None:
    tab.fill("#live-text", text)
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector(".chip")


def test_a_text_is_typed_and_its_features_are_shown(visit, live):
    tab = visit()
    assert tab.evaluate("document.activeElement.id") == "live-text"
    assert "token=" not in tab.url  # it is a cookie by now
    tab.keyboard.type("The cat ran to the box.")
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector(".chip")
    assert tab.locator(".chip").count() == 7
    codes = codes_of(live, resid(live, "The cat ran to the box.")[0])
    first = int(codes[0].argmax())
    cells = tab.locator(".view-live table").first.locator("tbody tr").first.inner_text()
    assert cells.split()[0] == str(first)
    assert f"explanation {first} </script><img" in cells
    assert tab.evaluate("window.hit") is None
    assert tab.locator(f".view-live a[href='#/feature/{first}']").count() >= 1
    assert "text=The%20cat" in tab.url


def test_arrows_move_along_the_tokens(visit):
    tab = visit()
    typed(tab)
    assert tab.locator(".chip[aria-pressed=true]").get_attribute("data-place") == "0"
    tab.locator(".chip").first.focus()
    for key, at in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0), ("ArrowLeft", 0)]:
        tab.keyboard.press(key)
        assert tab.locator(".chip[aria-pressed=true]").get_attribute("data-place") == str(at)
        assert tab.evaluate("document.activeElement.dataset.place") == str(at)
        assert f"At token {at + 1}" in tab.locator(".view-live caption").first.inner_text()


def test_one_feature_colours_the_text(visit, live):
    codes = codes_of(live, resid(live, TEXT)[0])
    feature = int(codes.sum(0).argmax())
    tab = visit(f"#/live?text={TEXT.replace(' ', '%20')}&feature={feature}")
    tab.wait_for_selector(".chip .on")
    active = "chips => chips.filter((c) => c.querySelector('.on')).map((c) => +c.dataset.place)"
    places = tab.locator(".chip").evaluate_all(active)
    assert places == (codes[:, feature] > 0).nonzero()[:, 0].tolist()
    assert f"Feature {feature} along the text" in tab.locator(".view-live h3").first.inner_text()
    other = int(codes.sum(0).topk(2).indices[1])
    tab.get_by_role("button", name=f"Feature {other} along the text").first.click()
    tab.get_by_role("heading", name=f"Feature {other} along the text").wait_for()
    assert f"feature={other}" in tab.url


def test_a_feature_is_changed_and_the_change_is_seen(visit, live):
    feature = int(codes_of(live, resid(live, TEXT)[0]).sum(0).argmax())
    tab = visit()
    typed(tab)
    tab.get_by_role("button", name=f"Change feature {feature}").first.click()
    tab.get_by_label("Times its maximum").fill("4")
    tab.keyboard.press("Tab")
    assert f"edits={feature}%3Aadd%3A4" in tab.url
    tab.get_by_role("button", name="Run the model").click()
    tab.wait_for_selector("[aria-label='Before and after'] table")
    text = tab.locator("[aria-label='Before and after']").inner_text()
    assert "nats per token" in text
    assert "It goes on: before" in text
    shares = tab.locator(".share").all_inner_texts()
    assert len(shares) >= 16
    # Nothing changes at strength 0, and the page says so.
    tab.get_by_label("Times its maximum").fill("0")
    tab.keyboard.press("Tab")
    tab.get_by_role("button", name="Run the model").click()
    tab.get_by_text("nothing changed").wait_for()
    assert "After (the same)" in tab.locator("[aria-label='Before and after']").inner_text()


def test_the_outcome_says_of_what_it_is(visit):
    """Also when other changes have been entered since, or the text is another one."""
    tab = visit("#/live?text=The%20cat&edits=5%3Aablate%2C7%3Aclamp%3A1.5&new=5")
    outcome = tab.locator("[aria-label='Before and after']")
    told = "Features 5 ablated, 7 held at 1.50 times its maximum"
    outcome.get_by_text(told, exact=True).wait_for()
    tab.get_by_role("button", name="Take change 2 back").click()
    assert outcome.locator(".told").inner_text() == told
    tab.fill("#live-text", "The dog ran to the box")
    tab.get_by_role("button", name="Run the model").click()
    outcome.get_by_text("Feature 5 ablated", exact=True).wait_for()
    assert tab.locator(".chip").count() == 6  # the reading above is of the same text
    tab.get_by_role("button", name="Take change 1 back").click()
    tab.get_by_role("button", name="Run the model").click()
    outcome.get_by_text("Without any change", exact=True).wait_for()


def test_a_feature_that_is_not_active_is_said_not_to_be(visit, live):
    codes = codes_of(live, resid(live, TEXT)[0]).sum(0)
    for feature, silent in ((int(codes.argmin()), 1), (int(codes.argmax()), 0)):
        tab = visit(f"#/live?text={TEXT.replace(' ', '%20')}&feature={feature}")
        tab.get_by_role("heading", name=f"Feature {feature} along the text").wait_for()
        assert tab.get_by_text("It is not active in this text.").count() == silent
        if not silent:  # the token on which it is most active is the one looked at
            most = codes_of(live, resid(live, TEXT)[0])[:, feature].argmax()
            assert tab.locator(".chip[aria-pressed=true]").get_attribute("data-place") == str(int(most))


def test_work_can_be_seen_and_its_errors_stand_where_it_was_asked_for(visit, server):
    kind, steer = server.questions[STEER]
    go = threading.Event()

    def held(asked, check):
        assert go.wait(30)
        return steer(asked, check)

    tab = visit()
    tab.expected = ["400 (Bad Request)"]
    typed(tab)
    server.questions[STEER] = (kind, held)
    try:
        button = tab.get_by_role("button", name="Run the model")
        button.click()
        tab.wait_for_selector("form.steer[aria-busy]")
        assert "working" in button.evaluate("(node) => getComputedStyle(node, '::after').content")
        go.set()
        tab.wait_for_selector("[aria-label='Before and after'] table")
        assert tab.locator("[aria-busy]").count() == 0
    finally:
        server.questions[STEER] = (kind, steer)
    tab.get_by_label("New tokens").fill("65")
    tab.get_by_label("Seed").focus()
    tab.evaluate("document.querySelector('form.steer').noValidate = true")
    tab.get_by_role("button", name="Run the model").click()
    tab.locator("form.steer .wrong", has_text="new_tokens: Input should be less").wait_for()
    assert tab.locator(".ask .wrong").inner_text() == ""


def test_a_deep_link_runs_it_all(visit):
    tab = visit("#/live?text=The%20cat&edits=5%3Aablate%2C7%3Aclamp%3A1.5&new=5")
    tab.wait_for_selector("[aria-label='Before and after'] table")
    assert tab.locator(".changes fieldset").count() == 2
    assert tab.locator(".changes select").nth(1).input_value() == "clamp"
    assert tab.locator(".changes input[type=number]").nth(1).is_disabled()


def test_what_the_server_refuses_is_shown(visit):
    tab = visit()
    tab.expected = ["400 (Bad Request)"]
    tab.fill("#live-text", "cat " * 200)
    tab.keyboard.press("Control+Enter")
    tab.locator(".ask .wrong", has_text="text is too long: 200 tokens").wait_for()
    typed(tab, "The cat")
    assert tab.locator(".ask .wrong").inner_text() == ""


def test_a_question_is_asked_again_where_too_many_ask(visit, server):
    tab = visit()
    tab.expected = ["503 (Service Unavailable)"]
    with contextlib.ExitStack() as places:
        for _ in range(9):  # one that is worked for, and the queue
            server._places.acquire(timeout=10)
            places.callback(server._places.release)
        tab.fill("#live-text", TEXT)
        with tab.expect_response(lambda answer: answer.status == 503):
            tab.keyboard.press("Control+Enter")
        assert tab.locator("form.ask[aria-busy]").count() == 1
    tab.wait_for_selector(".chip")
    assert tab.locator(".ask .wrong").inner_text() == ""


def test_hostile_texts_are_text(visit):
    tab = visit()
    typed(tab, "</script><img src=x onerror=window.hit=1> \u202e <b>")
    tab.get_by_role("button", name="Run the model").click()
    tab.wait_for_selector("[aria-label='Before and after'] table")
    assert tab.evaluate("window.hit") is None
    assert tab.locator("main img").count() == 0


def test_a_server_that_has_gone_is_named(browser, live, tmp_path):
    with running(live, site_at(tmp_path / "site")) as server:
        tab = browser.new_page()
        tab.set_default_timeout(20_000)
        tab.goto(server.url + "#/live")
        tab.fill("#live-text", "The cat")
    tab.keyboard.press("Control+Enter")
    tab.locator(".wrong", has_text="Is it still running?").wait_for()
    tab.close()


def test_the_page_leads_to_the_live_view(visit):
    tab = visit("")
    tab.get_by_role("link", name="Try a text").first.click()
    tab.wait_for_selector("#live-text")


def test_without_a_server_the_view_is_not_offered(browser, tmp_path):
    site = site_at(tmp_path / "site", limit=10**9)
    tab = browser.new_page()
    tab.goto((site.path / "index.html").as_uri())
    assert tab.get_by_role("link", name="Try a text").count() == 0
    tab.close()


@pytest.mark.parametrize("width", [380, 1300])
def test_nothing_scrolls_sideways(visit, width):
    tab = visit("#/live?text=The%20cat%20ran&edits=5%3Aadd%3A2&new=4")
    tab.set_viewport_size({"width": width, "height": 800})
    tab.wait_for_selector("[aria-label='Before and after'] table")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "address", ["#/live", "#/live?text=The%20cat%20ran&feature=5&edits=5%3Aadd%3A2&new=4"]
)
def test_nobody_is_shut_out(visit, address, scheme):
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    from dashboards.test_axe import violations

    tab = visit(address)
    tab.emulate_media(color_scheme=scheme)
    tab.wait_for_selector("[aria-label='Before and after'] table" if "edits" in address else "#live-text")
    assert violations(tab) == []


def test_a_feature_begins_with_its_own_text(visit):
    tab = visit("#/live?feature=7")
    tab.wait_for_selector(".chip")
    assert tab.locator("#live-text").input_value() == "The cat ran"
    assert "Feature 7 along the text" in tab.locator(".view-live h3").first.inner_text()
