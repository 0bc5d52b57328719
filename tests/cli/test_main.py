"""The command line as a user meets it: real processes, exit codes, one line on stderr."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mechlab.cli.main import main


def mechlab(*words: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mechlab", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, check=False
    )


def small(model: Path, data: Path, out: Path) -> list[str]:
    sizes = "--tokens 4000 --train-tokens 20000 --heldout-tokens 1000 --d-sae 32 --k 4 --task none"
    return ["run", "--model", str(model), "--data", str(data), "--out", str(out), *sizes.split()]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "done"
    done = mechlab(*small(tiny_model, tiny_corpus, out), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads((out / "summary.json").read_text())
    return out


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run in this process; expect exit 2 and exactly one line on stderr; return it."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_help_lists_commands_and_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    shown = mechlab("--help")
    assert shown.returncode == 0
    commands = re.findall(r"^  mechlab (\S+(?: \S+)?)  ", shown.stdout, flags=re.MULTILINE)
    assert {"run", "model check-fable", "model train-fable", "model list", "model info"} <= set(commands)
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            main([*command.split(), "--help"])
        assert stopped.value.code == 0
        said = capsys.readouterr().out
        assert f"Example: mechlab {command}" in said
        assert "--json" in said


def test_group_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ((["model"], "mechlab model info"), (["--version"], "mechlab 0.")):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rnu"], "unknown command: rnu (did you mean run?)"),
        (["model", "inof"], "unknown command: model inof (did you mean model info"),
        (["run", "--modle", "x"], "unknown option: --modle (did you mean --model"),
        (["run", "--tokens", "many"], "option --tokens is wrong: invalid literal"),
        (["run", "--tokens"], "Missing value for argument '--tokens'"),
        (["run", "--device", "cuda:99"], "device is not there: cuda:99 (use --device cpu)"),
        (["run", "--model", "/no/such/model"], "model directory does not exist: /no/such/model"),
        (["run", "--config", "/no/such/file.yaml"], "config file cannot be read: /no/such/file.yaml"),
        (["sae", "eval", "--seed", "-1"], "seed is out of range: -1 (between 0 and 4294967295)"),
        (["sae", "compare", "--seed", "4294967296"], "seed is out of range: 4294967296"),
    ],
)
def test_mistakes_before_any_work(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, *words).startswith(f"mechlab: {line}")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            ["--site", "blocks.1.hook_resid_pots"],
            "has no site: blocks.1.hook_resid_pots (did you mean blocks.1.hook_resid_post",
        ),
        (["--data", "/no/such/corpus.txt"], "corpus does not exist: /no/such/corpus.txt"),
        (["--task", "iio"], "task does not exist: iio (did you mean ioi"),
        (["--task", "ioi"], "task cannot be expressed by this tokenizer: ioi"),
        (["--k", "33"], "k is out of range: 33"),
        (["--tokens", "0"], "tokens must be positive: 0"),
        (["--heldout-tokens", "-1"], "heldout_tokens must be positive: -1"),
        (["--train-tokens", "0"], "train_tokens must be positive: 0"),
        (["--n-ctx", "0"], "context length is out of range: 0"),
        (["--n-ctx", "999"], "context length is out of range: 999"),
        (["--column", "txt"], "corpus has no text column 'txt'"),
        (["--dtype", "float8"], "unknown dtype: float8"),
        (["--seed", "-1"], "seed is out of range: -1"),
        (["--seed", "100000000000000000"], "seed is out of range"),
        (["--data", ""], "corpus has no name"),
        (["--d-sae", "100000000000"], "d_sae is out of range: 100000000000"),
        (["--n-ctx", "3"], "contexts are too short to explain: 3"),
        (["--tokens", "100"], "tokens are fewer than one training batch: 100"),
    ],
)
def test_mistakes_in_a_run(
    changes: list[str],
    line: str,
    tiny_model: Path,
    tiny_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert line in fails(capsys, *small(tiny_model, tiny_corpus, tmp_path / "r"), *changes)
    # Found before any work: no stage was announced.
    assert not (tmp_path / "r").exists()


def test_a_model_of_ones_own_needs_a_corpus(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs a corpus: --data is missing" in fails(capsys, "run", "--model", tiny_model)


def test_a_short_corpus(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("the cat sat")
    assert "shorter than one context (32 tokens)" in fails(
        capsys, *small(tiny_model, tmp_path / "a.txt", tmp_path / "r")
    )


def test_config_file_and_its_mistakes(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("task: none\ntoknes: 5\n")
    assert "unknown setting in" in (line := fails(capsys, "run", "--config", file))
    assert "toknes (did you mean tokens" in line
    file.write_text("tokens: lots\n")
    assert "setting tokens in" in fails(capsys, "run", "--config", file)
    file.write_text("tokens: [1\n")
    assert "not YAML" in fails(capsys, "run", "--config", file)
    file.write_text("- tokens\n")
    assert "must hold keys and values" in fails(capsys, "run", "--config", file)
    file.write_text(f"model: {tiny_model}\ndata: {tiny_corpus}\ntask: none\nk: 99\nd_sae: 32\n")
    # The flag wins over the file, and the file over the default.
    assert "k is out of range: 77" in fails(
        capsys, "run", "--config", file, "--k", "77", "--out", tmp_path / "r"
    )


def test_output_directory_of_another_kind_model_or_config(
    finished: Path,
    tiny_model: Path,
    tiny_corpus: Path,
    stories_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = small(tiny_model, tiny_corpus, finished)
    assert "holds another kind of artifact: dictionary" in fails(
        capsys, *small(tiny_model, tiny_corpus, finished / "sae")
    )
    assert "holds the run made from another model" in fails(capsys, *words, "--model", stories_model)
    assert "made with another" in fails(capsys, *words, "--seed", "5")


def test_a_second_call_changes_nothing_and_is_quick(
    finished: Path, tiny_model: Path, tiny_corpus: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    again = mechlab(*small(tiny_model, tiny_corpus, finished))
    assert again.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before
    assert "fraction of variance explained" in again.stdout
    assert again.stdout.rstrip().endswith(f"page: {finished / 'dashboard' / 'index.html'}")


def test_summary_has_the_promised_keys(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) == {"model", "site", "tokens", "sae", "circuit", "features", "seconds", "dashboard"}
    assert {"d_sae", "l0", "fve", "ce_recovered", "dead"} <= set(summary["sae"])
    assert {"explained", "detection_mean", "detection_null"} <= set(summary["features"])
    assert summary["circuit"] is None
    assert summary["tokens"] == 4000
    assert 0 < summary["sae"]["l0"] <= 4
    assert all(seconds >= 0 for seconds in summary["seconds"].values())


def test_splits_are_kept_apart(finished: Path) -> None:
    from mechlab.activations.store import open_store
    from mechlab.data.corpus import split_of

    for name, split in (("activations", "train"), ("heldout", "test")):
        documents = open_store(finished / name).column("document").unique().tolist()
        assert {split_of(document) for document in documents} == {split}


@pytest.mark.slow
def test_overwrite_remakes_the_run(
    finished: Path, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    words = small(tiny_model, tiny_corpus, out)
    assert mechlab(*words).returncode == 0
    done = mechlab(*words, "--seed", "3", "--overwrite", "--json")
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(done.stdout)["sae"]["fve"]
        != json.loads((finished / "summary.json").read_text())["sae"]["fve"]
    )


@pytest.mark.slow
def test_a_killed_overwrite_is_not_mistaken_for_the_old_run(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    words = small(tiny_model, tiny_corpus, tmp_path / "r")
    assert mechlab(*words).returncode == 0
    other = [*words, "--seed", "7", "--overwrite"]
    child = subprocess.Popen([sys.executable, "-m", "mechlab", *other], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("mechlab: train "):  # the old store is gone by now
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    again = mechlab(*words)
    assert again.returncode == 2
    assert "another seed: 7, not 0" in again.stderr
    assert not (tmp_path / "r" / "summary.json").exists()
    done = mechlab(*other)
    assert done.returncode == 0, done.stderr


def numbers(summary: dict) -> dict:
    return {key: value for key, value in summary.items() if key not in ("seconds", "dashboard")}


@pytest.mark.chaos
def test_killed_runs_end_with_the_same_numbers(
    finished: Path, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    words = small(tiny_model, tiny_corpus, tmp_path / "r")
    for delay in (2.5, 3.5, 4.0, 4.5, 5.5):
        child = subprocess.Popen([sys.executable, "-m", "mechlab", *words], stderr=subprocess.DEVNULL)
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = mechlab(*words, "--json")
    assert done.returncode == 0, done.stderr
    want = numbers(json.loads((finished / "summary.json").read_text()))
    assert numbers(json.loads(done.stdout)) == want


def test_an_interrupt_inside_compiled_code_is_one_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mechlab.cli import model

    def compiled(*_: object) -> None:
        raise SystemError("CPUDispatcher(<function f>) returned a result with an exception set")

    monkeypatch.setattr(model, "list_models", compiled)
    with pytest.raises(SystemExit) as stopped:
        main(["model", "list"])
    assert stopped.value.code == 130
    assert "to go on: mechlab model list" in capsys.readouterr().err


@pytest.mark.slow
def test_interrupt_prints_how_to_go_on(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    words = [*small(tiny_model, tiny_corpus, tmp_path / "r"), "--train-tokens", "50000000"]
    child = subprocess.Popen([sys.executable, "-m", "mechlab", *words], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("mechlab: train "):
            break
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    assert child.wait() == 130
    assert "Traceback" not in rest
    assert f"to go on: mechlab {' '.join(words)}" in rest


@pytest.mark.slow
def test_full_disk_is_one_line(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        done = mechlab(*small(tiny_model, tiny_corpus, disk / "r"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.returncode == 2
    assert "mechlab: no room on disk" in done.stderr.splitlines()[-1]


def test_model_info_and_list_as_json(tiny_model: Path) -> None:
    info = json.loads(mechlab("model", "info", "--model", tiny_model, "--json").stdout)
    assert info["layers"] == 2
    assert info["sites"]["blocks.1.hook_resid_post"] == 16
    assert len(info["fingerprint"]) == 64
    assert "fable" in json.loads(mechlab("model", "list", "--json").stdout)["models"]


def test_a_closed_pipe_is_not_an_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m mechlab --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_an_undertrained_fable_is_trained_saved_and_fails_its_check(tmp_path: Path) -> None:
    out = tmp_path / "fable"
    trained = mechlab("model", "train-fable", "--out", out, "--tokens", 20000, "--json")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["steps"] >= 4
    assert "| ioi |" in (out / "README.md").read_text()
    checked = mechlab("model", "check-fable", "--model", out, "--n", 20, "--json")
    assert checked.returncode == 1
    result = json.loads(checked.stdout)
    assert result["passed"] is False
    assert result["checks"]["ioi_top_1"]["value"] < 0.9
    again = mechlab("model", "train-fable", "--out", out)
    assert again.returncode == 2
    assert "output directory is not empty" in again.stderr


def test_the_bundled_fable_passes_its_check() -> None:
    checked = mechlab("model", "check-fable", "--n", 50, "--json")
    assert checked.returncode == 0, checked.stdout
    assert all(each["passed"] for each in json.loads(checked.stdout)["checks"].values())
