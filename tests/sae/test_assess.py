"""All groups of metrics on a dictionary of the bundled model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechlab.activations.harvest import harvest
from mechlab.activations.live import live
from mechlab.data.corpus import open_corpus
from mechlab.errors import MechlabError
from mechlab.models.subject import load_model
from mechlab.sae.assess import METRICS, _most_crossed, assess
from mechlab.sae.dictionary import Dictionary, train_sae
from mechlab.sae.formats.wrapped import Normalised
from mechlab.sae.topk import TopKConfig

SITE = "blocks.2.hook_resid_post"


@pytest.mark.slow
def test_every_group_beats_its_control(tmp_path: Path) -> None:
    subject, corpus = load_model("fable"), open_corpus("fable")
    store = harvest(subject, corpus, SITE, tmp_path / "store", tokens=60_000)
    config = TopKConfig(site=SITE, d_sae=512, k=16, tokens=300_000)
    dictionary = train_sae(store, tmp_path / "sae", config)
    found = assess(subject, dictionary, corpus, metrics=METRICS, tokens=5000, documents=100)
    assert set(found) == set(METRICS)
    json.dumps(found)
    for k in ("1", "2", "5"):
        accuracy = found["probing"]["accuracy"][k]
        assert accuracy["value"] > found["probing"]["random"][k]["value"]
        assert accuracy["low"] > 0.6
        assert accuracy["null"]["value"] == pytest.approx(0.5, abs=0.05)
    for score in (found["latents"]["coverage"], found["board"]["f1"]):
        assert score["low"] > score["null"]["value"]
    assert found["model"]["fve"]["value"] > 0.6
    assert 0 <= found["absorption"]["fraction"]["value"] <= 1


def test_the_most_crossed_pair_by_hand() -> None:
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)
    assert sorted(_most_crossed(labels)) == [0, 1]


def test_refusals(tmp_path: Path, tiny_model: Path, tiny_corpus: Path) -> None:
    subject, corpus = load_model(tiny_model), open_corpus(tiny_corpus)
    site = "blocks.0.hook_resid_post"
    store = harvest(subject, corpus, site, tmp_path / "store", tokens=4000)
    config = TopKConfig(site=site, d_sae=32, k=4, tokens=4000, batch_size=256)
    dictionary = train_sae(store, tmp_path / "sae", config)
    with pytest.raises(MechlabError, match="unknown metric: modell"):
        assess(subject, dictionary, corpus, metrics=["modell"])
    with pytest.raises(MechlabError, match="Fable's words"):
        assess(subject, dictionary, corpus, metrics=["probing"])

    # Before anything is computed: the model group would take long.
    def early(dictionary: Dictionary, metric: str, message: str) -> None:
        with pytest.raises(MechlabError, match=message):
            assess(
                subject, dictionary, corpus, metrics=["model", metric],
                progress=lambda *_: pytest.fail("something was computed"),
            )  # fmt: skip

    reads_two = replace(dictionary, inputs=(site, "blocks.1.hook_resid_post"))
    early(reads_two, "removal", "metric removal needs a dictionary that reconstructs one site")
    normal = replace(dictionary, sae=Normalised(dictionary.sae, "layer_norm"))
    early(normal, "absorption", "metric absorption needs a dictionary of raw activations")
    early(dictionary, "probing", "Fable's words")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_facts_are_swapped_where_the_model_is(tmp_path: Path) -> None:
    subject, corpus = load_model("fable", device="cuda"), open_corpus("fable")
    config = TopKConfig(site=SITE, d_sae=128, k=8, tokens=20_000)
    dictionary = train_sae(live(subject, corpus, SITE), tmp_path / "sae", config)
    found = assess(subject, dictionary, corpus, metrics=["ravel"], documents=20)
    assert 0 <= found["ravel"]["whole"]["value"] <= 1
