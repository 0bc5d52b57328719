"""``mechlab dashboard build`` and ``compare`` as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mechlab as ml
from mechlab.activations.store import open_store
from mechlab.artifacts import open_artifact
from mechlab.circuits.features.circuit_tracer import write_circuit_tracer_graph
from mechlab.circuits.features.graph import FeatureGraph, FeatureNode
from mechlab.cli.main import main
from mechlab.features.notes import add_note
from mechlab.sae.dictionary import train_sae
from mechlab.sae.topk import TopKConfig

PARTS = {
    "--index": "features",
    "--held": "heldout_features",
    "--explanations": "explanations",
    "--scores": "scores",
    "--dictionary": "sae",
}


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def payload(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run("dashboard", *words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line that ends a command that is refused."""
    capsys.readouterr()
    assert run("dashboard", *words) == 2
    seen = capsys.readouterr()
    assert not seen.out
    return seen.err.splitlines()[-1]


def blocks(folder: Path) -> dict[str, Any]:
    """Blocks of a page, whether in it or in files beside it."""
    page = (folder / "index.html").read_text()
    found = {n: json.loads(t) for n, t in re.findall(r'json" id="b-([^"]+)">(.*?)</script>', page)}
    for name in found["site"]["shards"]:
        text = (folder / "data" / f"{name}.js").read_text()
        quoted = re.fullmatch(rf"mechlab\.take\('{name}','(.*)'\)\n", text)[1]
        found[name] = json.loads(quoted.replace("\\'", "'").replace("\\\\", "\\"))
    return found


@pytest.fixture(scope="module")
def done(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model."""
    out = tmp_path_factory.mktemp("runs") / "one"
    sizes = "--tokens 4000 --train-tokens 20000 --heldout-tokens 1000 --d-sae 80 --k 4 --task none"
    assert run("run", "--model", tiny_model, "--data", tiny_corpus, "--out", out, *sizes.split()) == 0
    return out


def test_a_run_becomes_a_site(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "site"
    made = payload(capsys, "build", done, "--out", out, "--steer", 2, "--documents", 3)
    assert made["path"] == str(out / "index.html")
    assert made["views"] == ["features", "tokens", "run"]
    assert (made["features"], made["files"], made["single"]) == (80, 1, True)
    open_artifact(out, "dashboard").verify()
    found = blocks(out)
    assert list(found) == [
        "site", "overview", "features-0", "features-1", "tokens", "tokens-0", "tokens-1", "tokens-2", "run",
    ]  # fmt: skip
    assert found["site"]["facts"]["features"] == 80
    assert found["run"]["command"].startswith("mechlab run --model ")
    assert {each["name"] for each in found["run"]["artifacts"]} >= {"index", "dictionary", "activations"}
    records = found["features-0"]["features"] | found["features-1"]["features"]
    assert sum("steer" in record for record in records.values()) == 2
    assert any(record.get("logits") for record in records.values())
    before = (out / "index.html").stat().st_mtime_ns
    again = payload(capsys, "build", done, "--out", out, "--steer", 2, "--documents", 3)
    assert (out / "index.html").stat().st_mtime_ns == before
    assert {**made, "seconds": 0} == {**again, "seconds": 0}
    assert "made with another settings" in refused(capsys, "build", done, "--out", out)


def test_from_python_it_is_the_same_site(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = ml.dashboard(done, tmp_path / "python", steer=1, documents=2, model=False, limit=10**9)
    words = ["--steer", 1, "--documents", 2, "--without-model", "--limit", 1000]
    made = payload(capsys, "build", done, "--out", tmp_path / "command", *words)
    assert written.path.read_bytes() == (tmp_path / "command" / "index.html").read_bytes()
    assert (written.bytes, written.n_files, written.single) == (made["bytes"], made["files"], made["single"])


def test_single_artifacts_show_the_same_features(
    done: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [word for flag, name in PARTS.items() for word in (flag, done / name)]
    same = ["--steer", 2, "--documents", 3]
    payload(capsys, "build", done, "--out", tmp_path / "run", *same)
    payload(capsys, "build", *parts, "--out", tmp_path / "parts", *same, "--limit", 0)
    whole, loose = blocks(tmp_path / "run"), blocks(tmp_path / "parts")
    assert set(whole) == set(loose)
    for name in whole.keys() - {"site", "run"}:
        assert whole[name] == loose[name], name
    assert loose["site"]["title"] == f"{tiny_model} at blocks.1.hook_resid_post"


def test_an_index_alone_is_enough(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = payload(capsys, "build", "--index", done / "features", "--out", tmp_path / "site")
    assert made["views"] == ["features", "tokens", "run"]
    found = blocks(tmp_path / "site")
    assert found["overview"]["scorers"] == []
    assert not found["tokens"]["guesses"]
    records = found["features-0"]["features"].values()
    assert not any(key in record for record in records for key in ("logits", "steer", "judged"))
    assert not any(each["text"] for record in records for each in record.get("said", ()))


def test_without_the_model_a_run_can_be_shown_where_that_is_gone(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload(capsys, "build", done, "--out", tmp_path / "site", "--without-model")
    found = blocks(tmp_path / "site")
    assert not found["tokens"]["guesses"]
    assert not any("steer" in record for record in found["features-0"]["features"].values())


def test_a_new_note_makes_a_new_site(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = tmp_path / "index"
    shutil.copytree(done / "features", index)
    words = ["build", "--index", index, "--out", tmp_path / "site"]
    payload(capsys, *words)
    add_note(index, 3, label="mine", author="Ada")
    assert "made from another notes" in refused(capsys, *words)
    payload(capsys, *words, "--overwrite")
    assert blocks(tmp_path / "site")["overview"]["columns"]["label"][3] == "mine"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["build"], "nothing to show (name a run, or pass --index, --circuit or --graph)"),
        (["build", "{run}", "--index", "{run}/features"], "a run and a single artifact: --index"),
        (["build", "{run}", "--subject", "x"], "the model of a run is its own: x"),
        (["build", "--scores", "{run}/scores"], "nothing to show"),
        (["build", "{run}/sae"], "holds another kind of artifact: dictionary (needed: run)"),
        (["build", "{run}/nope"], "no run here"),
        (["build", "{run}", "--limit", "-1"], "limit is out of range: -1"),
        (["build", "{run}", "--documents", "0"], "documents is out of range: 0"),
        (["build", "{run}", "--steer", "-1"], "steer is out of range: -1"),
        (["build", "--index", "{run}/features", "--scores", "{run}/scores"], "scores of which explanations"),
        (
            ["build", "--index", "{run}/features", "--held", "{run}/features", "--explanations",
             "{run}/explanations", "--scores", "{run}/scores"],
            "scores and held do not belong together",
        ),
        (["compare", "{run}"], "two things are compared"),
        (["compare", "{run}", "{run}"], "nothing to compare"),
        (["compare", "{run}", "{run}/features"], "cannot be compared: feature-index"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(
    done: Path, words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "site"
    said = refused(capsys, *(word.replace("{run}", str(done)) for word in words), "--out", out)
    assert line in said
    assert not out.exists()


def test_two_dictionaries_are_compared(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TopKConfig(site="blocks.1.hook_resid_post", d_sae=80, k=4, tokens=2048, batch_size=256)
    train_sae(open_store(done / "activations"), tmp_path / "other", config, seed=1)
    out = tmp_path / "site"
    made = payload(capsys, "compare", done, tmp_path / "other", "--out", out)
    assert made["views"] == ["compare"]
    block = blocks(out)["compare"]
    assert block["names"] == ["one", "other"]
    pages = [side["page"] for side in block["dictionaries"]["sides"]]
    assert (out / pages[0]).resolve() == (done / "dashboard" / "index.html").resolve()
    assert pages[1] is None


def test_attribution_graphs_stand_beside_the_circuit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = ml.load_model("fable")
    graphs = []
    for name, words in (("a", "The cat"), ("b", "The dog")):
        ids = subject.tokens(words).tolist()
        nodes = [FeatureNode("embedding", "embed", -1, place, token) for place, token in enumerate(ids)]
        nodes += [FeatureNode("feature", "blocks.1.hook_mlp_out", 1, 1, 7, value=2.0, score=0.5)]
        nodes += [FeatureNode("logit", "logits", 4, len(ids) - 1, 9, score=1.0)]
        last = len(nodes) - 1
        sources, readers = torch.arange(last), torch.tensor([last - 1, last])
        scores = torch.ones(last, 2)
        scores[-1, 0] = 0  # the feature does not read itself
        graphs.append(FeatureGraph(tuple(nodes), sources, readers, scores))
        write_circuit_tracer_graph(graphs[-1], subject, tmp_path / f"{name}.json")
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    made = payload(capsys, "build", "--graph", *files, "--subject", "fable", "--out", tmp_path / "site")
    assert made["views"] == ["circuit", "run"]
    found = blocks(tmp_path / "site")
    assert [name for name in found if name.startswith("circuit")] == ["circuits", "circuit", "circuit-1"]
    for block, graph in zip((found["circuit"], found["circuit-1"]), graphs, strict=True):
        assert len(block["edges"]["score"]) == int((graph.scores != 0).sum())
    assert "The cat" in found["circuits"][0]
    assert "The dog" in found["circuits"][1]
    again = [files[0], files[0], "--out", tmp_path / "again"]
    assert "two graphs of one prompt" in refused(capsys, "build", "--graph", *again)
    files[0].write_text("{}")
    assert "holds no attribution graph" in refused(
        capsys, "build", "--graph", files[0], "--out", tmp_path / "x"
    )
    assert "made from another graph 0" in refused(
        capsys, "build", "--graph", files[1], "--subject", "fable", "--out", tmp_path / "site"
    )
