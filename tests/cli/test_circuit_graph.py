"""``mechlab circuit graph`` end to end, on a tiny model with transcoders trained on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mechlab.activations.harvest import harvest
from mechlab.circuits.features.attribution_graph import attribution_graph
from mechlab.circuits.features.circuit_tracer import read_circuit_tracer_graph
from mechlab.circuits.features.influence import prune
from mechlab.circuits.features.replacement import replacement_model
from mechlab.cli.main import main
from mechlab.data.corpus import open_corpus
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import load_sae, train_sae
from mechlab.sae.topk import TopKConfig

SITES = [(f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out") for layer in range(2)]
PROMPT = "the cat sat on a mat"


@pytest.fixture(scope="module")
def transcoders(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("transcoders")
    sites = [site for pair in SITES for site in pair]
    store = harvest(load_model(tiny_model), open_corpus(tiny_corpus), sites, folder / "h", tokens=2000)
    for number, (site, target) in enumerate(SITES):
        config = TopKConfig(site=site, target=target, d_sae=40, k=4, tokens=8192, batch_size=256)
        train_sae(store, folder / f"t{number}", config)
    return [folder / f"t{number}" for number in range(len(SITES))]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in ("circuit", "graph", *words)])
    return int(caught.value.code or 0)


def test_the_file_is_the_pruned_graph(
    tiny_model: Path, transcoders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (PROMPT, "--model", tiny_model, "--transcoders", *transcoders)
    assert run(*words, "--out", tmp_path / "g.json", "--json") == 0
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    subject = load_model(tiny_model)
    made = replacement_model(subject, [load_sae(path) for path in transcoders], subject.tokens(PROMPT))
    wanted = prune(attribution_graph(made))
    found = read_circuit_tracer_graph(tmp_path / "g.json")
    assert found.nodes == wanted.nodes
    assert torch.equal(found.scores, wanted.scores)
    assert payload["nodes"] == len(wanted.nodes) < payload["nodes_in_all"]
    assert payload["edges"] == int((wanted.scores != 0).sum())
    assert payload["features"]
    assert sum(payload["outputs"].values()) == pytest.approx(1.0, abs=1e-4)
    assert json.loads((tmp_path / "g.json").read_text())["metadata"]["node_threshold"] == 0.8
    assert run(*words, "--nodes", "1", "--edges", "1") == 0
    said = capsys.readouterr().out
    # All but the nodes that lead to no output.
    whole = prune(attribution_graph(made), 1.0, 1.0)
    assert f"{len(whole.nodes)} of {payload['nodes_in_all']} nodes" in said
    assert len(whole.nodes) > payload["nodes"]
    assert "replacement" in said
    assert "blocks.1.hook_mlp_out/f" in said


def test_mistakes_are_one_line(
    tiny_model: Path, transcoders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", tiny_model)
    for words, message in (
        ((), "no prompt was given"),
        ((PROMPT, *model), "no transcoder was named"),
        ((PROMPT, *model, "--transcoders", tmp_path), "no dictionary here"),
        ((PROMPT, *model, "--transcoders", transcoders[0], "--nodes", "1.5"), "out of range"),
        ((PROMPT, *model, "--transcoders", transcoders[0], "--out", tmp_path / "g.txt"), "use .json"),
    ):
        assert run(*words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert message in lines[-1], lines


def test_the_page_holds_the_graph(tiny_model: Path, transcoders: list[Path], tmp_path: Path) -> None:
    words = (PROMPT, "--model", tiny_model, "--transcoders", *transcoders)
    assert run(*words, "--out", tmp_path / "g.html") == 0
    page = (tmp_path / "g.html").read_text()
    block = json.loads(page.split('id="b-circuit">')[1].split("</script>")[0])
    kinds = [node["kind"] for node in block["nodes"]]
    assert "input “cat”" in [kind.replace(" cat", "cat") for kind in kinds]
    assert block["facts"][0] == ["prompt", PROMPT]
    assert "default-src 'none'" in page.replace("&#39;", "'")
