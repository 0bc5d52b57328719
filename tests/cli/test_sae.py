"""``mechlab sae …`` as a user meets it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mechlab.cli.main import main
from mechlab.sae.dictionary import load_sae

SITE = "blocks.0.hook_resid_post"
SIZES = "--d-sae 48 --k 4 --tokens 30000 --batch-size 256"


def arguments(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    given = ["--model", str(model), "--data", str(data), "--out", str(out), "--site", SITE]
    return ["sae", "train", *given, *SIZES.split(), *more]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Expect exit 2 and one line on stderr; return it."""
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if not line.startswith("mechlab: train")]
    assert len(said) == 1, lines
    return said[0]


def test_train_eval_compare(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        words = arguments(tiny_model, tiny_corpus, tmp_path / name, "--seed", str(seed), "--json")
        assert run(*words) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["arch"] == "topk"
    assert said["inputs"] == said["outputs"] == [SITE]
    made = load_sae(tmp_path / "b")
    assert said["fve"] == made.artifact.manifest.facts["fve"]
    where = ["--model", tiny_model, "--data", tiny_corpus]
    assert run("sae", "eval", tmp_path / "a", *where, "--tokens", "2000", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["l0"]["value"] == pytest.approx(4, abs=0.1)
    assert sum(found["decoder"]["cosine_histogram"]["counts"]) == 48
    assert run("sae", "eval", tmp_path / "a", *where, "--tokens", "2000") == 0
    shown = capsys.readouterr().out
    assert "model fve_per_token" in shown
    assert run("sae", "compare", tmp_path / "a", tmp_path / "a", "--json") == 0
    same = json.loads(capsys.readouterr().out)
    assert same["cosine"]["value"] == pytest.approx(1, abs=1e-5)
    assert same["cosine"]["null"]["value"] < 0.8
    assert run("sae", "compare", tmp_path / "a", tmp_path / "b", "--json") == 0
    other = json.loads(capsys.readouterr().out)
    assert other["cosine"]["value"] < 0.99


def test_the_architecture_decides_the_flags(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sae", "train", "--arch", "relu", "--help") == 0
    shown = capsys.readouterr().out
    assert "--target-l0" in shown
    assert "--k INT" not in shown
    words = arguments(tiny_model, tiny_corpus, tmp_path / "r")
    line = refused(capsys, *words, "--arch=relu")
    assert "unknown option: --k" in line


def test_a_file_may_say_the_architecture(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("arch: gated\ntarget_l0: 5\nd_sae: 32\n")
    given = ["--model", str(tiny_model), "--data", str(tiny_corpus), "--site", SITE, "--tokens", "2000"]
    words = [
        *given,
        "--batch-size",
        "256",
        "--out",
        str(tmp_path / "g"),
        "--config",
        str(tmp_path / "c.yaml"),
    ]
    assert run("sae", "train", *words, "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["arch"], said["d_sae"]) == ("gated", 32)


def test_several_on_one_pass(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("narrow: {k: 2}\nwide: {d_sae: 96}\ngate: {arch: gated, target_l0: 5}\n")
    words = arguments(tiny_model, tiny_corpus, tmp_path / "all", "--several", str(plan), "--json")
    assert run(*words) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])["dictionaries"]
    assert [(each["arch"], each["d_sae"]) for each in made] == [("topk", 48), ("topk", 96), ("gated", 48)]
    alone = arguments(tiny_model, tiny_corpus, tmp_path / "alone")
    alone[alone.index("--k") + 1] = "2"
    assert run(*alone) == 0
    one, other = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("alone", "all/narrow"))
    assert one == other


def test_fine_tuning_inside_the_model(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments(tiny_model, tiny_corpus, tmp_path / "first")) == 0
    more = ["--start", str(tmp_path / "first"), "--n-ctx", "32", "--json"]
    for objective in ("kl+mse", "mse"):
        words = arguments(tiny_model, tiny_corpus, tmp_path / objective, "--objective", objective, *more)
        words[words.index("--tokens") + 1] = "2000"
        assert run(*words) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        first = json.loads((tmp_path / "first" / "metrics.jsonl").read_text().splitlines()[0])
        start = json.loads((tmp_path / objective / "metrics.jsonl").read_text().splitlines()[0])
        assert start["fve"] > first["fve"] + 0.1  # it begins where the first training ended
        assert ("kl" in said) == (objective == "kl+mse")
    for change, name in ((("--site", "blocks.1.hook_resid_post"), "site"), (("--arch", "abstopk"), "arch")):
        words = arguments(tiny_model, tiny_corpus, tmp_path / "other", *more, *change)
        assert f"dictionary to start from has another {name}" in refused(capsys, *words)
    words = arguments(tiny_model, tiny_corpus, tmp_path / "no", "--objective", "kl", "--several", "x.yaml")
    (tmp_path / "x.yaml").write_text("a: {k: 2}")
    words[words.index("x.yaml")] = str(tmp_path / "x.yaml")
    assert "leave out --several" in refused(capsys, *words)


def test_cross_layer_transcoders_alone_and_among_others(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = "blocks.0.mlp.hook_in,blocks.1.mlp.hook_in", "blocks.0.hook_mlp_out,blocks.1.hook_mlp_out"
    words = arguments(tiny_model, tiny_corpus, tmp_path / "clt", "--arch", "clt", "--target", sites[1])
    words[words.index("--site") + 1], words[words.index("--tokens") + 1] = sites[0], "1000"
    assert run(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["arch"] == "clt"
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"one: {{arch: clt, site: '{sites[0]}', target: '{sites[1]}'}}\ntwo: {{}}\n")
    words = arguments(tiny_model, tiny_corpus, tmp_path / "all", "--several", str(plan), "--json")
    words[words.index("--tokens") + 1] = "1000"
    assert run(*words) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])["dictionaries"]
    assert [each["arch"] for each in made] == ["clt", "topk"]
    words = arguments(tiny_model, tiny_corpus, tmp_path / "no", "--arch", "clt")
    assert "needs an output for each input: 1 inputs, 0 outputs" in refused(capsys, *words)
    del words[words.index("--site") : words.index("--site") + 2]
    assert "needs an output for each input: 1 inputs, 0 outputs" in refused(capsys, *words)


def test_tensorboard_is_asked_for_by_name(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tiny_model, tiny_corpus, tmp_path / "t", "--tensorboard", str(tmp_path / "events"))
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        assert "tensorboard is not installed" in refused(capsys, *words)
        return
    assert run(*words) == 0
    assert list((tmp_path / "events").rglob("events*"))


def test_mistakes(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tiny_model, tiny_corpus, tmp_path / "m")
    assert "unknown dictionary architecture: topkk" in refused(capsys, *words, "--arch", "topkk")
    assert "k is out of range: 99 (between 1 and d_sae = 48)" in refused(capsys, *words, "--k", "99")
    assert "--arch needs a name" in refused(capsys, *words, "--arch")
    assert "no activations here" in refused(capsys, *words, "--store", tmp_path / "nothing")
    assert "blocks.9" in refused(capsys, *words, "--site", "blocks.9.hook_resid_post")
    assert "unknown device: nonsense" in refused(capsys, *words, "--device", "nonsense")
    assert "seed is out of range" in refused(capsys, *words, "--seed", "9" * 30)
    (tmp_path / "plan.yaml").write_text("one: {kk: 3}\n")
    line = refused(capsys, *words, "--several", tmp_path / "plan.yaml")
    assert "unknown setting of one in" in line
    for name in ("/elsewhere", "a/b", ".."):
        (tmp_path / "plan.yaml").write_text(f"{name}: {{k: 3}}\n")
        line = refused(capsys, *words, "--several", tmp_path / "plan.yaml")
        assert f"no name of a directory: {name}" in line
    where = ["--model", tiny_model, "--data", tiny_corpus]
    assert "no dictionary here" in refused(capsys, "sae", "eval", tmp_path / "none", *where)
    assert run(*words) == 0
    capsys.readouterr()
    line = refused(capsys, "sae", "eval", tmp_path / "m", *where, "--metrics", "model,probng")
    assert "unknown metric: probng" in line
    assert "probing" in line
    line = refused(capsys, "sae", "eval", tmp_path / "m", "--metrics", "model")
    assert "trained on another model" in line


@pytest.mark.chaos
@pytest.mark.parametrize("round_", range(3))
def test_killed_training_goes_on_to_the_same_losses(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, round_: int
) -> None:
    def command(out: Path) -> list[str]:
        words = arguments(tiny_model, tiny_corpus, out)
        words[words.index("--tokens") + 1] = "200000"
        return [sys.executable, "-m", "mechlab", *words]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    draw, killed = random.Random(round_), 0
    while True:
        process = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.DEVNULL)
        checkpoint = tmp_path / "killed" / ".partial" / "checkpoint.safetensors"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and killed < 3:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                time.sleep(draw.random() * 0.2)
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGKILL)
                    killed += 1
                break
            time.sleep(0.01)
        if process.wait() == 0:
            break
    assert killed >= 1
    for name in ("metrics.jsonl", "sae_weights.safetensors", "cfg.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
