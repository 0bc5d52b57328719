"""``mechlab bench harvest``: its mistakes; its figures are tested beside the benchmark."""

from __future__ import annotations

import json

import pytest

from mechlab.cli.main import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--repeats", "0"], "repeats must be positive"),
        (["--seconds", "-1"], "seconds must be positive"),
        (["--repeat", "3"], "--repeats"),
        (["--device", "cuda:99"], "device is not there"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "harvest", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_tiny_run_ends_in_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model fable --repeats 1 --seconds 0.01 --batch 2 --n-ctx 16 --read-bytes 100000"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "harvest", *words.split(), "--memory-rows", "300", "--device", "cpu", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert stop.value.code == (0 if found["met"] else 1)
    assert set(found) == {"environment", "config", "machine", "models", "reading", "memory", "met"}
