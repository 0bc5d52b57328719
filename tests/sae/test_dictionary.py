"""Dictionaries on disk and their evaluation inside a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mechlab.activations.capture import read_sites
from mechlab.activations.harvest import harvest
from mechlab.activations.store import Store
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.data.stream import contexts
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject, load_model
from mechlab.sae.batchtopk import BatchTopKConfig
from mechlab.sae.codes import scatter
from mechlab.sae.dictionary import Dictionary, encode_store, load_sae, train_sae, train_saes
from mechlab.sae.evaluate import evaluate
from mechlab.sae.jumprelu import JumpReLUConfig
from mechlab.sae.matryoshka import MatryoshkaConfig
from mechlab.sae.source import mixed
from mechlab.sae.topk import TopK, TopKConfig

SITE = "blocks.0.hook_resid_post"
CONFIG = TopKConfig(site=SITE, d_sae=48, k=4, tokens=40_000, batch_size=256)


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


@pytest.fixture(scope="module")
def store(subject: Subject, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return harvest(subject, corpus, SITE, tmp_path_factory.mktemp("store") / "s", tokens=10_000)


@pytest.fixture(scope="module")
def dictionary(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Dictionary:
    return train_sae(store, tmp_path_factory.mktemp("sae") / "d", CONFIG)


def test_round_trip(dictionary: Dictionary, store: Store) -> None:
    again = load_sae(dictionary.artifact.path)
    assert again.site == SITE
    assert all(
        torch.equal(a, b) for a, b in zip(again.sae.parameters(), dictionary.sae.parameters(), strict=True)
    )
    torch.testing.assert_close(again.mean, store.activations(SITE).mean(0))
    lines = again.artifact.file("metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["fve"] == again.artifact.manifest.facts["fve"]


@pytest.mark.slow
def test_saelens_reads_the_directory_and_rebuilds_the_same(dictionary: Dictionary, store: Store) -> None:
    from sae_lens import SAE

    theirs = SAE.load_from_disk(str(dictionary.artifact.path), device="cpu")
    x = store.activations(SITE)[:200]
    torch.testing.assert_close(theirs(x), dictionary.sae(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        theirs.encode(x), scatter(dictionary.sae.encode(x), dictionary.sae.d_sae), atol=1e-5, rtol=1e-5
    )


def test_batches_of_a_store_are_all_of_full_size(store: Store) -> None:
    """A step of the few rows that an epoch leaves over would count like any other."""
    with mixed(store, (SITE,))(256, 0, None) as batches:
        sizes = [len(next(batches)) for _ in range(90)]
        state = batches.state()
        following = next(batches).row
    assert set(sizes) == {256}
    with mixed(store, (SITE,))(256, 0, state) as batches:
        assert torch.equal(next(batches).row, following)
    with pytest.raises(MechlabError, match="fewer rows than one batch: 10000"):
        mixed(store, (SITE,))(10_001, 0, None)


def test_figures_are_logged_under_their_own_dictionary(store: Store, tmp_path: Path) -> None:
    """Also when the first of them is finished already."""
    short = CONFIG.model_copy(update={"tokens": 512})
    train_sae(store, tmp_path / "a", short)
    seen = []
    train_saes(
        store,
        {tmp_path / "a": short, tmp_path / "b": short.model_copy(update={"k": 3})},
        log=lambda number, row: seen.append((number, row["l0"])),
    )
    assert seen == [(1, pytest.approx(3, abs=0.1))] * 2


def test_what_a_training_can_start_from(store: Store, tmp_path: Path) -> None:
    settings = {"site": SITE, "d_sae": 48, "tokens": 20_000, "batch_size": 256}
    made = train_sae(store, tmp_path / "b", BatchTopKConfig(**settings, k=4))
    made.check_start(BatchTopKConfig(**settings))
    made.check_start(JumpReLUConfig(**settings))
    for change, name in (({"d_sae": 49}, "d_sae"), ({"site": "x"}, "site"), ({"target": "x"}, "target")):
        with pytest.raises(MechlabError, match=f"start from has another {name}"):
            made.check_start(BatchTopKConfig(**{**settings, **change}))
    with pytest.raises(MechlabError, match="another arch: jumprelu, not matryoshka"):
        made.check_start(MatryoshkaConfig(**settings))
    (again,) = train_saes(store, {tmp_path / "c": BatchTopKConfig(**settings, k=4)}, start=[made.sae])
    first = json.loads(again.artifact.file("metrics.jsonl").read_text().splitlines()[0])
    assert first["fve"] > made.artifact.manifest.facts["fve"] - 0.1


def test_another_model_is_refused(dictionary: Dictionary, corpus: Corpus, tiny_model: Path) -> None:
    other = load_model(tiny_model, dtype="bfloat16")
    with pytest.raises(MechlabError, match="trained on another model: fingerprint"):
        evaluate(other, dictionary, corpus)


def test_encode_store_gives_codes_of_every_row(dictionary: Dictionary, store: Store) -> None:
    codes = encode_store(dictionary, store, batch=999)
    direct = dictionary.sae.encode(store.activations(SITE))
    assert torch.equal(codes.indices, direct.indices)
    torch.testing.assert_close(codes.values, direct.values)
    assert len(encode_store(dictionary, store, rows=7).values) == 7


def test_evaluation_equals_a_slow_computation(
    subject: Subject, dictionary: Dictionary, corpus: Corpus
) -> None:
    got = evaluate(subject, dictionary, corpus, split="validation", tokens=10**6)
    rows, losses, fired = [], {name: [] for name in ("clean", "spliced", "mean", "zero")}, set()
    active = 0
    for batch in contexts(corpus, "validation", subject.tokenizer, n_ctx=subject.n_ctx, batch=1):
        tokens = batch.tokens
        x = read_sites(subject, tokens, [SITE])[SITE][0, 1:]
        codes = dictionary.sae.encode(x)
        active += int((codes.values > 0).sum())
        fired |= set(codes.indices[codes.values > 0].tolist())
        rows.append((x, dictionary.sae.decode(codes)))
        replaced = {
            "clean": x,
            "spliced": rows[-1][1],
            "mean": dictionary.mean.expand_as(x),
            "zero": torch.zeros_like(x),
        }
        for name, value in replaced.items():

            def edit(old: torch.Tensor, value: torch.Tensor = value) -> torch.Tensor:
                return torch.cat([old[:, :1], value[None]], dim=1)

            with editing(subject, SITE, edit):
                logits = subject.logits(tokens)
            losses[name].append(cross_entropy(logits[0, 1:-1], tokens[0, 2:], reduction="none"))
    x, made = (torch.cat(column) for column in zip(*rows, strict=True))
    assert got.tokens == len(x)
    assert got.l0.value == pytest.approx(active / len(x))
    assert got.dead == pytest.approx(1 - len(fired) / 48)
    fve = 1 - ((x - made) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert got.fve.value == pytest.approx(float(fve), abs=1e-5)
    ce = {name: float(torch.cat(parts).mean()) for name, parts in losses.items()}
    assert got.ce == pytest.approx(ce, abs=1e-5)
    for score, ablated in ((got.ce_recovered, "mean"), (got.ce_recovered_zero, "zero")):
        want = (ce[ablated] - ce["spliced"]) / (ce[ablated] - ce["clean"])
        assert score.value == pytest.approx(want, abs=2e-4)
        assert score.low <= score.value <= score.high
    assert got.documents == len(list(corpus.documents("validation")))


def test_a_perfect_and_a_useless_dictionary(subject: Subject, dictionary: Dictionary, corpus: Corpus) -> None:
    from dataclasses import replace

    perfect = TopK(TopKConfig(d_sae=32, k=32), 16)
    with torch.no_grad():  # x = relu(x) - relu(-x)
        perfect.W_enc.copy_(torch.cat([torch.eye(16), -torch.eye(16)], dim=1))
        perfect.W_dec.copy_(torch.cat([torch.eye(16), -torch.eye(16)], dim=0))
    got = evaluate(subject, replace(dictionary, sae=perfect), corpus, tokens=500)
    assert got.fve.value == pytest.approx(1, abs=1e-6)
    assert got.ce_recovered.value == pytest.approx(1, abs=1e-4)
    useless = TopK(TopKConfig(d_sae=4, k=1), 16)
    with torch.no_grad():
        useless.b_dec.copy_(dictionary.mean)
    got = evaluate(subject, replace(dictionary, sae=useless), corpus, tokens=500)
    assert got.fve.value < 0.05
    assert got.ce_recovered.value == pytest.approx(0, abs=1e-4)
    assert got.dead == 1.0
    assert np.isfinite(got.l0.value)


def test_refusals(store: Store, tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="activations lack the site: hook_embed"):
        train_sae(store, tmp_path / "d", CONFIG.model_copy(update={"site": "hook_embed"}))
    with pytest.raises(MechlabError, match="no dictionary here"):
        load_sae(tmp_path)
    with pytest.raises(MechlabError, match="holds another kind of artifact"):
        train_sae(store, store.artifact.path, CONFIG)
