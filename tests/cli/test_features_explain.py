"""``mechlab features explain`` as a user meets it: rules, a scripted server, functions, the subject."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.features_made import LATENTS, asking, made, payload, refused, run, said
from features.llm_questions import billed
from mechlab.artifacts import open_artifact
from mechlab.features.building import load_index
from mechlab.features.explanations import load_explanations
from mechlab.features.llm import sending
from mechlab.features.llm.server import ScriptedServer, first
from mechlab.features.rules import parse_rule
from mechlab.features.split import Split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.getbasetemp())


def answer(body: dict[str, Any]) -> str:
    """An explanation of its own for every prompt."""
    return json.dumps({"explanation": f"words like number {len(body['messages'][-1]['content'])}"})


def test_rules_are_learnt_from_one_half(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", folder / "index", "--features", "0-11", "--out", tmp_path / "e"]
    text = said(capsys, *words)
    lines = text.splitlines()
    assert lines[0].startswith(f"12 features explained of {len(load_index(folder / 'index').live)} live ones")
    assert lines[-1] == "  … 2 more"
    assert max(map(len, lines[1:])) <= 150
    found, index = load_explanations(tmp_path / "e"), load_index(folder / "index")
    assert any(len(each.text) > 150 for each in found.items)
    assert all(parse_rule(each.text) == each.rule for each in found.items)
    assert [each.feature for each in found.items] == list(range(12))
    documents = np.array(found.documents)
    assert Split(0.5, 0).explains(documents).all()
    assert 0 < len(documents) < len(np.unique(index.text.document))
    again = payload(capsys, *words)
    assert (again["explained"], again["documents_seen"]) == (12, len(documents))
    assert "another split" in refused(capsys, *words, "--seed", 1)


def test_words_that_features_promote_and_concepts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "concepts.json").write_text(json.dumps({"speech": [" said", " asked", " cried"]}))
    words = ["explain", folder / "index", "--features", "0-2", "--concepts", tmp_path / "concepts.json"]
    found = payload(capsys, *words, "--dictionary", folder / "sae", "--out", tmp_path / "e")
    assert found["explained"] == 3
    manifest = open_artifact(tmp_path / "e").manifest
    assert manifest.config["concepts"] == {"speech": [" asked", " cried", " said"]}
    assert set(manifest.inputs) == {"index", "features", "dictionary"}


def test_a_language_model_is_paid_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(answer) as server:
        words = ["explain", folder / "index", "--explainer", "llm", "--features", "0-7"]
        words += asking(server.url, tmp_path / "answers.sqlite")
        found = payload(capsys, *words, "--out", tmp_path / "a")
        assert (found["explained"], found["failed"]) == (8, 0)
        assert len(server.requests) == found["spent"]["answers"] == 8
        assert found["spent"]["dollars"] == pytest.approx(billed(server.log))
        again = payload(capsys, *words, "--out", tmp_path / "b")
        assert len(server.requests) == 8
        assert again["spent"] == found["spent"]
        one, two = load_explanations(tmp_path / "a"), load_explanations(tmp_path / "b")
        assert one == two
        assert {each.explainer for each in one.items} == {"llm:scripted:max-activating"}
        text = said(capsys, *words, "--out", tmp_path / "a")
        assert "8 answers in" in text
        assert "$0.0" in text
        said(capsys, *words, "--prompt", "contrastive", "--out", tmp_path / "c")
        assert len(server.requests) == 16


def test_a_dry_run_sends_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(answer) as server:
        words = ["explain", folder / "index", "--explainer", "llm", "--features", "0-4", "--dry-run"]
        words += [*asking(server.url, tmp_path / "answers.sqlite"), "--out", tmp_path / "e"]
        plan = payload(capsys, *words)["dry_run"]
        assert plan["requests"] == 5
        assert 0 < plan["dollars"] < plan["most"]
        assert "dry run: 5 requests not yet answered" in said(capsys, *words)
        assert not server.log
        assert not list(tmp_path.iterdir())
        assert "nothing would be asked" in refused(capsys, "explain", folder / "index", "--dry-run")
        paid = payload(capsys, *[word for word in words if word != "--dry-run"])["spent"]["dollars"]
        assert paid <= plan["most"]
        assert payload(capsys, *words)["dry_run"]["requests"] == 0


def test_a_budget_holds_and_what_was_paid_is_not_lost(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(answer) as server:
        words = ["explain", folder / "index", "--explainer", "llm", "--features", "0-15"]
        words += [*asking(server.url, tmp_path / "answers.sqlite"), "--out", tmp_path / "e"]
        found = payload(capsys, *words, "--budget", 0.02)
        assert billed(server.log) <= found["spent"]["dollars"] <= 0.02
        assert 0 < found["explained"] < 16
        assert found["reasons"] == {"budget": 16 - found["explained"]}
        assert "without an explanation: budget" in said(capsys, *words, "--budget", 0.02)
        assert "another budget" in refused(capsys, *words)
        more = payload(capsys, *words, "--overwrite")
        assert (more["explained"], len(server.requests)) == (16, 16)


def test_answers_without_use_are_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def faults(body: dict[str, Any], attempt: int) -> str | None:
        length = len(body["messages"][-1]["content"])
        return (None, "prose", "refusal")[length % 3]

    with ScriptedServer(answer, faults=faults) as server:
        words = ["explain", folder / "index", "--explainer", "llm", "--features", "0-23"]
        words += [*asking(server.url, tmp_path / "answers.sqlite"), "--out", tmp_path / "e"]
        found = payload(capsys, *words)
        given = {str(each.fault): 0 for each in server.log}
        for body in {json.dumps(each.body): each for each in server.log}.values():
            given[str(body.fault)] += 1
    assert found["explained"] == given["None"] > 0
    assert found["reasons"] == {"malformed": given["prose"], "refused": given["refusal"]}
    text = said(capsys, *words)
    assert f"{given['prose']} without an explanation: malformed" in text
    assert f"{given['refusal']} without an explanation: refused" in text


def test_no_server_is_one_line_after_those_of_waiting(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "LONGEST_WAIT", 0.01)
    words = ["explain", folder / "index", "--explainer", "llm", "--features", "0-1", "--out", tmp_path / "e"]
    assert run(*words, *asking("http://127.0.0.1:9/v1", tmp_path / "answers.sqlite")) == 2
    *waits, line = capsys.readouterr().err.splitlines()
    assert len(waits) == 5
    assert all("no connection to http://127.0.0.1:9/v1, trying again" in each for each in waits)
    assert "no language model can be reached: http://127.0.0.1:9/v1" in line
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("fault", ["401", "404"])
def test_a_server_that_refuses_everything_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    words = ["explain", folder / "index", "--explainer", "llm", "--features", "0-1", "--out", tmp_path / "e"]
    with ScriptedServer(answer, faults=first(fault)) as server:
        assert fault in refused(capsys, *words, *asking(server.url, tmp_path / "answers.sqlite"))
    assert not (tmp_path / "e").exists()


def test_a_model_on_this_machine(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", folder / "index", "--explainer", "llm", "--provider", "local", "--llm", "fable"]
    words += ["--cache", tmp_path / "answers.sqlite", "--features", "0-1", "--out", tmp_path / "e"]
    found = payload(capsys, *words)
    assert (found["explained"], found["failed"]) == (0, 2)
    assert "tokens is too long for fable" in said(capsys, *words)


def test_a_killed_command_pays_nothing_twice(folder: Path, tmp_path: Path) -> None:
    """The server answers no further than the kill; then the same command again."""
    count, given, gate = 24, threading.Semaphore(9), threading.Event()

    def halting(body: dict[str, Any]) -> str:
        if not gate.is_set() and not given.acquire(blocking=False):
            gate.wait(60)
            raise ConnectionAbortedError
        return answer(body)

    with ScriptedServer(halting) as server:
        words = ["explain", folder / "index", "--explainer", "llm", "--features", f"0-{count - 1}"]
        words += [*asking(server.url, tmp_path / "answers.sqlite"), "--out", tmp_path / "e", "--json"]
        command = [sys.executable, "-m", "mechlab", "features", *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(server.log) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        gate.set()
        assert not (tmp_path / "e" / "manifest.json").exists()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["explained"], found["spent"]["answers"]) == (count, count)
    assert len(server.answered) == count


def test_an_interrupt_prints_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    words = ["features", "explain", str(folder / "index"), "--out", str(tmp_path / "e")]
    child = subprocess.Popen([sys.executable, "-m", "mechlab", *words], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("mechlab: explain "):
            break
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    assert child.wait() == 130, rest
    assert "Traceback" not in rest
    assert f"to go on: mechlab {' '.join(words)}" in rest
    assert not (tmp_path / "e" / "manifest.json").exists()


def test_the_subject_speaks_for_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", folder / "index", "--explainer", "self", "--features", "3,5", "--out", tmp_path / "e"]
    assert "no dictionary is named" in refused(capsys, *words)
    assert payload(capsys, *words, "--dictionary", folder / "sae")["explained"] == 2
    found = load_explanations(tmp_path / "e")
    assert found.documents == ()
    assert [each.explainer for each in found.items] == ["self", "self"]
    other = [*words[:-1], tmp_path / "o", "--dictionary", folder / "other"]
    assert "not the one that was indexed" in refused(capsys, *other)


def test_functions_are_explained_by_ngrams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked.py").write_text(
        "ANIMALS = {'dog', 'cat', 'bird', 'fox', 'horse', 'bear', 'rabbit', 'wolf'}\n"
        "def animals(text):\n    return float(sum(word in ANIMALS for word in text.split()))\n"
        "def nothing(text):\n    return 0.0\n"
        "def each(tokens):\n    return [float(token.strip() in ANIMALS) for token in tokens]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    functions = "asked:animals,asked:nothing"
    assert run("index", "--function", functions, "--mode", "window", "--tokens", 6000, "--out", "f") == 0
    found = payload(capsys, "explain", "f", "--explainer", "ngrams", "--out", "e")
    assert (found["explained"], found["failed"]) == (1, 1)
    [explanation] = load_explanations(tmp_path / "e").items
    assert (explanation.feature, explanation.explainer) == (0, "ngrams")
    assert "' dog'" in explanation.text
    assert explanation.about["synthetic"]["value"] > 0.5
    one = ["explain", "f", "--explainer", "ngrams", "--function", "asked:nothing", "--out", "one"]
    assert payload(capsys, *one)["explained"] == 0
    assert "function is not in the index" in refused(capsys, *one[:-3], "asked:each", "--out", "two")
    assert "cannot import" in refused(capsys, *one[:-3], "asked:missing", "--out", "two")
    scored = payload(capsys, "score", "e", "--index", "f", "--scorers", "detection", "--out", "s")
    assert scored["totals"][0]["mean"]["value"] > 0.65
    assert run("index", "--function", "asked:each", "--mode", "tokens", "--tokens", 3000, "--out", "t") == 0
    assert payload(capsys, "explain", "t", "--explainer", "ngrams", "--out", "te")["explained"] == 1


def test_mistakes_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path / "e"]
    index = folder / "index"
    assert "no feature-index here" in refused(capsys, "explain", tmp_path / "none", *out)
    assert "feature does not exist" in refused(capsys, "explain", index, "--features", LATENTS, *out)
    assert "cannot be read" in refused(capsys, "explain", index, "--features", "a-b", *out)
    assert "share is out of range" in refused(capsys, "explain", index, "--share", 1, *out)
    assert "--explainer" in refused(capsys, "explain", index, "--explainer", "rule", *out)
    assert "functions of text" in refused(capsys, "explain", index, "--explainer", "ngrams", *out)
    concepts = ["--concepts", tmp_path / "none.json"]
    assert "concepts cannot be read" in refused(capsys, "explain", index, *concepts, *out)
    (tmp_path / "wrong.json").write_text('{"colour": " red"}')
    concepts = ["--concepts", tmp_path / "wrong.json"]
    assert "concepts are not lists" in refused(capsys, "explain", index, *concepts, *out)
    asked = ["explain", index, "--explainer", "llm", *out]
    assert "no language model is named" in refused(capsys, *asked)
    assert "--concepts is for explainer rules" in refused(capsys, *asked, *concepts[:1], folder / "x")
    named = [*asked, "--llm", "m", "--endpoint", "http://127.0.0.1:9/v1", "--cache", tmp_path / "c"]
    assert "budget without prices" in refused(capsys, *named, "--budget", 1)
    assert "one price is missing" in refused(capsys, *named, "--price-in", 1)
    assert "amount of dollars" in refused(capsys, *named, "--price-in", -1, "--price-out", 1)
    prices = ["--price-in", 1, "--price-out", 1]
    assert "-1" in refused(capsys, *named, *prices, "--budget", -1)
    assert "concurrency" in refused(capsys, *named, "--concurrency", 0)
    assert not (tmp_path / "e").exists()
