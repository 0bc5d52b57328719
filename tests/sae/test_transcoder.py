"""Transcoders end to end: trained on two sites, saved, put in the MLP's place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechlab.activations.capture import read_sites
from mechlab.activations.harvest import harvest
from mechlab.activations.live import live
from mechlab.activations.store import Store
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.models.subject import Subject, load_model
from mechlab.sae import source as source_module
from mechlab.sae.codes import scatter
from mechlab.sae.dictionary import load_sae, train_sae
from mechlab.sae.relu import ReluConfig
from mechlab.sae.splice import splicing
from mechlab.sae.topk import TopKConfig

IN, OUT = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
SHARED = {"site": IN, "target": OUT, "d_sae": 64, "tokens": 60_000, "batch_size": 256, "lr": 5e-3}


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


@pytest.fixture(scope="module")
def store(subject: Subject, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return harvest(subject, corpus, [IN, OUT], tmp_path_factory.mktemp("store") / "s", tokens=8000)


@pytest.mark.parametrize(
    "config",
    [
        TopKConfig(**SHARED, k=8),
        TopKConfig(**SHARED, k=8, skip=True),
        ReluConfig(**SHARED, sparsity=0.1, skip=True, decoder="free"),
    ],
    ids=["topk", "topk-skip", "relu-skip"],
)
def test_a_trained_transcoder_takes_the_mlps_place(
    subject: Subject, corpus: Corpus, store: Store, tmp_path: Path, config: TopKConfig
) -> None:
    dictionary = train_sae(store, tmp_path / "t", config)
    sae = load_sae(tmp_path / "t").sae
    assert not sae.centred
    assert (dictionary.inputs, dictionary.outputs) == ((IN,), (OUT,))
    torch.testing.assert_close(dictionary.mean, store.activations(OUT).mean(0), atol=1e-5, rtol=1e-5)
    x, y = store.activations(IN), store.activations(OUT)
    made = sae(x)
    fve = 1 - float((y - made).pow(2).sum() / (y - y.mean(0)).pow(2).sum())
    # In the activations' own units it explains what it explained in those of training.
    assert fve == pytest.approx(dictionary.artifact.manifest.facts["fve"], abs=0.05)
    assert fve > 0.6
    dense = scatter(sae.encode(x), 64) @ sae.W_dec + sae.b_dec
    if config.skip:
        assert sae.W_skip is not None
        assert float(sae.W_skip.abs().max()) > 0.01
        dense = dense + x @ sae.W_skip.T
    torch.testing.assert_close(made, dense, atol=1e-4, rtol=1e-4)
    tokens = subject.tokens("the cat sat on a mat . it fell")[None]
    with splicing(subject, dictionary, error=False):
        inside = read_sites(subject, tokens, [IN, OUT])
        spliced = subject.logits(tokens)
    torch.testing.assert_close(inside[OUT][0], sae(inside[IN][0]), atol=1e-4, rtol=1e-4)
    clean = subject.logits(tokens)
    error = (clean - spliced).norm()
    with splicing(subject, dictionary, error=False, ablate=range(64)):
        assert (clean - subject.logits(tokens)).norm() > error


def test_a_live_model_trains_what_its_store_does_up_to_the_order(
    subject: Subject, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "BUFFER", 1024)  # a full ring takes a while to fill
    config = TopKConfig(**{**SHARED, "tokens": 8000}, k=8, skip=True)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done >= total * 0.8:
            raise Stopped

    whole = train_sae(live(subject, corpus, [IN, OUT]), tmp_path / "whole", config)
    with pytest.raises(Stopped):
        train_sae(live(subject, corpus, [IN, OUT]), tmp_path / "halves", config, progress=stop)
    # Resumed from a checkpoint that holds the live model's place.
    assert list((tmp_path / "halves" / ".partial").rglob("checkpoint.safetensors"))
    halves = train_sae(live(subject, corpus, [IN, OUT]), tmp_path / "halves", config)
    for one, other in zip(whole.sae.parameters(), halves.sae.parameters(), strict=True):
        assert torch.equal(one, other)
