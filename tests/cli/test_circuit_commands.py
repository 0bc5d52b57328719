"""``mechlab circuit …`` end to end, in this process, on the bundled model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mechlab.artifacts import writing
from mechlab.circuits.circuit import Circuit
from mechlab.cli.main import main
from mechlab.models.subject import bundled_path

pytestmark = pytest.mark.skipif(
    not (bundled_path() / "config.json").is_file(), reason="the bundled model is not there"
)
SMALL = ("--prompts", "12", "--controls", "3")


def run(*words: object) -> int:
    """Exit status of ``mechlab WORDS``."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return int(caught.value.code or 0)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    """What a command prints with --json."""
    assert run(*words, "--json") == 0
    found: dict = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a refused command prints."""
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "mechlab:" in line]) >= 1
    return lines[-1]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("circuits") / "ioi"
    assert (
        run("circuit", "find", "--task", "ioi", "--method", "eap", "--top", "30", *SMALL, "--out", out) == 0
    )
    return out


def test_find(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit = Circuit.load(found)
    assert (circuit.task, circuit.method, circuit.n_top) == ("ioi", "eap", 30)
    assert circuit.settings["model"] == "fable"
    assert circuit.settings["prompts"] == circuit.faithfulness.n == 12
    payload = said(
        capsys, "circuit", "find", "--method", "eap", "--top", "30", *SMALL, "--out", found
    )  # the same again is already there
    assert payload["n_edges"] == circuit.n_edges
    assert payload["evaluation"]["faithfulness"]["value"] == pytest.approx(circuit.faithfulness.value)


def test_eval_as_found_and_otherwise(found: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit = Circuit.load(found)
    same = said(capsys, "circuit", "eval", found, "--controls", "3", "--stability", "2")
    assert same["differences"] == []
    assert same["faithfulness"]["value"] == pytest.approx(circuit.faithfulness.value)
    assert same["completeness"]["mean"]["value"] >= 0
    assert len(same["minimality"]["edges"]) == circuit.n_edges
    assert same["stability"]["n"] == 2
    words = ("circuit", "eval", found, "--controls", "2", "--no-knockouts")
    other = said(capsys, *words, "--ablation", "mean", "--metric", "negative_kl")
    assert other["differences"] == [
        "scored under mean, found under resample",
        "scored with negative_kl, found with logit_difference",
    ]
    assert other["completeness"] is None
    assert run(*words, "--ablation", "zero", "--split", "validation") == 0
    out = capsys.readouterr().out
    assert "note: scored under zero, found under resample" in out
    assert "note: scored on the prompts it was chosen on" in out


def test_labelled_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("circuit", "find", "--method", "eap", "--top", "30", *SMALL, "--label-heads")
    made = said(capsys, *words, "--out", tmp_path / "c")
    assert "name mover" in made["classes"].values()
    assert run("circuit", "show", tmp_path / "c", "--out", tmp_path / "c.svg") == 0
    assert ">name mover<" in (tmp_path / "c.svg").read_text()
    assert run(*words, "--task", "agreement", "--out", tmp_path / "d") == 2
    assert "no head classes are known" in capsys.readouterr().err


def test_show(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit = Circuit.load(found)
    assert run("circuit", "show", found, "--edges", "3") == 0
    out = capsys.readouterr().out
    assert out.count(" → ") == 3
    assert f"and {circuit.n_edges - 3} more" in out
    for name in ("c.svg", "c.html", "c.json"):
        assert said(capsys, "circuit", "show", found, "--out", tmp_path / name)["n_edges"] == circuit.n_edges
    ElementTree.parse(tmp_path / "c.svg")
    assert 'id="b-circuit"' in (tmp_path / "c.html").read_text()
    assert len(json.loads((tmp_path / "c.json").read_text())["edges"]) == circuit.n_edges
    assert "use .svg, .html, .json, .png or .pdf" in refused(
        capsys, "circuit", "show", found, "--out", "c.gif"
    )


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on PATH")
def test_show_and_patch_as_pictures(found: Path, tmp_path: Path) -> None:
    assert run("circuit", "show", found, "--out", tmp_path / "c.png") == 0
    assert (tmp_path / "c.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    words = ("circuit", "patch", "--task", "ioi", "--sweep", "mlps", "--prompts", "4")
    assert run(*words, "--out", tmp_path / "p.pdf") == 0
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF-")


def test_pictures_need_a_browser(
    found: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no browser to draw with" in refused(capsys, "circuit", "show", found, "--out", tmp_path / "c.pdf")


def test_compare(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "zero"
    words = ("--method", "eap", "--ablation", "zero", "--threshold", "1.0", *SMALL)
    assert run("circuit", "find", *words, "--out", other) == 0
    capsys.readouterr()
    payload = said(capsys, "circuit", "compare", found, other)
    left, right = Circuit.load(found), Circuit.load(other)
    assert payload["shared"] == int((left.mask & right.mask).sum())
    assert payload["differences"] == ["ablation: resample, zero"]
    assert run("circuit", "compare", found, other) == 0
    assert "differ in ablation: resample, zero" in capsys.readouterr().out


def test_patch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("circuit", "patch", "--task", "ioi", "--sweep", "heads", "--by", "name", "--prompts", "8")
    payload = said(capsys, *words, "--out", tmp_path / "p.json")
    assert payload["rows"][0] == "a0.h0"
    assert "end" in payload["columns"]
    assert len(payload["recovered"]) == 16
    figure = json.loads((tmp_path / "p.json").read_text())
    assert figure["data"][0]["type"] == "heatmap"
    assert run(*words[:-4], "--prompts", "8", "--out", tmp_path / "p.html") == 0
    page = (tmp_path / "p.html").read_text()
    assert "cdn.plot.ly" not in page.split("<body>")[0]
    assert run(*words, "--out", tmp_path / "p.svg") == 0
    root = ElementTree.parse(tmp_path / "p.svg").getroot()
    titles = [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 16 * len(payload["columns"])
    row = payload["rows"].index("a2.h2")
    share = payload["recovered"][row][payload["columns"].index("end")]
    assert f"a2.h2 at end: {share:.3f}" in titles
    assert "a3.h3" in capsys.readouterr().out


def test_mistakes(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "x")
    line = refused(capsys, "circuit", "find", "--method", "eap-gi", *SMALL, *out)
    assert "unknown method: eap-gi (did you mean eap-ig" in line
    assert "task does not exist: iio" in refused(capsys, "circuit", "find", "--task", "iio", *out)
    assert "acdc takes a threshold" in refused(capsys, "circuit", "find", "--method", "acdc", *SMALL, *out)
    assert "unknown ablation: men" in refused(capsys, "circuit", "find", "--ablation", "men", *SMALL, *out)
    assert "no circuit here" in refused(capsys, "circuit", "eval", tmp_path / "none")
    assert "unknown sweep: haeds" in refused(capsys, "circuit", "patch", "--sweep", "haeds", "--prompts", "8")
    line = refused(capsys, "circuit", "find", "--method", "eap", "--top", "9", *SMALL, "--out", found)
    assert "holds a circuit with another top: 30, not 9" in line
    line = refused(capsys, "circuit", "eval", found, "--ablation", "mean", "--split", "train")
    assert "constants of the ablation come from the train split" in line
    for words in (("--threshold", "nan"), ("--threshold", "-1"), ("--controls", "-1", "--top", "9")):
        assert "must be" in refused(capsys, "circuit", "find", *words, *out)
    line = refused(capsys, "circuit", "find", "--method", "eap", "--metric", "negative_kl", *SMALL, *out)
    assert "negative_kl is flat on the clean run, where eap takes its gradient (use eap-ig" in line
    assert not (tmp_path / "x").exists()
    for words in (("--prompts", "0"), ("--controls", "-1"), ("--stability", "1"), ("--stability", "-1")):
        assert "at least" in refused(capsys, "circuit", "eval", found, *words)


def test_out_is_refused_before_the_work(
    found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    (tmp_path / "c.svg").mkdir()
    places = {
        tmp_path / "file": "not a directory",
        tmp_path / "file" / "x": "not a directory",
        tmp_path / "foreign": "holds no artifact",
        Path("/proc/x"): "cannot be made",
    }
    for place, why in places.items():
        assert run("circuit", "find", "--top", "9", *SMALL, "--out", place) == 2
        (line,) = capsys.readouterr().err.splitlines()  # no line of progress before it
        assert why in line
    files = {tmp_path / "c.svg": "is a directory", tmp_path / "file" / "c.html": "not a directory"}
    for place, why in {**files, Path("/proc/c.html"): "cannot write here"}.items():
        assert why in refused(capsys, "circuit", "show", found, "--out", place)
        if place.suffix == ".html":
            assert run("circuit", "patch", "--prompts", "4", "--out", place) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert why in line
    assert run("circuit", "find", "--task", "nonsense", "--out", tmp_path / "new" / "one") == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c.svg", "file", "foreign"]
    assert [each.name for each in (tmp_path / "foreign").iterdir()] == ["notes.txt"]


def test_constants_are_not_scored_on_the_prompts_they_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mean"
    words = ("--method", "eap", "--ablation", "mean", "--top", "30", *SMALL, "--out", out)
    assert run("circuit", "find", *words) == 0
    line = refused(capsys, "circuit", "eval", out, "--split", "train", "--no-knockouts")
    assert "constants of the ablation come from the train split" in line
    words = ("circuit", "eval", out, "--controls", "1", "--no-knockouts")
    assert run(*words, "--ablation", "zero", "--split", "train") == 0
    other = said(capsys, *words, "--task", "agreement")["differences"]
    assert "constants of the ablation are those of the task it was found with" in other


def test_a_model_of_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("circuit", "find", "--top", "30", *SMALL, "--dtype", "bfloat16", "--out", tmp_path / "half")
    payload = said(capsys, *words)
    assert payload["evaluation"]["faithfulness"]["value"] > 0.5


def test_damaged_circuits(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("circuit.json", "circuit.safetensors", "manifest.json"):
        copy = Path(shutil.copytree(found, tmp_path / name))
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2])
        line = refused(capsys, "circuit", "show", copy)
        assert "cut short" in line or "cannot be read" in line
    # Whole by its checksums, but not what this version writes.
    old = tmp_path / "old"
    with writing(old, "circuit", config={"settings": {}}, seed=0, inputs={}) as writer:
        for name in ("circuit.json", "circuit.safetensors"):
            shutil.copy(found / name, writer.work / name)
        writer.commit(["circuit.json", "circuit.safetensors"])
    assert "circuit cannot be read" in refused(capsys, "circuit", "show", old)


def test_a_compiled_model_and_its_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ("--model", "compiled/reverse")
    find = ("circuit", "find", *model, "--method", "acdc", "--threshold", "0.01", "--metric", "negative_l2")
    payload = said(capsys, *find, "--task", "reverse", *SMALL, "--out", tmp_path / "reverse")
    circuit = Circuit.load(tmp_path / "reverse")
    assert {(edge.source, edge.reader) for edge in circuit.edges} == {
        ("embed", "a3.h0.v"),
        ("a3.h0", "logits"),
    }
    assert payload["n_edges"] == 2
    assert said(capsys, "circuit", "eval", tmp_path / "reverse", "--no-knockouts")["differences"] == []
    swept = said(capsys, "circuit", "patch", *model, "--task", "reverse", "--prompts", "8")
    assert swept["recovered"][swept["rows"].index("a3.h0")][0] == pytest.approx(1.0)
    assert "--task reverse" in refused(capsys, *find, "--out", tmp_path / "other")
