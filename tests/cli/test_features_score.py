"""``mechlab features score`` as a user meets it: rules, a scripted judge, the model itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.features_made import LATENTS, WIDTH, asking, held_out, made, payload, refused, run, said
from features.llm_questions import billed
from mechlab.features.building import load_index
from mechlab.features.explanations import Explanations, load_explanations, save_explanations
from mechlab.features.llm import sending
from mechlab.features.llm.server import ScriptedServer, first
from mechlab.features.scoring.scorecard import load_scores

FEATURES = 8
SMALL = ["--samples", 10, "--width", WIDTH]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = made(tmp_path_factory.getbasetemp())
    if not (found / "explanations").exists():
        words = ["--features", f"0-{FEATURES - 1}", "--out", found / "explanations"]
        assert run("explain", found / "index", *words) == 0
    return found


def scoring(folder: Path, out: Path, *words: object) -> list[object]:
    return ["score", folder / "explanations", "--index", folder / "index", "--out", out, *words]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables that were printed."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


def rejudged(folder: Path, tmp_path: Path, **fields: Any) -> Path:
    """The explanations with something else in them, as an artifact of their own."""
    given = replace(load_explanations(folder / "explanations"), **fields)
    save_explanations(given, tmp_path / "given", config={}, seed=0, inputs={})
    return tmp_path / "given"


def test_rules_are_executed_and_shown_as_a_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorers = "detection,hard,fuzzing,quantiles,precision,intruder,tokens,simulation"
    words = scoring(folder, tmp_path / "s", "--scorers", scorers)
    found = payload(capsys, *words)
    assert found["features"] == FEATURES
    by_name = {each["scorer"]: each for each in found["totals"]}
    assert by_name["detection"]["mean"]["low"] > 0.55 > by_name["detection"]["mean"]["null"]["value"]
    assert by_name["detection"]["explainer"] == "rules"
    assert by_name["intruder"]["explainer"] == ""
    assert {"hard", "fuzzing", "token f1", "simulation correlation"} <= set(by_name)
    assert all("median" in each for each in found["totals"])
    text = said(capsys, *words)
    lines = text.splitlines()
    assert lines[0] == f"{FEATURES} features scored, means over features: {tmp_path / 's'}"
    assert lines.index("rules") < lines.index("no explanation needed")
    [row] = [cells for cells in rows(text) if cells[0] == "detection"]
    mean = by_name["detection"]["mean"]
    interval = f"{mean['low']:.3f}, {mean['high']:.3f}"
    assert row[1:] == [f"{mean['value']:.3f}", interval, f"{mean['null']['value']:.3f}", str(mean["n"])]
    assert "median" not in text
    card = load_scores(tmp_path / "s")
    assert len(card.of("detection")) == mean["n"]


def test_explainers_stand_apart(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = load_explanations(folder / "explanations").items
    several = (*items, *(replace(each, explainer="ngrams") for each in items[:4]))
    words = ["score", rejudged(folder, tmp_path, items=several), "--index", folder / "index"]
    words += ["--scorers", "detection", "--out", tmp_path / "s"]
    text = said(capsys, *words)
    assert [line for line in text.splitlines() if line in ("rules", "ngrams")] == ["rules", "ngrams"]
    card = load_scores(tmp_path / "s")
    units = [str(len(card.of("detection", name))) for name in ("rules", "ngrams")]
    assert [cells[4] for cells in rows(text) if cells[0] == "detection"] == units
    assert units[0] > units[1] > "0"


def test_some_features_only(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = scoring(folder, tmp_path / "s", "--scorers", "tokens", "--features", "2-4,90")
    assert payload(capsys, *words)["features"] == 3
    assert {each.feature for each in load_scores(tmp_path / "s")} == {2, 3, 4}
    assert "another features" in refused(capsys, *scoring(folder, tmp_path / "s", "--scorers", "tokens"))


def test_one_feature_has_its_own_interval(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, *scoring(folder, tmp_path / "s", "--scorers", "detection", "--features", 0))
    assert text.startswith(f"1 feature scored: {tmp_path / 's'}\n")
    own = load_scores(tmp_path / "s").of("detection")[0].score
    assert 0 < own.high - own.low < 0.5
    [row] = [cells for cells in rows(text) if cells[0] == "detection"]
    assert row[1:3] == [f"{own.value:.3f}", f"{own.low:.3f}, {own.high:.3f}"]


def test_what_has_no_score_is_counted_with_the_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = load_explanations(folder / "explanations").items
    some = (*items[:4], *(replace(each, rule=None, text="some words") for each in items[4:]))
    given = rejudged(folder, tmp_path, items=some, failed={20: "malformed: no JSON"})
    words = ["score", given, "--index", folder / "index", "--scorers", "detection", "--out", tmp_path / "s"]
    found = payload(capsys, *words)
    assert found["reasons"]["malformed"] == 1
    assert [count for reason, count in found["reasons"].items() if "no rule" in reason] == [4]
    text = said(capsys, *words)
    assert "4 without a score: explanation is no rule that can be executed; give a judge" in text
    assert "1 without a score: malformed: no JSON" in text


@pytest.mark.slow  # the model runs under every condition
def test_with_the_dictionary(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--scorers", "detection,synthetic,intervention,rewriting", "--dictionary", folder / "sae"]
    words = scoring(folder, tmp_path / "s", *words, "--features", "0-1", "--tokens", 600)
    found = payload(capsys, *words)
    by_name = {each["scorer"]: each["mean"] for each in found["totals"]}
    assert {"synthetic", "synthetic agreement", "promotion"} <= set(by_name)
    assert by_name["promotion"]["value"] > by_name["promotion"]["null"]["value"]
    shares = found["rewriting"]["shares"]
    assert [each["features"] for each in shares] == [1, 2]
    detected = {
        each.feature: each.score.value for each in load_scores(tmp_path / "s") if each.scorer == "detection"
    }
    assert found["rewriting"]["order"] == sorted(detected, key=lambda each: -detected[each])
    assert found["rewriting"]["ce"]["clean"]["value"] < found["rewriting"]["ce"]["zero"]["value"]
    assert load_scores(tmp_path / "s").rewriting == found["rewriting"]
    text = said(capsys, *words)
    assert "rewriting: the model with features as explained" in text
    assert "recovered, 2 features" in text


def test_a_language_model_judges_and_is_audited(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(held_out(folder, folder / "explanations")) as server:
        llm = ["--judge", "llm", *asking(server.url, tmp_path / "answers.sqlite"), *SMALL]
        words = scoring(folder, tmp_path / "a", "--scorers", "detection,fuzzing", *llm)
        found = payload(capsys, *words)
        sent = len(server.log)
        assert sent > 0
        rules = ["--scorers", "detection,fuzzing", *SMALL]
        by_rules = payload(capsys, *scoring(folder, tmp_path / "r", *rules))
        for one, other in zip(found["totals"], by_rules["totals"], strict=True):
            assert one["scorer"] == other["scorer"]
        assert found["totals"][0]["mean"]["value"] > 0.6
        assert found["spent"]["dollars"] == pytest.approx(billed(server.log))
        assert set(found["audit"]["scores"]) >= {"order", "wording", "blind", "own words"}
        assert found["audit"]["failures"] == {}
        assert load_scores(tmp_path / "a").audit == found["audit"]
        again = payload(capsys, *scoring(folder, tmp_path / "b", "--scorers", "detection,fuzzing", *llm))
        assert len(server.log) == sent
        assert again["totals"] == found["totals"]
        text = said(capsys, *words)
        assert f"judge: {found['audit']['verdict']}" in text
        assert f"{found['spent']['answers']:,} answers in" in text
        assert len(server.log) == sent


def test_waiting_for_a_server_is_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "LONGEST_WAIT", 0.01)
    with ScriptedServer(lambda body: "") as server:
        url = server.url
    llm = ["--judge", "llm", *asking(url, tmp_path / "answers.sqlite"), "--features", "0"]
    assert run(*scoring(folder, tmp_path / "s", "--scorers", "detection", *llm)) == 2
    *waits, last = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in waits] == [f"mechlab: no connection to {url}, trying again"] * 5
    assert [line.split(" s ")[1] for line in waits] == [f"({attempt} of 6)" for attempt in range(2, 7)]
    assert "no language model can be reached" in last


def test_a_dry_run_sends_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(held_out(folder, folder / "explanations")) as server:
        llm = ["--judge", "llm", *asking(server.url, tmp_path / "answers.sqlite"), *SMALL]
        words = scoring(
            folder, tmp_path / "s", "--scorers", "detection,intruder,simulation", "--features", "0-1", *llm
        )
        plan = payload(capsys, *words, "--dry-run")["dry_run"]
        assert not server.log
        assert not list(tmp_path.iterdir())
        found = payload(capsys, *words)
        assert len(server.log) >= plan["requests"] > 0  # what is asked in the judge's own words comes on top
        assert payload(capsys, *words, "--dry-run")["dry_run"]["requests"] == 0
        assert found["spent"]["dollars"] > 0
    assert "nothing would be asked" in refused(capsys, *scoring(folder, tmp_path / "x", "--dry-run"))


def test_a_judge_that_refuses_everything_stops_an_intervention_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(lambda body: "", faults=first("401")) as server:
        llm = ["--judge", "llm", *asking(server.url, tmp_path / "answers.sqlite"), "--features", "0"]
        words = scoring(folder, tmp_path / "s", "--scorers", "intervention", "--dictionary", folder / "sae")
        assert "401" in refused(capsys, *words, *llm)
    assert not (tmp_path / "s").exists()


def test_bad_answers_and_a_budget(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def faults(body: dict[str, Any], _: int) -> str | None:
        said = body["messages"][-1]["content"]
        return ("short", "prose", None, None, None)[len(said) % 5]

    with ScriptedServer(held_out(folder, folder / "explanations"), faults=faults) as server:
        llm = ["--judge", "llm", *asking(server.url, tmp_path / "answers.sqlite"), *SMALL]
        words = scoring(folder, tmp_path / "a", "--scorers", "detection", *llm)
        found = payload(capsys, *words)
        assert found["audit"]["failures"]["malformed"] > 0
        lost = sum(each["failed"] for each in found["totals"])
        text = said(capsys, *words)
        assert f"{lost:,} answers to detection could not be used" in text
        assert "batches lost: " in text
        llm[llm.index("--cache") + 1] = tmp_path / "poor.sqlite"
        before = len(server.log)
        words = scoring(folder, tmp_path / "p", "--scorers", "detection", *llm, "--budget", 0.02)
        poor = payload(capsys, *words)
        assert billed(server.log[before:]) <= poor["spent"]["dollars"] <= 0.02
        assert poor["audit"]["failures"]["budget"] > 0
        assert poor["unscored"] > 0


@pytest.mark.slow
def test_a_killed_command_pays_nothing_twice(folder: Path, tmp_path: Path) -> None:
    grade, given, gate = held_out(folder, folder / "explanations"), threading.Semaphore(9), threading.Event()

    def halting(body: dict[str, Any]) -> str:
        if not gate.is_set() and not given.acquire(blocking=False):
            gate.wait(60)
            raise ConnectionAbortedError
        return grade(body)

    with ScriptedServer(halting) as server:
        words = scoring(folder, tmp_path / "s", "--scorers", "detection", "--judge", "llm", *SMALL, "--json")
        words += asking(server.url, tmp_path / "answers.sqlite")
        command = [sys.executable, "-m", "mechlab", "features", *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(server.log) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        gate.set()
        assert not (tmp_path / "s" / "manifest.json").exists()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answered = [json.dumps(each.body, sort_keys=True) for each in server.answered]
    assert len(answered) == len(set(answered)) == json.loads(done.stdout)["spent"]["answers"]


def test_mistakes_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    line = refused(capsys, *scoring(folder, out, "--scorers", "detection,fuzing"))
    assert "unknown scorer: fuzing" in line
    assert "fuzzing" in line.split("fuzing", 1)[1]
    assert "feature does not exist" in refused(capsys, *scoring(folder, out, "--features", LATENTS))
    assert "nothing is explained here" in refused(capsys, *scoring(folder, out, "--features", "90"))
    explained = folder / "explanations"
    none = ["--index", tmp_path / "none", "--out", out]
    assert "no feature-index here" in refused(capsys, "score", explained, *none)
    assert "no explanations here" in refused(capsys, "score", tmp_path / "none", "--index", folder / "index")
    for name in ("synthetic", "intervention", "rewriting"):
        line = refused(capsys, *scoring(folder, out, "--scorers", name))
        assert line == (
            f"mechlab: no dictionary is named: {name} (pass --dictionary, the one that was indexed)"
        )
        wrong = ["--scorers", name, "--dictionary", folder / "other"]
        assert "not the one that was indexed" in refused(capsys, *scoring(folder, out, *wrong))
    (tmp_path / "wrong.json").write_text("[1]")
    assert "not lists of words" in refused(
        capsys, *scoring(folder, out, "--concepts", tmp_path / "wrong.json")
    )
    elsewhere = ["--index", folder / "elsewhere", "--out", out]
    assert "explanations are of other features" in refused(capsys, "score", explained, *elsewhere)
    few = Explanations(load_explanations(explained).items, (), 50)
    save_explanations(few, tmp_path / "few", config={}, seed=0, inputs={})
    words = ["score", tmp_path / "few", "--index", folder / "index", "--out", out]
    assert "50 features" in refused(capsys, *words)
    every = tuple(np.unique(load_index(folder / "index").text.document).tolist())
    words = ["score", rejudged(folder, tmp_path, documents=every), "--index", folder / "index", "--out", out]
    assert "explainers saw every document" in refused(capsys, *words)
    assert "no language model is named" in refused(capsys, *scoring(folder, out, "--judge", "llm"))
    assert "--judge" in refused(capsys, *scoring(folder, out, "--judge", "rule"))
    assert not out.exists()
