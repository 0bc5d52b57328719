"""``mechlab activations``: on real input, and every mistake one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mechlab.activations.store import open_store
from mechlab.cli.main import main


def call(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["activations", *map(str, words)])
    said = capsys.readouterr()
    assert stop.value.code == code, said.err
    return said.out if code in (0, 1) else said.err


def payload(out: str) -> dict:
    return json.loads(out.strip().splitlines()[-1])


def test_real_stories_harvested_and_verified(
    capsys: pytest.CaptureFixture[str], stories_model: Path, stories_data: Path, tmp_path: Path
) -> None:
    words = [
        "--model", stories_model, "--data", stories_data, "--out", tmp_path / "h", "--tokens", 20_000,
        "--sites", "blocks.1.hook_resid_post, blocks.3.hook_mlp_out, blocks.2.attn.hook_k:1",
        "--storage", "bfloat16",
    ]  # fmt: skip
    made = payload(call(capsys, "harvest", *words, "--json"))
    assert made["rows"] == 20_000
    assert made["storage"] == "bfloat16"
    assert 0 < made["sites"]["blocks.1.hook_resid_post"]["storage_error"] < 1e-4
    store = open_store(tmp_path / "h")
    assert store.activations("blocks.2.attn.hook_k:1").shape == (20_000, 8)
    found = payload(call(capsys, "verify", tmp_path / "h", "--json"))
    assert found["passed"]
    assert found["rows"] > 5000
    text = call(capsys, "harvest", *words)  # finished: nothing to do, the same figures
    assert "20,000 rows" in text
    assert "blocks.3.hook_mlp_out" in text
    store.shards[0].path.unlink()
    said = call(capsys, "verify", tmp_path / "h", code=2)
    assert "shard-00000.safetensors" in said
    assert "--repair makes it again" in said
    said = call(capsys, "verify", tmp_path / "h", "--repair")
    assert "repaired shard-00000.safetensors" in said


def test_selection_and_corrupt_rows(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.jsonl").write_text("{broken\n" * 9 + tiny_corpus.read_text())
    words = [
        "harvest", "--model", tiny_model, "--data", tmp_path / "c.jsonl", "--out", tmp_path / "s",
        "--sites", "hook_embed", "--tokens", 300, "--keep-bos", "--last", 5, "--n-ctx", 8, "--pack",
    ]  # fmt: skip
    assert "pass --skip-corrupt" in call(capsys, *words, code=2)
    text = call(capsys, *words, "--skip-corrupt")
    assert "corrupt rows skipped, the first: " in text
    store = open_store(tmp_path / "s")
    assert store.column("position").unique().tolist() == [0, 1, 2, 3, 4]
    assert 2 in store.column("tokens")


def test_a_store_of_another_model_fails(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    from tiny import save_tiny_model

    words = ["--data", tiny_corpus, "--out", tmp_path / "s", "--sites", "hook_embed", "--tokens", 300]
    call(capsys, "harvest", "--model", tiny_model, *words)
    other = save_tiny_model(tmp_path / "other", "gpt2", seed=1)
    assert "made from another model" in call(capsys, "verify", tmp_path / "s", "--model", other, code=2)
    assert "made from another model" in call(capsys, "harvest", "--model", other, *words, code=2)


def test_values_out_of_tolerance_exit_1(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tiny_corpus: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ["--model", tiny_model, "--data", tiny_corpus, "--out", tmp_path / "s", "--tokens", 300]
    call(capsys, "harvest", *words, "--sites", "blocks.1.hook_resid_post", "--storage", "int8")
    monkeypatch.setattr("mechlab.activations.verify.TOLERANCE", {"int8": 1e-9})
    out = call(capsys, "verify", tmp_path / "s", "--model", tiny_model, code=1)
    assert "BAD blocks.1.hook_resid_post" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["harvest", "--sites", "blocks.0.hook_resid_pots"],
            "no site: blocks.0.hook_resid_pots (did you mean",
        ),
        (["harvest", "--sites", ""], "no site"),
        (["harvest", "--tokens", "0"], "number of tokens must be positive: 0"),
        (["harvest", "--storage", "f32"], "unknown storage format: f32"),
        (["harvest", "--bos", "all"], "unknown BOS policy: all"),
        (["harvest", "--split", "tests"], "unknown split: tests (did you mean test?"),
        (["harvest", "--first", "-1"], "first position is negative: -1"),
        (["harvest", "--first", "200"], "first position is beyond the context: 200"),
        (["harvest", "--last", "1"], "only BOS stands before the last position: 1"),
        (["harvest", "--assistant"], "texts have no assistant turns: fable (its column must hold chats)"),
        (["harvest", "--data", "nowhere.jsonl"], "corpus does not exist: nowhere.jsonl"),
        (["harvest", "--device", "cuda:99"], "device is not there"),
        (["verify", "nowhere"], "no activations here: nowhere"),
        (["verify", "nowhere", "--repair"], "no activations here: nowhere"),
        (["verify", "nowhere", "--batches", "0"], "batches must be positive: 0"),
        (["verify", "a", "b"], "unknown option: b"),
        (["harvst"], "unknown command: activations harvst (did you mean activations harvest"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], line: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    said = call(capsys, *words, code=2)
    assert said.startswith("mechlab: ")
    assert len(said.strip().splitlines()) == 1
    assert line in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_store_made_on_a_gpu_is_verified_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    call(capsys, "harvest", "--tokens", 50_000, "--out", tmp_path / "s")
    assert payload(call(capsys, "verify", tmp_path / "s", "--json"))["passed"]
