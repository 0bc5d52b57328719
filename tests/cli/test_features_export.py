"""``mechlab features export`` as a user meets it: a dictionary's features, explained, scored and noted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mechlab.activations.harvest import harvest
from mechlab.activations.store import open_store
from mechlab.cli.features_inputs import ranges
from mechlab.cli.main import main
from mechlab.data.corpus import open_corpus
from mechlab.errors import MechlabError
from mechlab.features.building import load_index
from mechlab.features.explanations import Explanation, Explanations, save_explanations
from mechlab.features.formats.circuit_tracer import read_circuit_tracer
from mechlab.features.formats.delphi import read_delphi
from mechlab.features.formats.delphi_results import read_delphi_explanations, read_delphi_neighbours
from mechlab.features.formats.export import FORMATS
from mechlab.features.formats.neuronpedia import read_neuronpedia
from mechlab.features.formats.openai_records import read_openai
from mechlab.features.formats.saedashboard import read_saedashboard
from mechlab.features.formats.upload_batch import read_upload_batch
from mechlab.features.notes import add_note
from mechlab.features.scoring.scorecard import Scorecard, Scored, save_scores
from mechlab.features.sources import index_dictionary, index_vectors, store_rows
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import load_sae, train_sae
from mechlab.sae.topk import TopKConfig
from mechlab.scores import Score

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def made(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sae, index, explanations and scores."""
    folder = tmp_path_factory.mktemp("made")
    subject = load_model(tiny_model)
    store = harvest(subject, open_corpus(tiny_corpus), SITE, folder / "store", tokens=1500)
    config = TopKConfig(site=SITE, d_sae=24, k=4, tokens=512, batch_size=256)
    dictionary = train_sae(store, folder / "sae", config)
    index = index_dictionary(dictionary, store_rows(store, subject), folder / "index")
    [first, second] = index.live[:2].tolist()
    items = (Explanation(first, "rules", "the word one"), Explanation(second, "llm:m:p", "words"))
    said = Explanations(items, (), index.n_features)
    save_explanations(said, folder / "explanations", config={}, seed=0, inputs={})
    scored = tuple(
        Scored(first, "rules", name, Score(name, value, 0.0, 1.0, 9), 0.5, 0, 5, 4)
        for name, value in (("detection", 0.75), ("fuzzing", float("nan")))
    )
    save_scores(Scorecard(scored, ()), folder / "scores", config={}, seed=0, inputs={})
    add_note(folder / "index", first, text="only at the start", label="one", author="Ada")
    return folder


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["features", "export", *(str(word) for word in words)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def exported(
    made: Path, out: Path, capsys: pytest.CaptureFixture[str], format: str, *words: object
) -> dict[str, Any]:
    with_all = ["--explanations", made / "explanations", "--scores", made / "scores"]
    assert run(made / "index", "--format", format, *with_all, "--out", out, *words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_every_format(made: Path, format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, out = load_index(made / "index"), tmp_path / "out"
    dictionary = ["--dictionary", made / "sae", "--neighbours", "--model", "tiny"]
    said = exported(made, out, capsys, format, *dictionary)
    live, first = index.live.tolist(), int(index.live[0])
    assert (said["features"], said["live"], said["model"]) == (24, len(live), "tiny")
    assert said["files"] == sum(each.is_file() for each in out.rglob("*"))
    assert said["explanations"] == (0 if format == "openai" else 4)
    if format == "delphi":
        assert (read_delphi(out / "latents" / SITE, index.text.vocabulary).active == index.active).all()
        explained = read_delphi_explanations(out / "explanations", SITE)
        assert explained == {first: "the word one", int(live[1]): "words"}
        assert read_delphi_neighbours(out / "neighbours" / f"{SITE}-co-occurrence.json")
    elif format == "saedashboard":
        found = read_saedashboard(out)
        assert (found.layer, sorted(found.features)) == (1, live)
        record = found.features[first]
        assert len(record["pos_str"]) == 10
        assert len(record["vector"]) == 16
        assert record["correlated_features_pearson"] == sorted(record["correlated_features_pearson"])[::-1]
    elif format == "neuronpedia":
        bulk = read_neuronpedia(out / "tiny" / "1-mechlab")
        assert [row["description"] for row in bulk.explanations][:3] == [
            "the word one", "one", "only at the start",
        ]  # fmt: skip
        assert [row["notes"] for row in bulk.explanations][1:3] == ["by Ada"] * 2
        # The score that is no number is left out.
        assert [score["value"] for score in bulk.explanations[0]["scores"]] == [0.75]
        assert len(bulk.features[first]["topkCosSimIndices"]) == 10
    elif format == "upload-batch":
        [body] = read_upload_batch(out)
        assert [each["index"] for each in body["features"]] == live
        assert len(body["features"][0]["topLogits"]) == 20
    elif format == "circuit-tracer":
        assert list(read_circuit_tracer(out)) == live
    else:
        assert list(read_openai(out, layer=1)) == live


def test_some_features_and_own_names(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = load_index(made / "index")
    words = ["--features", "0-2,9", "--layer", 7, "--source-set", "res", "--model", "org/m"]
    said = exported(made, tmp_path / "a", capsys, "neuronpedia", *words)
    assert (said["features"], said["source"]) == (4, "7-res")
    bulk = read_neuronpedia(tmp_path / "a" / "m" / "7-res")
    assert [row["index"] for row in bulk.features] == ["0", "1", "2", "9"]
    assert {int(row["index"]) for row in bulk.activations} == {0, 1, 2, 9} & set(index.live.tolist())
    exported(made, tmp_path / "b", capsys, "neuronpedia", *words)
    for file in (tmp_path / "a").rglob("*.gz"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_mistakes_are_one_line(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: object) -> str:
        capsys.readouterr()
        assert run(*words) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if "collect" not in line]
        assert len(said) == 1
        return said[0]

    index, out = made / "index", tmp_path / "out"
    assert "feature does not exist: 24" in refused(index, "--features", "0-24", "--out", out)
    assert "features cannot be read" in refused(index, "--features", "a", "--out", out)
    assert "format" in refused(index, "--format", "pdf", "--out", out)
    save_explanations(Explanations((), (), 3), tmp_path / "few", config={}, seed=0, inputs={})
    said = refused(index, "--explanations", tmp_path / "few", "--out", out)
    assert "explanations are of another index: 3 features, not 24" in said
    save_explanations(Explanations((), (), 24), tmp_path / "few", config={}, seed=0,
                      inputs={"features": "f" * 64}, overwrite=True)  # fmt: skip
    assert "explanations are of other features" in refused(
        index, "--explanations", tmp_path / "few", "--out", out
    )
    assert "pass --explanations" in refused(index, "--scores", made / "scores", "--out", out)
    (tmp_path / "few").rename(tmp_path / "one")
    save_scores(Scorecard((), ()), tmp_path / "few", config={}, seed=0, inputs={"explanations": "e" * 64})
    said = refused(index, "--explanations", made / "explanations", "--scores", tmp_path / "few", "--out", out)
    assert "scores are of other explanations" in said
    shutil.rmtree(tmp_path / "one")
    for name in ("--source-set", "--model"):
        for path in ("..", "a/../..", "a\\b") if name == "--source-set" else ("..", "a/..", "/"):
            assert "is no name of a folder" in refused(index, name, path, "--out", out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "something is there already" in refused(index, "--out", out)
    assert (out / "mine.txt").read_text() == "mine"
    # What is not made by an export is not replaced by one either.
    assert "holds an artifact" in refused(index, "--out", index, "--overwrite")
    assert "holds an artifact" in refused(index, "--out", made, "--overwrite")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "few", out]


def test_another_dictionary_of_the_same_size_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TopKConfig(site=SITE, d_sae=24, k=5, tokens=512, batch_size=256)
    train_sae(open_store(made / "store"), tmp_path / "other", config)
    assert run(made / "index", "--dictionary", tmp_path / "other", "--out", tmp_path / "out") == 2
    assert "not the one that was indexed" in capsys.readouterr().err


def test_an_index_of_something_else_takes_no_dictionary(
    made: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = load_model(tiny_model)
    source = store_rows(open_store(made / "store"), subject)
    index = index_vectors(torch.eye(24, 16), SITE, source, tmp_path / "vectors")
    assert index.n_features == load_sae(made / "sae").sae.d_sae
    words = ["--dictionary", made / "sae", "--out", tmp_path / "out"]
    assert run(tmp_path / "vectors", *words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "index was not made from a dictionary" in line
    assert f"vectors is of vectors {SITE} (leave --dictionary out)" in line
    assert run(tmp_path / "vectors", "--out", tmp_path / "out") == 0


def test_ranges() -> None:
    assert ranges("3, 17,40-42,41") == [3, 17, 40, 41, 42]
    for wrong in ("", "1-", "-1", "5-3", "a", "1,,2"):
        with pytest.raises(MechlabError, match="cannot be read"):
            ranges(wrong)
    for wrong in ("0-9999999999", "3," + "9" * 5000):
        with pytest.raises(MechlabError, match="too many features"):
            ranges(wrong)
