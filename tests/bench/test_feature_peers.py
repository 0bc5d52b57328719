"""delphi and SAEDashboard on codes of ours: they are given the same, and do what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mechlab.bench.feature_peers import NAMES, measure_peers, write_codes
from mechlab.bench.peers import FOLDER, Peer, interpreter
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = Vocabulary(tuple(f" {number}" for number in range(50)))


def _index(seed: int = 0, features: int = 12) -> FeatureIndex:
    random = np.random.default_rng(seed)
    passages = [random.integers(50, size=64).tolist() for _ in range(40)]
    text = text_of(passages, VOCABULARY)
    active = {f: random.random(len(text)) * (random.random(len(text)) < 0.05) for f in range(0, features, 2)}
    return index_of(text, active)


def _there(name: str) -> Path:
    if interpreter(name, ROOT / FOLDER) is None:
        pytest.skip(f"{name} is not built (mechlab bench setup-peers)")
    return ROOT / FOLDER


def test_codes_are_those_of_the_index(tmp_path: Path) -> None:
    index = _index()
    codes = load_file(write_codes(index, tmp_path / "codes"))
    order = codes["locations"][:, 0] * 64 + codes["locations"][:, 1]
    assert (np.diff(order) >= 0).all()
    for feature in range(index.n_features):
        mine = codes["locations"][:, 2] == feature
        row, value = index.entries(feature)
        np.testing.assert_array_equal(order[mine], row)
        np.testing.assert_array_equal(codes["activations"][mine], value)
    np.testing.assert_array_equal(codes["tokens"].reshape(-1), index.text.tokens)


def test_missing_peers_are_named(tmp_path: Path) -> None:
    assert measure_peers(_index(), tmp_path, folder=tmp_path / "none") == ({}, list(NAMES))
    assert list(tmp_path.iterdir()) == []
    silent = index_of(text_of([[1]], VOCABULARY), {0: np.zeros(1)})
    with pytest.raises(ValueError, match="no feature is active"):
        measure_peers(silent, tmp_path, folder=tmp_path / "none")


@pytest.mark.peers
def test_delphi_makes_an_example_of_every_active_window(tmp_path: Path) -> None:
    folder, index = _there("delphi"), _index()
    write_codes(index, tmp_path / "codes")
    options = {"example_ctx_len": 32, "min_examples": 1, "n_non_activating": 0}
    with Peer("delphi", folder) as peer:
        peer.ask("init", {"codes": str(tmp_path / "codes"), "width": index.n_features})
        assert peer.ask("save", {"folder": str(tmp_path / "cache"), "splits": 5})["bytes"] > 0
        asked = {"folder": str(tmp_path / "cache"), "options": options, "limit": 1000}
        found = peer.ask("load", asked)
        some = peer.ask("load", {**asked, "limit": 3})
    windows = [len(np.unique(index.entries(feature)[0] // 32)) for feature in index.live.tolist()]
    assert (found["latents"], found["examples"]) == (len(index.live), sum(windows))
    assert some["latents"] == 3


@pytest.mark.peers
def test_figures_of_both(tmp_path: Path) -> None:
    for name in NAMES:
        _there(name)
    index = _index()
    found, missing = measure_peers(index, tmp_path, sample=4, repeats=1, folder=ROOT / FOLDER)
    assert missing == []
    assert list(tmp_path.iterdir()) == []
    delphi, dashboard = found["delphi"], found["saedashboard"]
    assert (delphi["latents"], delphi["sampled"]) == (6, 4)
    assert delphi["load"] == pytest.approx(delphi["open"] + delphi["sort"] + 6 * delphi["latent"])
    assert (dashboard["features"], dashboard["sampled"]) == (6, 4)
    assert dashboard["total"] == pytest.approx(6 * dashboard["feature"])
    assert min(delphi["save"], delphi["latent"], dashboard["feature"]) > 0
