"""Explainers and scores against planted features, small: every table for real."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mechlab.bench.feature_tables import feature_goals, feature_tables
from mechlab.bench.feature_truth import World, functions, make_world, recovery, scorers
from mechlab.cli.bench_feature_truth import truth_text
from mechlab.cli.main import main
from mechlab.errors import MechlabError

OFFLINE = {"detection", "hard", "fuzzing", "precision", "token f1", "simulation correlation", "synthetic"}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(tokens=150_000, held_out=80_000, per_kind=1, noise=3, seed=2)


def test_explainer_and_scorer_see_different_documents(world: World) -> None:
    shown, held = (set(index.text.document.tolist()) for index in (world.shown, world.held))
    assert shown
    assert held
    assert not shown & held
    assert len(world.known) == len(world.planted) - 3


def test_planted_rules_are_recovered_and_noise_is_not(world: World) -> None:
    table = recovery(world)
    assert table["features"] == 12
    assert table["recovered"]["value"] >= 10 / 12
    assert table["f1"] > 0.95
    assert abs(table["noise"][0]["value"] - 0.5) < 0.15
    goals = feature_goals({"planted": {"clean": table}})
    assert [goal["name"].split()[0] for goal in goals] == ["planted:", "planted:"]


@pytest.mark.slow
def test_every_offline_scorer_ranks_true_above_wrong_above_shuffled(world: World) -> None:
    table = scorers(world)
    found = {name.split(": ")[1] for name in table["explanations"]}
    assert found >= OFFLINE
    for name in ("rules: detection", "rules: fuzzing", "simulation: simulation correlation"):
        each = table["explanations"][name]
        assert each["true"]["value"] > each["wrong"]["value"] > each["shuffled"]["value"], name
        assert each["true"]["value"] > 0.95
    inverted = table["explanations"]["rules: detection"]["inverted"]["value"]
    assert inverted == pytest.approx(1 - table["explanations"]["rules: detection"]["true"]["value"])
    # The memoriser and the constants can know nothing at all of other documents.
    for name in ("detection: always yes", "detection: always no", "detection: memoriser"):
        assert table["cheaters"][name]["value"] == 0.5, name
    assert "cheaters" in truth_text({"scorers": table, "goals": []})


@pytest.mark.slow
def test_functions_beat_another_functions_explanation() -> None:
    table = functions(count=10)
    assert set(table) == {"numbers", "strings", "neurons"}
    assert all(goal["met"] for goal in feature_goals({"functions": table}))
    assert "choices of three" in truth_text({"functions": table, "goals": []})


def test_goals_can_be_missed() -> None:
    score: dict[str, Any] = {"value": 0.2, "low": 0.1, "high": 0.3}
    table = {"clean": {"recovered": score, "noise": [{"value": 0.7, "low": 0.6, "high": 0.8}]}}
    assert not any(goal["met"] for goal in feature_goals({"planted": table}))


def test_tables_that_cannot_be_made_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    with pytest.raises(MechlabError, match="needs a model and a corpus"):
        feature_tables(0, None, model=tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "truth", "--part", "features", "--tables", "plantd"])
    assert stop.value.code == 2
    assert "did you mean planted" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "truth", "--part", "features", "--tables", "functions", "--json"])
    assert stop.value.code == 0
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert payload["met"] is True
    assert payload["functions"]["strings"]["value"] == 1.0
