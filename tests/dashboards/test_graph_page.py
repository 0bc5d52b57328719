"""A graph of features as a file of its own, in a real browser."""

from __future__ import annotations

import pytest

from dashboards.circuit_parts import feature_graph, prompts
from dashboards.conftest import HOSTILE
from mechlab.dashboards.circuit_page import graph_page

pytestmark = pytest.mark.browser


def test_the_file_alone_shows_the_graph(browser, tmp_path):
    subject = prompts()[0]
    path = tmp_path / "graph.html"
    path.write_text(graph_page(feature_graph(), subject, " ".join(HOSTILE)))
    tab = browser.new_page()
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(path.as_uri())
    tab.wait_for_selector(".graph svg")
    assert tab.locator(".graph .edge:not(.off)").count() == 6
    assert tab.evaluate("window.hit") is None
    tab.locator(".node[data-name='embed@0']").click()
    assert f"input “{subject.token_text(5)}”" in tab.locator(".node-name").inner_text().replace("·", " ")
    assert complaints == []
    tab.close()
