"""Latents indexed from stores and running models, against documents encoded one at a time."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from indexed import dense, naive_rows, places

from mechlab.activations import harvest as harvest_module
from mechlab.activations.harvest import harvest
from mechlab.activations.selection import Selection
from mechlab.activations.store import Store
from mechlab.artifacts import open_artifact
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.errors import MechlabError
from mechlab.features.sources import index_dictionary, model_rows, pair_rows, store_rows
from mechlab.features.sources.block import Block, apart, passages, regrouped
from mechlab.models.subject import Subject, load_model
from mechlab.sae.abstopk import AbsTopKConfig
from mechlab.sae.codes import scatter
from mechlab.sae.config import TrainConfig
from mechlab.sae.dictionary import Dictionary, train_sae
from mechlab.sae.pairs import pairs
from mechlab.sae.topk import TopKConfig
from tiny import save_tiny_model

RESID, NEXT = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
IN, OUT = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
SITES = [RESID, NEXT, IN, OUT]
ROWS = 5000
SHORT = {"k": 4, "tokens": 512, "batch_size": 256}
CONFIGS: dict[str, TrainConfig] = {
    "sae": TopKConfig(site=RESID, d_sae=400, **SHORT),  # some die
    "transcoder": TopKConfig(site=IN, target=OUT, d_sae=48, skip=True, **SHORT),
    "crosscoder": TopKConfig(site=f"{RESID},{NEXT}", d_sae=48, **SHORT),
    "abstopk": AbsTopKConfig(site=RESID, d_sae=48, **SHORT),
}


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


@pytest.fixture(scope="module")
def store(subject: Subject, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return harvest(subject, corpus, SITES, tmp_path_factory.mktemp("store") / "s", tokens=ROWS)


@pytest.fixture(scope="module")
def dictionaries(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dictionary]:
    folder = tmp_path_factory.mktemp("dictionaries")
    return {name: train_sae(store, folder / name, config) for name, config in CONFIGS.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_index_holds_what_dense_encoding_gives(
    subject: Subject,
    corpus: Corpus,
    store: Store,
    dictionaries: dict[str, Dictionary],
    name: str,
    tmp_path: Path,
) -> None:
    dictionary = dictionaries[name]
    signs = name == "abstopk"
    index = index_dictionary(dictionary, store_rows(store, subject), tmp_path / "i", signs=signs)
    rows, values = naive_rows(subject, corpus, list(dictionary.inputs), ROWS)
    assert places(index) == rows
    x = torch.cat([values[site] for site in dictionary.inputs], dim=1)
    codes = scatter(dictionary.sae.encode(x), dictionary.sae.d_sae)
    if signs:
        assert bool((codes < 0).any())
        codes = torch.cat([codes.clamp_min(0), (-codes).clamp_min(0)], dim=1)
    assert index.n_features == codes.shape[1]
    np.testing.assert_allclose(dense(index), codes.numpy(), atol=1e-5, rtol=1e-4)
    assert index.about["inputs"] == list(dictionary.inputs)
    assert subject.bos not in index.text.tokens
    if name == "sae":
        assert len(index.live) < index.n_features


def checksums(path: Path) -> dict[str, object]:
    return dict(open_artifact(path).manifest.files)


def test_shards_of_any_size_and_the_running_model_give_the_same_bytes(
    subject: Subject,
    corpus: Corpus,
    store: Store,
    dictionaries: dict[str, Dictionary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dictionary = dictionaries["sae"]
    index_dictionary(dictionary, store_rows(store, subject), tmp_path / "whole")
    wanted = checksums(tmp_path / "whole")
    monkeypatch.setattr(harvest_module, "_SHARD_ROWS", 300)
    batch = store.artifact.manifest.config["batch"]
    small = harvest(subject, corpus, RESID, tmp_path / "small", tokens=ROWS, batch=batch)
    monkeypatch.undo()
    index_dictionary(dictionary, store_rows(small, subject), tmp_path / "parts")
    assert checksums(tmp_path / "parts") == wanted
    running = model_rows(subject, corpus, tokens=ROWS)
    seen: list[tuple[int, int]] = []
    index_dictionary(dictionary, running, tmp_path / "live", progress=lambda *now: seen.append(now))
    assert checksums(tmp_path / "live") == wanted
    assert seen[-1] == (ROWS, ROWS)
    with_bos = harvest(subject, corpus, RESID, tmp_path / "bos", tokens=ROWS, select=Selection(bos=True))
    index = index_dictionary(dictionary, store_rows(with_bos, subject), tmp_path / "without")
    assert subject.bos not in index.text.tokens
    assert places(index) == naive_rows(subject, corpus, [RESID], len(index.text))[0]


def test_what_is_refused(
    subject: Subject,
    corpus: Corpus,
    store: Store,
    dictionaries: dict[str, Dictionary],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    other = load_model(tiny_model, dtype="bfloat16")
    out = tmp_path / "i"
    with pytest.raises(MechlabError, match="store comes from another model"):
        store_rows(store, other)
    with pytest.raises(MechlabError, match="text and dictionary come from different models"):
        index_dictionary(dictionaries["sae"], model_rows(other, corpus), out)
    with pytest.raises(MechlabError, match=r"latents have two signs: abstopk .*signs=True"):
        index_dictionary(dictionaries["abstopk"], store_rows(store, subject), out)
    only = harvest(subject, corpus, IN, tmp_path / "only", tokens=100)
    with pytest.raises(MechlabError, match=f"does not hold the site: {RESID} .it holds {IN}"):
        index_dictionary(dictionaries["sae"], store_rows(only, subject), out)
    assert not out.exists()


def test_a_crosscoder_of_two_models(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    other = load_model(save_tiny_model(tmp_path / "other", "gpt2", seed=1))
    a, b = (harvest(each, corpus, RESID, tmp_path / each.name[-4:], tokens=ROWS) for each in (subject, other))
    config = TopKConfig(site=f"A:{RESID},B:{RESID}", d_sae=48, **SHORT)
    dictionary = train_sae(pairs(a, b), tmp_path / "cross", config)
    index = index_dictionary(dictionary, pair_rows(a, b, (subject, other)), tmp_path / "i")
    parts = [naive_rows(each, corpus, [RESID], ROWS) for each in (subject, other)]
    assert places(index) == parts[0][0]
    x = torch.cat([values[RESID] for _, values in parts], dim=1)
    codes = scatter(dictionary.sae.encode(x), 48)
    np.testing.assert_allclose(dense(index), codes.numpy(), atol=1e-5, rtol=1e-4)
    with pytest.raises(MechlabError, match=r"dictionary reads two models: A:.* .use pair_rows"):
        index_dictionary(dictionary, store_rows(a, subject), tmp_path / "no")
    with pytest.raises(MechlabError, match="come from different models"):
        index_dictionary(dictionary, pair_rows(b, a, (other, subject)), tmp_path / "no")


def block(context: list[int], position: list[int], document: list[int]) -> Block:
    columns = (np.array(column) for column in (context, context, position, document))
    return Block(*columns, {})


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_holes_inside_a_document_begin_a_new_passage(size: int) -> None:
    context = [0, 0, 0, 0, 1, 1, 1, 1, 2]
    position = [1, 2, 5, 6, 1, 3, 4, 9, 1]
    document = [0, 0, 0, 0, 0, 0, 1, 1, 1]
    whole = block(context, position, document)
    found = list(apart(whole.cut(at, min(at + size, 9)) for at in range(0, 9, size)))
    got = np.concatenate([each.context for each in found]).tolist()
    assert got == [0, 0, 1, 1, 2, 3, 3, 4, 5]
    # Where documents change no number is needed: 3, 3 are of two.
    lengths = [len(each) for each in passages(found)]
    assert lengths == [2, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_regrouping_keeps_rows_and_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(0, 60))
    whole = Block(*(np.arange(rows) for _ in range(4)), {"x": torch.arange(rows)[:, None].float()})
    cuts = [0, *sorted(generator.integers(0, rows + 1, 5).tolist()), rows]
    parts = [whole.cut(a, b) for a, b in itertools.pairwise(cuts)]
    found = list(regrouped(parts, 7))
    assert [len(each) for each in found[:-1]] == [7] * (len(found) - 1)
    assert sum(map(len, found)) == rows
    if rows:
        assert np.concatenate([each.tokens for each in found]).tolist() == list(range(rows))
        assert torch.equal(torch.cat([each.values["x"] for each in found]), whole.values["x"])
