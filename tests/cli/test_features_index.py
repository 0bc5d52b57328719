"""``mechlab features index`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mechlab.activations.harvest import harvest
from mechlab.cli.main import main
from mechlab.data.corpus import open_corpus
from mechlab.features.building import load_index
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import train_sae
from mechlab.sae.topk import TopKConfig

SITE = "blocks.0.hook_resid_post"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["features", "index", *(str(word) for word in words)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def payload(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("mechlab: index")]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_dictionary_from_its_store_and_from_its_model(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject, corpus = load_model(tiny_model), open_corpus(tiny_corpus)
    store = harvest(subject, corpus, SITE, tmp_path / "store", tokens=2000)
    train_sae(store, tmp_path / "sae", TopKConfig(site=SITE, d_sae=48, k=4, tokens=512, batch_size=256))
    assert run(tmp_path / "sae", "--store", tmp_path / "store", "--out", tmp_path / "a", "--json") == 0
    said = payload(capsys)
    assert (said["features"], said["rows"], said["kind"]) == (48, 2000, "dictionary")
    assert said["live"] == len(load_index(tmp_path / "a").live)
    assert said["live"] + said["dead"] == 48  # type: ignore[operator]
    where = ["--model", tiny_model, "--data", tiny_corpus, "--tokens", 2000]
    assert run(tmp_path / "sae", *where, "--out", tmp_path / "b") == 0
    seen = capsys.readouterr()
    assert f"48 features on 2,000 tokens of {said['documents']} documents" in seen.out
    assert "mechlab: index 2,000/2,000" in seen.err
    a, b = load_index(tmp_path / "a"), load_index(tmp_path / "b")
    assert np.array_equal(a.row, b.row)
    assert np.array_equal(a.value, b.value)


def test_other_kinds_of_features(
    tiny_model: Path,
    tiny_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = ["--model", tiny_model, "--data", tiny_corpus, "--tokens", 500, "--json"]
    assert run("--site", "blocks.1.mlp.hook_post", "--signs", *where, "--out", tmp_path / "neurons") == 0
    assert payload(capsys)["features"] == 2 * 64
    assert run("--heads", *where, "--out", tmp_path / "heads") == 0
    assert payload(capsys)["features"] == 8
    vectors = torch.eye(16)[:3]
    np.save(tmp_path / "v.npy", vectors.numpy())
    save_file({"vectors": vectors, "bias": torch.full((3,), 100.0)}, tmp_path / "v.safetensors")
    at = ["--site", SITE, *where]
    assert run("--vectors", tmp_path / "v.npy", *at, "--out", tmp_path / "vectors") == 0
    assert 0.2 < payload(capsys)["l0"] / 3 < 0.8  # type: ignore[operator]
    assert run("--vectors", tmp_path / "v.safetensors", *at, "--out", tmp_path / "biased") == 0
    assert payload(capsys)["l0"] == 3
    (tmp_path / "my_features.py").write_text("def cats(text):\n    return text.count('cat')\n")
    monkeypatch.chdir(tmp_path)
    assert run("--function", "my_features:cats", "--mode", "window", "--window", 1, *where, "--out", "f") == 0
    assert payload(capsys)["kind"] == "function"
    index = load_index(tmp_path / "f")
    texts = [index.text.vocabulary[token] for token in index.text.tokens.tolist()]
    assert index.dense(0).tolist() == [float("cat" in text) for text in texts]
    assert run("--function", "my_features.py:cats", *where, "--out", tmp_path / "g") == 0


def test_what_is_refused(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--model", tiny_model, "--data", tiny_corpus, "--out", tmp_path / "i"]
    assert "name one thing to index: none" in refused(capsys, *where)
    assert "a dictionary, --heads" in refused(capsys, tmp_path, "--heads", *where)
    assert "pass --site" in refused(capsys, "--vectors", tmp_path / "v.npy", *where)
    line = refused(capsys, "--vectors", tmp_path / "v.npy", "--site", SITE, *where)
    assert "vectors cannot be read" in line
    assert "hook_resid_post" in refused(capsys, "--site", "blocks.0.hook_resid_pots", *where)
    assert "module:name" in refused(capsys, "--function", "len", *where)
    assert "ModuleNotFoundError" in refused(capsys, "--function", "no_such_module:f", *where)
    assert "this is no function" in refused(capsys, "--function", "string:digits", *where)
    assert "no dictionary here" in refused(capsys, tmp_path / "none", *where)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--heads --signs", "--signs has no effect with --heads"),
        ("--function a.py:f --signs", "--signs has no effect with --function"),
        ("--function a.py:f --share 0.1", "--share has no effect with --function"),
        ("runs/sae --threshold 0.5", "--threshold has no effect with a dictionary"),
        ("--site blocks.0.mlp.hook_post --window 3", "--window has no effect with --site"),
        ("runs/sae --store runs/h --tokens 500", "--tokens has no effect with --store"),
        ("runs/sae --store runs/h --tokens 100000", "--tokens has no effect with --store"),
        ("runs/sae --store runs/h --n-ctx 32", "--n-ctx has no effect with --store"),
    ],
)
def test_a_flag_without_effect_is_refused(
    words: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *words.split(), "--out", tmp_path / "i")
    assert said == f"mechlab: {line} (leave it out)"
    assert not (tmp_path / "i").exists()
