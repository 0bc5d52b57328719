"""Two models on the same tokens: the same rows, in stores and live, and dictionaries over both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechlab.activations.batches import shuffled
from mechlab.activations.harvest import harvest
from mechlab.activations.store import Store
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model
from mechlab.sae import source as source_module
from mechlab.sae.crosscoder import norm_shares
from mechlab.sae.dictionary import load_sae, train_sae
from mechlab.sae.pairs import StorePair, live_pairs, pairs
from mechlab.sae.topk import TopKConfig
from tiny import save_tiny_model

SITE = "blocks.0.hook_resid_post"
OTHER = "blocks.1.hook_resid_post"
BOTH = f"A:{SITE},B:{SITE}"
CONFIG = TopKConfig(site=BOTH, d_sae=24, k=3, tokens=20_000, batch_size=128)


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Subject]:
    """A GPT-2 and a Llama with the same tokens."""
    other = save_tiny_model(tmp_path_factory.mktemp("models") / "other", "llama", seed=1)
    return load_model(tiny_model), load_model(other)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


@pytest.fixture(scope="module")
def stores(
    models: tuple[Subject, Subject], corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Store]:
    """The second holds more sites, so its shards and runs are cut elsewhere, and in eight bits."""
    folder = tmp_path_factory.mktemp("stores")
    a = harvest(models[0], corpus, SITE, folder / "a", tokens=6000, n_ctx=24)
    b = harvest(models[1], corpus, [OTHER, SITE], folder / "b", tokens=6000, n_ctx=24, storage="int8")
    return a, b


@pytest.fixture(scope="module")
def pair(stores: tuple[Store, Store]) -> StorePair:
    return pairs(*stores)


def test_a_batch_holds_the_same_tokens_of_both(stores: tuple[Store, Store], pair: StorePair) -> None:
    assert pair.sites == (f"A:{SITE}", f"B:{OTHER}", f"B:{SITE}")
    a, b = stores
    with pair.opener([f"A:{SITE}", f"B:{SITE}"])(256, 3, None) as batches:
        seen = []
        for _ in range(6000 // 256 + 3):
            batch = next(batches)
            assert list(batch.values) == [f"A:{SITE}", f"B:{SITE}"]
            assert torch.equal(batch[f"A:{SITE}"], a.activations(SITE)[batch.row])
            assert torch.equal(batch[f"B:{SITE}"], b.activations(SITE)[batch.row])
            assert torch.equal(batch.document, a.column("document")[batch.row])
            seen.append(batch.row)
    rows = torch.cat(seen)
    # An epoch gives no row twice, and leaves out what does not fill a batch.
    epoch = a.n_rows // 256 * 256
    assert len(set(rows[:epoch].tolist())) == epoch
    with pair.opener([f"B:{OTHER}"])(100, 0, None) as batches:
        batch = next(batches)
    assert list(batch.values) == [f"B:{OTHER}"]
    assert torch.equal(batch[f"B:{OTHER}"], b.activations(OTHER)[batch.row])
    assert torch.equal(pair.activations(f"B:{SITE}"), b.activations(SITE))
    assert pair.mean_norm(f"A:{SITE}") == pytest.approx(
        float(a.activations(SITE).norm(dim=1).mean()), rel=1e-5
    )


def test_batches_go_on_from_a_state(pair: StorePair) -> None:
    opener = pair.opener([f"A:{SITE}", f"B:{SITE}"])
    with opener(128, 0, None) as batches:
        for _ in range(5):
            next(batches)
        state = batches.state()
        want = [next(batches) for _ in range(3)]
    with opener(128, 0, state) as batches:
        for one in want:
            other = next(batches)
            assert torch.equal(one.row, other.row)
            assert all(torch.equal(one[site], other[site]) for site in one.values)


def test_live_rows_are_those_of_the_stores(
    models: tuple[Subject, Subject], corpus: Corpus, stores: tuple[Store, Store]
) -> None:
    live = live_pairs(*models, corpus, f"A:{SITE}, B:{OTHER}", n_ctx=24, batch=8)
    assert live.sites == (f"A:{SITE}", f"B:{OTHER}")
    parts = []
    for chunk in live.chunks():
        parts.append(chunk)
        if len(parts) == 3:
            break
    first = torch.cat([part.values[f"A:{SITE}"] for part in parts])
    second = torch.cat([part.values[f"B:{OTHER}"] for part in parts])
    torch.testing.assert_close(first, stores[0].activations(SITE)[: len(first)], atol=1e-5, rtol=1e-5)
    # The store's are rounded to eight bits.
    torch.testing.assert_close(second, stores[1].activations(OTHER)[: len(second)], atol=0.05, rtol=0.05)
    again = next(iter(live.chunks(parts[2].place)))
    assert torch.equal(again.row, parts[2].row)
    assert torch.equal(again.values[f"B:{OTHER}"], parts[2].values[f"B:{OTHER}"])
    with shuffled(live, batch_size=64, buffer=512) as batches:
        batch = next(batches)
    rows = torch.cat([part.row for part in parts])
    inside = (batch.row <= rows[-1]).nonzero().squeeze(1)
    torch.testing.assert_close(batch[f"A:{SITE}"][inside], first[batch.row[inside]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch[f"B:{OTHER}"][inside], second[batch.row[inside]], atol=1e-5, rtol=1e-5)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["stores", "live"])
def test_a_crosscoder_of_two_models_is_trained_saved_and_resumed(
    models: tuple[Subject, Subject],
    corpus: Corpus,
    pair: StorePair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(source_module, "BUFFER", 1024)  # a full ring takes a while to fill
    config = TopKConfig(**{**CONFIG.model_dump(), "tokens": 6000})

    def source():
        if kind == "stores":
            return pair
        return live_pairs(*models, corpus, BOTH, n_ctx=24)

    made = train_sae(source(), tmp_path / "whole", config)
    assert made.inputs == made.outputs == (f"A:{SITE}", f"B:{SITE}")
    inputs = made.artifact.manifest.inputs
    assert (inputs["model_a"], inputs["model_b"]) == (models[0].fingerprint, models[1].fingerprint)
    again = load_sae(tmp_path / "whole")
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.sae(x), made.sae(x))
    torch.testing.assert_close(norm_shares(again.sae).sum(1), torch.ones(24))

    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done >= 0.7 * total:
            raise Stopped

    with pytest.raises(Stopped):
        train_sae(source(), tmp_path / "halves", config, progress=stop)
    resumed = train_sae(source(), tmp_path / "halves", config)
    for one, other in zip(made.sae.parameters(), resumed.sae.parameters(), strict=True):
        assert torch.equal(one, other)


def test_refusals(
    models: tuple[Subject, Subject],
    corpus: Corpus,
    stores: tuple[Store, Store],
    pair: StorePair,
    tmp_path: Path,
) -> None:
    shorter = harvest(models[1], corpus, SITE, tmp_path / "s", tokens=500, n_ctx=24)
    with pytest.raises(MechlabError, match=r"stores differ in their tokens: .*6,\d+ rows.*500 rows"):
        pairs(stores[0], shorter)
    cut = harvest(models[1], corpus, SITE, tmp_path / "c", tokens=6000, n_ctx=12)
    with pytest.raises(MechlabError, match="stores differ in their"):
        pairs(stores[0], cut)
    with pytest.raises(MechlabError, match=r"site does not say of which model: blocks.0"):
        pair.opener([SITE])
    with pytest.raises(MechlabError, match="store does not hold the site: hook_embed"):
        pair.opener(["A:hook_embed"])
    with pytest.raises(MechlabError, match="activations lack the site: A:hook_embed"):
        train_sae(pair, tmp_path / "d", TopKConfig(site="A:hook_embed", d_sae=8, k=2))
    with pytest.raises(MechlabError, match=r"models have different tokens: .*fable"):
        live_pairs(models[0], load_model("fable"), corpus, BOTH)
    with pytest.raises(MechlabError, match="has no site"):
        live_pairs(*models, corpus, "A:blocks.7.hook_resid_post,B:hook_embed")
