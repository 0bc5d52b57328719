"""delphi's cache, explanations, scores and neighbours: there and back, and as delphi itself reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from exchanged import SMILE_IDS, VOCABULARY, random_index, same_index
from safetensors.numpy import load_file, save_file

from mechlab.bench.peers import FOLDER, Peer, interpreter
from mechlab.errors import MechlabError
from mechlab.features.formats.delphi import read_delphi, write_delphi
from mechlab.features.formats.delphi_results import (
    ClassifierRecord,
    classifier_records,
    read_delphi_explanations,
    read_delphi_neighbours,
    read_delphi_scores,
    write_delphi_explanations,
    write_delphi_neighbours,
    write_delphi_scores,
)
from mechlab.features.index import index_of
from mechlab.features.text import text_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("bos", [None, 0])
@pytest.mark.parametrize(("seed", "splits"), [(0, 1), (1, 3), (2, 99)])
def test_there_and_back(seed: int, splits: int, bos: int | None, tmp_path: Path) -> None:
    index = random_index(seed, passages=9, features=7)
    write_delphi(index, tmp_path / "hook", splits=splits, bos=bos, multiple=8)
    same_index(index, read_delphi(tmp_path / "hook", VOCABULARY))


def test_files_by_hand(tmp_path: Path) -> None:
    text = text_of([[1, 2, 3], [4]], VOCABULARY)
    active = {0: [0, 2.0, 0, 1.0], 2: [0.5, 0.25, 0, 0], 3: [0, 0, 9e-6, 0]}
    index = index_of(text, {feature: np.array(each) for feature, each in active.items()})
    write_delphi(index, tmp_path / "h", model="m", splits=2, bos=9, multiple=4)
    assert sorted(each.name for each in (tmp_path / "h").iterdir()) == [
        "0_1.safetensors", "2_3.safetensors", "config.json", "passages.npz",
    ]  # fmt: skip
    first, second = (load_file(tmp_path / "h" / f"{name}.safetensors") for name in ("0_1", "2_3"))
    np.testing.assert_array_equal(first["tokens"], [[9, 1, 2, 3], [9, 4, 9, 9]])
    np.testing.assert_array_equal(first["locations"], [[0, 2, 0], [1, 1, 0]])
    # What is at most 1e-5 is not kept, as in delphi's own files.
    np.testing.assert_array_equal(second["locations"], [[0, 1, 0], [0, 2, 0]])
    assert first["locations"].dtype == np.uint16
    assert first["activations"].dtype == np.float16
    config = json.loads((tmp_path / "h" / "config.json").read_text())
    assert config["model_name"] == "m"
    assert config["cache_ctx_len"] == 4
    assert config["n_splits"] == 2


def test_many_rows_need_wider_numbers(tmp_path: Path) -> None:
    text = text_of([[1]] * 70_000, VOCABULARY)
    index = index_of(text, {0: (np.arange(70_000) == 69_999) * 2.0})
    write_delphi(index, tmp_path / "h", multiple=1)
    assert load_file(tmp_path / "h" / "0_0.safetensors")["locations"].dtype == np.uint32
    same_index(index, read_delphi(tmp_path / "h", VOCABULARY))


def test_chosen_features_keep_their_numbers(tmp_path: Path) -> None:
    index = random_index(3)
    write_delphi(index, tmp_path / "h", features=[3])
    found = read_delphi(tmp_path / "h", VOCABULARY)
    assert found.live.tolist() == [3]
    assert found.n_features == index.n_features
    np.testing.assert_array_equal(found.entries(3)[1], index.entries(3)[1])


def test_a_cache_that_delphi_wrote(tmp_path: Path) -> None:
    """Rows are documents; a BOS is no text, and what is active there is left out."""
    tokens = np.array([[9, 1, 2], [9, 3, 4]])
    locations = np.array([[0, 0, 1], [0, 1, 1], [1, 2, 0]], np.uint16)
    data = {"locations": locations, "activations": np.array([9, 1, 2], np.float16), "tokens": tokens}
    save_file(data, tmp_path / "0_1.safetensors")
    (tmp_path / "config.json").write_text("{}")
    found = read_delphi(tmp_path, VOCABULARY, bos=9)
    assert found.text.tokens.tolist() == [1, 2, 3, 4]
    assert found.text.position.tolist() == [1, 2, 1, 2]
    assert found.text.document.tolist() == [0, 0, 1, 1]
    assert [each.tolist() for each in found.entries(0)] == [[3], [2.0]]
    assert [each.tolist() for each in found.entries(1)] == [[0], [1.0]]


def test_mistakes_are_named(tmp_path: Path) -> None:
    text = text_of([[1]], VOCABULARY)
    with pytest.raises(MechlabError, match="beyond float16: 70000"):
        write_delphi(index_of(text, {0: np.array([7e4])}), tmp_path / "h")
    with pytest.raises(MechlabError, match="index has no features"):
        write_delphi(index_of(text, {}), tmp_path / "h")
    assert not (tmp_path / "h").exists()
    with pytest.raises(MechlabError, match="cannot be read"):
        read_delphi(tmp_path, VOCABULARY)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MechlabError, match="no cache of delphi's"):
        read_delphi(tmp_path, VOCABULARY)
    (tmp_path / "0_1.safetensors").write_bytes(b"nonsense")
    with pytest.raises(MechlabError, match="no safetensors"):
        read_delphi(tmp_path, VOCABULARY)
    write_delphi(random_index(0), tmp_path / "h")
    small = type(VOCABULARY)(VOCABULARY.texts[:3])
    with pytest.raises(MechlabError, match="not in the vocabulary"):
        read_delphi(tmp_path / "h", small)


def test_explanations_and_neighbours_there_and_back(tmp_path: Path) -> None:
    said = {0: 'words like "a" 🙂', 12: "digits"}
    write_delphi_explanations(tmp_path / "e", "layers.3/mlp", said)
    assert {each.name for each in (tmp_path / "e").iterdir()} == {
        "layers.3--mlp_latent0.txt", "layers.3--mlp_latent12.txt",
    }  # fmt: skip
    assert read_delphi_explanations(tmp_path / "e", "layers.3/mlp") == said
    with pytest.raises(MechlabError, match=r"nothing about layers\.3"):
        read_delphi_explanations(tmp_path / "e", "layers.3")
    near = {0: [(3, 0.5), (1, 0.25)], 3: [(0, 0.5)]}
    write_delphi_neighbours(tmp_path / "n", "hook", "co-occurrence", near)
    file = tmp_path / "n" / "hook-co-occurrence.json"
    assert json.loads(file.read_text())["0"] == [[0.5, 3], [0.25, 1]]
    assert read_delphi_neighbours(file) == near
    file.write_text("[1]")
    with pytest.raises(MechlabError, match="no neighbours"):
        read_delphi_neighbours(file)


def test_scores_by_hand_and_back(tmp_path: Path) -> None:
    text = text_of([[1, *SMILE_IDS, 2]], VOCABULARY)
    index = index_of(text, {0: np.array([0.0, 1.0, 3.0, 2.0, 0.0, 0.5])})
    start, label = np.array([0, 1, 1]), np.array([True, True, False])
    records = classifier_records(
        index, 0, start, 5, label, np.array([0.75, np.nan, 0.5]), np.array([2, 0, -1])
    )
    assert records[0] == ClassifierRecord([" w1", "🙂"], [0.0, 3.0], 2.0, True, True, 0.75, True)
    assert records[1] == ClassifierRecord(["🙂", " w2"], [3.0, 0.5], 0.0, True, None, None, None)
    assert records[2].prediction is True
    assert records[2].correct is False
    write_delphi_scores(tmp_path, "hook", {7: records})
    assert read_delphi_scores(tmp_path, "hook") == {7: records}
    (tmp_path / "hook_latent7.txt").write_text('[{"text": 1}]')
    with pytest.raises(MechlabError, match="no classifier records"):
        read_delphi_scores(tmp_path, "hook")


@pytest.mark.peers
@pytest.mark.parametrize("features", [5, 6])
def test_delphi_reads_our_cache(features: int, tmp_path: Path) -> None:
    if interpreter("delphi", ROOT / FOLDER) is None:
        pytest.skip("delphi is not built (mechlab bench setup-peers)")
    # The last of three files is empty with 6 features, as the last feature is dead.
    index = random_index(5, features=features)
    write_delphi(index, tmp_path / "latents" / "hook", bos=0, splits=6)
    with Peer("delphi", ROOT / FOLDER) as peer:
        latents = peer.ask("read", {"folder": str(tmp_path / "latents"), "out": str(tmp_path / "out")})
    assert latents["latents"] == len(index.live)
    found = load_file(tmp_path / "out")
    for feature in index.live.tolist():
        row, value = index.entries(feature)
        mine = found["locations"][:, 2] == feature
        np.testing.assert_array_equal(found["activations"][mine], value)
        said = found["tokens"][found["locations"][mine, 0], found["locations"][mine, 1]]
        np.testing.assert_array_equal(said, index.text.tokens[row])
