"""``mechlab bench dashboard`` on small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechlab.bench.dashboard import QUERIES, measure, said_of
from mechlab.bench.features import Sizes, build, make_problem
from mechlab.cli.bench_dashboard import goals
from mechlab.cli.main import main
from mechlab.features.building import load_index

SIZES = Sizes(entries=6000, features=128, active=6)


def test_everything_live_is_explained_and_scored(tmp_path: Path) -> None:
    build(make_problem(SIZES), tmp_path / "index")
    index = load_index(tmp_path / "index")
    explanations, scores = said_of(index)
    assert [each.feature for each in explanations.items] == index.live.tolist()
    assert len(scores) == 2 * len(index.live)
    assert said_of(index) == (explanations, scores)


@pytest.mark.slow
@pytest.mark.browser
def test_figures_are_those_of_the_site(tmp_path: Path) -> None:
    found = measure(SIZES, tmp_path, repeats=1, peers=False)
    built, browser = found["build"], found["browser"]
    assert built["features"] == 128
    assert built["bytes"] == (tmp_path / "site" / "index.html").stat().st_size
    # The rest is the page itself: its scripts, styles and texts.
    assert 0.2 * built["bytes"] < 128 * built["bytes_per_feature"] < built["bytes"]
    assert built["features_per_minute"] == pytest.approx(60 * 128 / built["seconds"])
    if browser is None:
        pytest.skip("playwright or a Chromium is not there")
    assert browser["first_view_ms"] > 0
    assert set(browser["filters"]) == set(QUERIES)
    assert browser["filter_ms"] == max(browser["filters"].values()) > 0


def test_goals() -> None:
    built = {"features_per_minute": 2000.0, "bytes_per_feature": 5000.0}
    browser = {"first_view_ms": 900.0, "filter_ms": 30.0}
    assert [each["met"] for each in goals({"build": built, "run": built, "browser": browser})] == [True] * 6
    slow = {"features_per_minute": 900.0, "bytes_per_feature": 9000.0}
    missed = goals({"build": slow, "browser": {"first_view_ms": 1501.0, "filter_ms": 101.0}})
    assert [each["met"] for each in missed] == [False] * 4
    assert len(goals({"build": built, "browser": None})) == 2


def test_mistakes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, line in (
        (["--features", "0"], "features must be positive"),
        (["--active", "20000"], "active is out of range"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["bench", "dashboard", *words])
        assert stopped.value.code == 2
        assert line in capsys.readouterr().err


def test_what_the_command_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = "--entries 6000 --features 128 --active 6 --repeats 1 --peer-folder nowhere --json"
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "dashboard", *small.split(), "--work", str(tmp_path)])
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert stopped.value.code == (0 if payload["met"] else 1)
    assert payload["missing"] == ["saedashboard"]
    assert payload["met"] == all(each["met"] for each in payload["goals"])
