"""``mechlab bench features`` on small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mechlab.bench.features import Sizes, build, compare_stages, growth, make_problem, ratios
from mechlab.cli.bench_features import features, goals, parse_grown
from mechlab.cli.main import main
from mechlab.errors import MechlabError
from mechlab.features.building import load_index

SIZES = Sizes(entries=6000, features=64, active=6)


def test_the_problem_is_an_index_of_its_size(tmp_path: Path) -> None:
    problem = make_problem(SIZES)
    build(problem, tmp_path / "i")
    index = load_index(tmp_path / "i")
    assert len(index.row) == 6000
    assert len(index.text) == SIZES.rows == 1000
    assert index.n_features == 64
    assert (np.diff(np.sort(problem.indices, axis=1)) > 0).all()


def test_a_problem_follows_from_its_seed() -> None:
    one, same, other = make_problem(SIZES, 1), make_problem(SIZES, 1), make_problem(SIZES, 2)
    assert np.array_equal(one.values, same.values)
    assert np.array_equal(one.indices, same.indices)
    assert not np.array_equal(one.tokens, other.tokens)


def test_a_grown_problem_repeats_codes_on_other_tokens(tmp_path: Path) -> None:
    problem = make_problem(SIZES)
    build(problem, tmp_path / "i", times=3)
    index = load_index(tmp_path / "i")
    assert len(index.text) == 3000
    row, value = index.entries(int(index.live[0]))
    assert np.array_equal(value, np.tile(value[: len(value) // 3], 3))
    assert np.array_equal(row[len(row) // 3 :], row[: -(len(row) // 3)] + 1000)
    assert not np.array_equal(index.text.tokens[:1000], index.text.tokens[1000:2000])


def test_stages_have_floors_and_peaks(tmp_path: Path) -> None:
    problem = make_problem(SIZES)
    found = compare_stages(problem, tmp_path, repeats=2, copies=1e9)
    assert list(found) == ["build", "contexts", "statistics"]
    for each in found.values():
        assert each["range"][0] <= each["seconds"] <= each["range"][1]
    assert found["build"]["floor"] == 16 * 6000 / 1e9
    grown = growth(problem, 2, tmp_path)
    assert grown["entries"] == 12000
    assert set(grown["seconds"]) == set(found)


def payload() -> dict[str, object]:
    stage = {"seconds": 0.1, "floor": 0.01, "range": [0.1, 0.1], "peak_bytes": 10**8}
    stages = {name: dict(stage) for name in ("build", "contexts", "statistics")}
    seconds = dict.fromkeys(stages, 0.1)
    return {
        "sizes": {"entries": 20_000_000},
        "stages": stages,
        "growth": [
            {"entries": 2_000_000, "seconds": seconds, "peak_bytes": 10**8},
            {"entries": 20_000_000, "seconds": seconds, "peak_bytes": 10**8},
            {"entries": 200_000_000, "seconds": dict.fromkeys(stages, 1.4), "peak_bytes": None},
        ],
        "rules": {"explain": 60.0, "score": 300.0},
    }


def test_goals() -> None:
    met = goals(payload())
    assert len(met) == 9
    assert all(each["met"] for each in met)
    for change in (
        lambda found: found["stages"]["build"].update(seconds=3.1),
        lambda found: found["stages"]["contexts"].update(peak_bytes=10**9),
        lambda found: found["growth"][2]["seconds"].update(statistics=1.6),
        lambda found: found["growth"][2].update(peak_bytes=10**10),
        lambda found: found["rules"].update(explain=49.0),
        lambda found: found["rules"].update(score=199.0),
    ):
        found = payload()
        change(found)
        assert sum(not each["met"] for each in goals(found)) == 1


def test_goals_of_time_follow_the_size() -> None:
    found = payload()
    found["sizes"], found["growth"] = {"entries": 40_000_000}, []
    assert [each["most"] for each in goals(found)[:3]] == pytest.approx([6, 1, 2])
    found["sizes"] = {"entries": 2_000_000}
    assert [each["most"] for each in goals(found)[:3]] == pytest.approx([3, 0.5, 1])


def test_ratios() -> None:
    found = {**payload(), "peers": {"delphi": {"save": 1.0, "load": 3.0}, "saedashboard": {"total": 6.0}}}
    assert list(ratios(found).values()) == pytest.approx([20, 30])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--entries", "0"], "entries must be positive"),
        (["--active", "99", "--features", "50"], "active is out of range"),
        (["--rules", "-1"], "rules is out of range"),
        (["--grown", "5,many"], "grown is out of range"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "features", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_numbers_of_entries() -> None:
    assert parse_grown("100, 200,", 20) == (100, 200)
    assert parse_grown("", 20) == ()
    with pytest.raises(MechlabError, match="grown is out of range: 19"):
        parse_grown("100,19", 20)


@pytest.mark.slow
@pytest.mark.parametrize("rules", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_a_small_run(tmp_path: Path, rules: int) -> None:
    words = (
        f"--entries 24000 --features 64 --active 6 --grown 3000,48000 --rules {rules} "
        f"--repeats 1 --peer-folder {tmp_path} --work {tmp_path}"
    )
    outcome = features(words.split(), "mechlab bench features")
    found = json.loads(json.dumps(outcome.payload))
    assert outcome.exit == (0 if found["met"] else 1)
    assert [each["entries"] for each in found["growth"]] == [3000, 24000, 48000]
    assert found["missing"] == ["delphi", "saedashboard"]
    assert ("rules" in found) == (rules > 0)
    assert "24,000 entries, 64 features, 4,000 tokens" in outcome.text
    assert "delphi: missing" in outcome.text
    assert not list(tmp_path.iterdir())
