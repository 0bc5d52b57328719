"""SAEDashboard's batches, Neuronpedia's import and uploads, graph viewers' files: there and back."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchanged import SMILE_IDS, VOCABULARY, random_index

from mechlab.bench.peers import FOLDER, Peer, interpreter
from mechlab.errors import MechlabError
from mechlab.features.formats.circuit_tracer import read_circuit_tracer, write_circuit_tracer
from mechlab.features.formats.material import Material, Rated, Said
from mechlab.features.formats.neuronpedia import Source, read_neuronpedia, write_neuronpedia
from mechlab.features.formats.saedashboard import dashboard_record, read_saedashboard, write_saedashboard
from mechlab.features.formats.upload_batch import (
    check_upload_batch,
    read_upload_batch,
    upload_feature,
    write_upload_batch,
)
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.text import text_of
from mechlab.features.vocabulary import vocabulary_of
from mechlab.models.subject import load_model

ROOT = Path(__file__).resolve().parents[2]
MATERIAL = Material(
    top_logits={0: [(" cat", 1.23456), ("🙂", 1.0)], 3: [(f" t{i}", 9.0 - i) for i in range(30)]},
    bottom_logits={0: [(" dog", -2.0)]},
    logit_histogram={0: ([1, 5, 2], [-1.0, 0.0, 1.0])},
    correlated={0: [(3, 0.87654), (1, 0.5)]},
    similar={0: [(1, 0.25)]},
    vector={0: [0.5, -1.0]},
    said={
        0: [
            Said('words about "cats"', "rules", ratings=(Rated("detection", 0.75, "rules", {"n": 4}),)),
            Said("cats", "llm:Some-Model:short", ratings=(Rated("length", 0.5),)),
            Said("my own view", "person", "Ada"),
        ],
        1: [Said("x" * 600, "ngrams")],
    },
)
SOURCE = Source("gpt2-small", 2, "res-test", hook="blocks.2.hook_resid_post", dataset="stories")


def _index() -> FeatureIndex:
    passages = [[1, 2, 3, 4], [*SMILE_IDS, 5], [6, 7]]
    return index_of(text_of(passages, VOCABULARY), {0: np.array([0, 10.0, 0, 4.0, 0, 1, 8, 0, 0, 5, 0])})


def test_dashboard_record_by_hand() -> None:
    record = dashboard_record(_index(), 0, MATERIAL, intervals=2, each=9)
    top = [each for each in record["activations"] if each["bin_min"] == -1]
    assert [(each["bin_max"], each["bin_contains"]) for each in top] == [(10.0, -1.0)] * 3
    assert [each["values"][each["qualifying_token_index"]] for each in top] == [10.0, 8.0, 5.0]
    assert top[1]["tokens"] == ["🙂", " w5"]
    assert top[1]["values"] == [8.0, 0.0]
    rest = record["activations"][3:]
    # Equal intervals of value, both ends included: 10, 8 and 5 above; 5, 4, 1 and six silent below.
    assert [(each["bin_min"], each["bin_max"]) for each in rest] == [(5.0, 10.0)] * 3 + [(0.0, 5.0)] * 3
    assert {each["bin_contains"] for each in rest} == {round(3 / 11, 5), round(9 / 11, 5)}
    assert record["pos_str"] == [" cat", "🙂"]
    assert record["pos_values"] == [1.235, 1.0]
    assert record["correlated_features_pearson"] == [0.877, 0.5]
    assert record["frac_nonzero"] == round(5 / 11, 5)
    assert sum(record["freq_hist_data_bar_heights"]) == 5
    assert len(record["freq_hist_data_bar_values"]) == 50
    assert record["n_prompts_total"] == 3
    assert record["n_tokens_in_prompt"] == 5


@pytest.mark.parametrize("seed", range(3))
def test_saedashboard_there_and_back(seed: int, tmp_path: Path) -> None:
    index = random_index(seed, features=140, passages=6)
    names: dict[str, Any] = {"model": "gpt2-small", "layer": 2, "source_set": "res-test"}
    write_saedashboard(index, tmp_path / "a", MATERIAL, **names, seed=seed)
    found = read_saedashboard(tmp_path / "a")
    assert (found.model, found.layer, found.source_set) == ("gpt2-small", 2, "res-test")
    assert sorted(found.features) == index.live.tolist()
    assert found.skipped == tuple(sorted(set(range(140)) - set(index.live.tolist())))
    write_saedashboard(index, tmp_path / "some", **names, features=[0, 2, 3])
    # Features that were not asked for are not said to be dead.
    assert read_saedashboard(tmp_path / "some").skipped == (2,)
    for feature, record in found.features.items():
        assert record == dashboard_record(index, feature, MATERIAL, seed=seed)
    write_saedashboard(index, tmp_path / "b", MATERIAL, **names, seed=seed)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_saedashboard_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="no batches"):
        read_saedashboard(tmp_path)
    write_saedashboard(random_index(0), tmp_path / "a", model="m", layer=0, source_set="s")
    batch = json.loads((tmp_path / "a" / "batch-0.json").read_text())
    batch["model_id"] = "other"
    (tmp_path / "a" / "batch-1.json").write_text(json.dumps(batch))
    with pytest.raises(MechlabError, match="several sources"):
        read_saedashboard(tmp_path / "a")
    del batch["features"][0]["pos_str"]
    batch["model_id"] = "m"
    (tmp_path / "a" / "batch-1.json").write_text(json.dumps(batch))
    with pytest.raises(MechlabError, match="field pos_str is missing"):
        read_saedashboard(tmp_path / "a")


@pytest.mark.peers
def test_saedashboard_reads_our_batches(tmp_path: Path) -> None:
    if interpreter("saedashboard", ROOT / FOLDER) is None:
        pytest.skip("saedashboard is not built (mechlab bench setup-peers)")
    index = random_index(4)
    write_saedashboard(index, tmp_path / "a", MATERIAL, model="m", layer=1, source_set="s")
    with Peer("saedashboard", ROOT / FOLDER) as peer:
        found = peer.ask("batch", str(tmp_path / "a" / "batch-0.json"))
    assert found["features"] == len(index.live)


def test_neuronpedia_there_and_back(tmp_path: Path) -> None:
    index = random_index(1)
    write_neuronpedia(index, tmp_path / "a", SOURCE, MATERIAL)
    bulk = read_neuronpedia(tmp_path / "a" / "gpt2-small" / "2-res-test")
    assert bulk.source["id"] == "2-res-test"
    assert bulk.source["setName"] == bulk.sourceset["name"]
    assert bulk.sourceset["releaseName"] == bulk.release["name"]
    assert bulk.model["id"] == "gpt2-small"
    assert [row["index"] for row in bulk.features] == ["0", "1", "2", "3", "4"]
    first = bulk.features[0]
    assert first["hasVector"]
    assert first["topkCosSimIndices"] == [1]
    assert first["pos_str"][1] == "🙂"
    assert first["maxActApprox"] == float(index.maximum[0])
    assert first["hookName"] == SOURCE.hook
    assert len({row["id"] for row in bulk.activations}) == len(bulk.activations)
    for row in bulk.activations:
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"])
        assert not any("\ufffd" in token for token in row["tokens"])
    assert {int(row["index"]) for row in bulk.activations} == set(index.live.tolist())
    rules, model, person, ngrams = bulk.explanations
    assert [row["typeName"] for row in bulk.explanations] == [
        "mechlab_rules", "mechlab_llm", None, "mechlab_ngrams",
    ]  # fmt: skip
    assert model["explanationModelName"] == "Some-Model"
    assert person["notes"] == "by Ada"
    [score] = rules["scores"]
    assert score["explanationScoreTypeName"] == "eleuther_recall"
    assert score["value"] == 0.75
    assert json.loads(score["jsonDetails"]) == {"n": 4}
    assert score["explanationId"] == rules["id"]
    assert model["scores"][0]["explanationScoreTypeName"] == "mechlab_length"
    assert ngrams["description"] == "x" * 600
    write_neuronpedia(index, tmp_path / "b", SOURCE, MATERIAL)
    for file in (tmp_path / "a").rglob("*.*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_neuronpedia_lines_may_hold_any_separator(tmp_path: Path) -> None:
    material = Material(said={0: [Said("a\u2028b\x85c", "person")]})
    write_neuronpedia(random_index(1), tmp_path / "a", SOURCE, material)
    folder = tmp_path / "a" / "gpt2-small" / "2-res-test"
    assert read_neuronpedia(folder).explanations[0]["description"] == "a\u2028b\x85c"
    packed = folder / "explanations" / "batch-0.jsonl.gz"
    (folder / "explanations" / "batch-0.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(MechlabError, match="no JSON lines"):
        read_neuronpedia(folder)
    packed.unlink()
    assert len(read_neuronpedia(folder).explanations) == 1
    with pytest.raises(MechlabError, match="cannot be read"):
        read_neuronpedia(tmp_path)


def test_uploads_there_and_back(tmp_path: Path) -> None:
    index = random_index(2, features=200, passages=5)
    write_upload_batch(index, tmp_path / "a", MATERIAL, model="GPT2-small", source="2-Res")
    bodies = read_upload_batch(tmp_path / "a")
    assert [len(body["features"]) for body in bodies] == [128, len(index.live) - 128]
    assert {body["modelId"] for body in bodies} == {"gpt2-small"}
    assert bodies[0]["source"] == "2-res"
    found = {each["index"]: each for body in bodies for each in body["features"]}
    assert sorted(found) == index.live.tolist()
    assert found[0]["explanations"][1] == {"text": "cats", "modelName": "some-model"}
    assert len(found[1]["explanations"][0]["text"]) == 512
    assert found[1]["explanations"][0]["text"][-1] == "…"
    assert len(found[3]["topLogits"]) == 20


@pytest.mark.parametrize("text", ["🙂" * 300, "a" * 511 + "🙂", "🙂" * 256, "ab" + "🙂" * 255 + "c"])
def test_long_texts_are_cut_as_the_server_counts(text: str) -> None:
    said = Material(said={0: [Said(text, "rules")]})
    [kept] = upload_feature(random_index(2), 0, said)["explanations"]
    assert 510 <= len(kept["text"].encode("utf-16-le")) // 2 <= 512
    assert kept["text"].removesuffix("…") == text[: len(kept["text"].removesuffix("…"))]


def test_upload_groups_are_true_quantiles() -> None:
    passages = [[1, 2]] * 14
    values = np.zeros(28)
    values[::2] = [0, 0, *range(1, 13)]
    index = index_of(text_of(passages, VOCABULARY), {0: values})
    record = upload_feature(index, 0, top=2, quantiles=5, each=9)
    groups: dict[tuple[float, float], list[float]] = {}
    for example in record["activations"]:
        bounds = (example["quantileMin"], example["quantileMax"])
        groups.setdefault(bounds, []).append(max(example["values"]))
        assert example["quantileFraction"] == pytest.approx(2 / 14)
    assert groups == {
        (12, 12): [12, 11], (9, 10): [10, 9], (7, 8): [8, 7], (5, 6): [6, 5], (3, 4): [4, 3], (1, 2): [2, 1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": 1.5}, "density: out of bounds"),
        ({"activations": []}, "activations of a feature"),
        ({"activations": [{"tokens": ["a"] * 1025, "values": [0.0] * 1025}]}, "tokens of an example"),
        ({"activations": [{"tokens": ["a"], "values": [0.0, 1.0]}]}, "differ in number"),
        ({"activations": [{"tokens": [""], "values": [0.0]}]}, "token is empty"),
        ({"explanations": [{"text": "x" * 513}]}, "characters of an explanation"),
        ({"explanations": [{"text": ""}]}, "characters of an explanation"),
        ({"topLogits": [{"token": "a", "value": 0.0}] * 21}, "topLogits"),
        ({"index": 10_000_001}, "index"),
        ({"index": None}, "index"),
    ],
)
def test_what_the_server_would_refuse_is_named(change: dict[str, Any], message: str) -> None:
    feature = {"index": 0, "activations": [{"tokens": ["a"], "values": [0.0]}]}
    check_upload_batch({"modelId": "m", "source": "s", "features": [feature]})
    wrong = {name: value for name, value in (feature | change).items() if value is not None}
    with pytest.raises(MechlabError, match=message):
        check_upload_batch({"modelId": "m", "source": "s", "features": [wrong]})


def test_uploads_of_too_many_features_are_refused() -> None:
    features = [{"index": i, "activations": [{"tokens": ["a"], "values": [0.0]}]} for i in range(129)]
    with pytest.raises(MechlabError, match="features in a body"):
        check_upload_batch({"modelId": "m", "source": "s", "features": features})
    with pytest.raises(MechlabError, match="occurs twice"):
        check_upload_batch({"modelId": "m", "source": "s", "features": [features[0], features[0]]})


def test_circuit_tracer_there_and_back(tmp_path: Path) -> None:
    index = random_index(3, passages=60)
    write_circuit_tracer(index, tmp_path / "a", MATERIAL)
    found = read_circuit_tracer(tmp_path / "a")
    assert list(found) == index.live.tolist()
    assert found[0]["top_logits"] == [" cat", "🙂"]
    assert found[0]["bottom_logits"] == [" dog"]
    groups = found[0]["examples_quantiles"]
    assert next(len(group["examples"]) for group in groups) == 20
    assert len(groups) == 6
    strongest = [[max(each["tokens_acts_list"]) for each in group["examples"]] for group in groups]
    # Quantiles by rank: no group reaches above the one before it.
    for above, below in itertools.pairwise(strongest):
        assert min(above) >= max(below)
    record = json.loads((tmp_path / "a" / "0.json").read_text())
    record["examples_quantiles"][0]["examples"][0]["tokens"].append("x")
    (tmp_path / "a" / "0.json").write_text(json.dumps(record))
    with pytest.raises(MechlabError, match="differ in number"):
        read_circuit_tracer(tmp_path / "a")
    with pytest.raises(MechlabError, match="no feature files"):
        read_circuit_tracer(tmp_path)


def test_a_real_tokenizer_leaves_no_mojibake(stories_model: Path, stories_data: Path, tmp_path: Path) -> None:
    """Stories with characters that the tokenizer writes as several bytes; a feature on all of these bytes."""
    subject = load_model(stories_model)
    vocabulary = vocabulary_of(subject)
    with stories_data.open(encoding="utf-8") as lines:
        stories = [json.loads(line)["text"] for _, line in zip(range(3000), lines, strict=False)]
    foreign = [story for story in stories if not story.isascii()][:8]
    assert foreign
    passages = [subject.tokens(story)[1:].tolist() for story in [*foreign, "naïve 日本 🙂 end"]]
    text = text_of(passages, vocabulary)
    parts = np.isin(text.tokens, list(vocabulary.partial))
    index = index_of(text, {0: parts * 1.5})
    write_circuit_tracer(index, tmp_path / "a")
    found = read_circuit_tracer(tmp_path / "a")[0]
    shown = "".join(
        token
        for group in found["examples_quantiles"]
        for example in group["examples"]
        for token, value in zip(example["tokens"], example["tokens_acts_list"], strict=True)
        if value
    )
    assert {"日", "本", "🙂"} <= set(shown)
    assert "\ufffd" not in shown
    assert "\\x" not in shown
    assert "<0x" not in shown
