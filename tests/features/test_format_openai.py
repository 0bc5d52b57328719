"""OpenAI's neuron records and puzzles: by hand, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from exchanged import VOCABULARY, random_index

from mechlab.errors import MechlabError
from mechlab.features.formats.openai_records import (
    Puzzle,
    neuron_record,
    read_openai,
    read_puzzles,
    write_openai,
    write_puzzles,
)
from mechlab.features.index import index_of
from mechlab.features.text import text_of


@pytest.mark.parametrize("seed", range(3))
def test_moments_are_those_of_the_dense_activations(seed: int) -> None:
    index = random_index(seed)
    for feature in range(index.n_features):
        record, x = neuron_record(index, feature), index.dense(feature).astype(np.float64)
        assert record["mean"] == pytest.approx(x.mean())
        assert record["variance"] == pytest.approx(x.var())
        z = (x - x.mean()) / (x.std() or 1)
        assert record["skewness"] == pytest.approx((z**3).mean(), abs=1e-9)
        assert record["kurtosis"] == pytest.approx((z**4).mean(), abs=1e-9)


def test_quantiles_are_of_passages() -> None:
    # 1,000 passages; the strongest token of passage i has activation i - 600 where that is positive.
    strongest = np.maximum(np.arange(1000) - 600, 0).astype(np.float64)
    values = np.stack([strongest, strongest / 2], 1).reshape(-1)
    index = index_of(text_of([[1, 2]] * 1000, VOCABULARY), {0: values})
    record = neuron_record(index, 0, each=10)
    assert record["quantile_boundaries"] == [0.0, 300.0, 390.0, 399.0]
    maxima = [[max(each["activations"]) for each in group] for group in record["random_sample_by_quantile"]]
    assert [len(group) for group in maxima] == [10, 10, 9 + 1, 9, 1]
    assert maxima[0] == [0.0] * 10
    assert maxima[4] == [399.0]
    for group, low, high in zip(maxima[1:], (0, 300, 390, 399), (300, 390, 399, 400), strict=True):
        assert all(low <= each < high for each in group)
    assert len(record["random_sample"]) == 20
    tops = [max(each["activations"]) for each in record["most_positive_activation_records"]]
    assert tops == [399.0 - rank for rank in range(20)]


def test_there_and_back(tmp_path: Path) -> None:
    index = random_index(0)
    write_openai(index, tmp_path / "a", layer=4)
    found = read_openai(tmp_path / "a", layer=4)
    assert list(found) == index.live.tolist()
    assert found[0] == neuron_record(index, 0, layer=4)
    assert found[0]["dataclass_name"] == "NeuronRecord"
    assert found[0]["neuron_id"] == {"dataclass_name": "NeuronId", "neuron_index": 0, "layer_index": 4}
    with pytest.raises(MechlabError, match="no neuron records"):
        read_openai(tmp_path / "a")
    file = tmp_path / "a" / "4" / "0.json"
    record = json.loads(file.read_text())
    del record["mean"]
    file.write_text(json.dumps(record))
    with pytest.raises(MechlabError, match="field mean is missing"):
        read_openai(tmp_path / "a", layer=4)


def test_puzzles_there_and_back(tmp_path: Path) -> None:
    content = {
        "cats": {
            "name": "cats",
            "explanation": "cats 🙂",
            "sentences": [["a", [" cat", 9]], ["none"]],
            "false_explanations": ["dogs"],
        }
    }
    file = tmp_path / "puzzles.json"
    file.write_text(json.dumps(content))
    found = read_puzzles(file)
    sentences = ((("a", 0.0), (" cat", 9.0)), (("none", 0.0),))
    assert found == {"cats": Puzzle("cats", "cats 🙂", sentences, ("dogs",))}
    write_puzzles(found, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == content
    assert read_puzzles(tmp_path / "again.json") == found
    file.write_text('{"a": {}}')
    with pytest.raises(MechlabError, match="field name is missing"):
        read_puzzles(file)
