"""Neurons, heads and directions as features: thresholds, signs, and values against the model's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from indexed import dense, naive_rows, places

from mechlab.data.corpus import Corpus, open_corpus
from mechlab.errors import MechlabError
from mechlab.features.sources import index_heads, index_site, index_vectors, model_rows
from mechlab.features.sources.rows import ModelRows
from mechlab.models.subject import Subject, load_model
from mechlab.models.weights import read_weights
from tiny import save_tiny_model

ROWS, SITE = 3000, "blocks.1.mlp.hook_post"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model") / "llama", "llama"))


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


@pytest.fixture(scope="module")
def source(subject: Subject, corpus: Corpus) -> ModelRows:
    return model_rows(subject, corpus, tokens=ROWS)


def test_neurons_of_both_signs(subject: Subject, corpus: Corpus, source: ModelRows, tmp_path: Path) -> None:
    rows, values = naive_rows(subject, corpus, [SITE], ROWS)
    x = values[SITE].numpy()
    both = np.concatenate([x, -x], axis=1)
    index = index_site(SITE, source, tmp_path / "all", share=None, signs=True)
    assert places(index) == rows
    np.testing.assert_allclose(dense(index), both.clip(0), atol=1e-5)
    above = index_site(SITE, source, tmp_path / "above", threshold=0.5, share=None)
    # Away from the bound, where rounding decides.
    sure = np.abs(x - 0.5) > 1e-4
    np.testing.assert_allclose(dense(above)[sure], np.where(x > 0.5, x, 0)[sure], atol=1e-5)


def test_a_share_is_kept_of_every_neuron(
    subject: Subject, corpus: Corpus, source: ModelRows, tmp_path: Path
) -> None:
    index = index_site(SITE, source, tmp_path / "i", share=0.05)
    x = naive_rows(subject, corpus, [SITE], ROWS)[1][SITE].numpy()
    positive = (x > 0).sum(0)
    assert (np.abs(index.active - np.minimum(positive, 0.05 * ROWS)) <= 0.01 * ROWS).all()
    found = dense(index)
    for neuron in range(x.shape[1]):
        kept = found[:, neuron] > 0
        assert x[kept, neuron].min() >= x[~kept, neuron].max() - 1e-5


@pytest.mark.parametrize("layers", [None, [1]])
def test_heads_by_the_norm_of_what_they_write(
    subject: Subject, corpus: Corpus, source: ModelRows, layers: list[int] | None, tmp_path: Path
) -> None:
    index = index_heads(subject, source, tmp_path / "i", layers=layers, share=None)
    chosen = layers or [0, 1]
    sites = [f"blocks.{layer}.attn.hook_z" for layer in chosen]
    values = naive_rows(subject, corpus, sites, ROWS)[1]
    attentions = read_weights(subject.module).attentions
    norms = [
        (values[site].view(ROWS, 4, 4)[:, head] @ attentions[layer].output[head]).norm(dim=1)
        for site, layer in zip(sites, chosen, strict=True)
        for head in range(4)
    ]
    np.testing.assert_allclose(dense(index), torch.stack(norms, dim=1).numpy(), atol=1e-4, rtol=1e-3)
    plain = index_heads(subject, source, tmp_path / "z", layers=layers, share=None, norm="z")
    own = torch.cat([values[site].view(ROWS, 4, 4).norm(dim=2) for site in sites], dim=1)
    np.testing.assert_allclose(dense(plain), own.numpy(), atol=1e-5, rtol=1e-4)


def test_directions_with_a_bias(subject: Subject, corpus: Corpus, source: ModelRows, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, bias = torch.randn(5, 16, generator=generator), torch.randn(5, generator=generator)
    site = "blocks.0.hook_resid_post"
    index = index_vectors(vectors, site, source, tmp_path / "i", bias=bias, names=list("abcde"))
    x = naive_rows(subject, corpus, [site], ROWS)[1][site]
    np.testing.assert_allclose(dense(index), (x @ vectors.T + bias).relu().numpy(), atol=1e-4)
    assert index.about["names"] == list("abcde")
    with pytest.raises(MechlabError, match="made from another vectors"):
        index_vectors(vectors + 1, site, source, tmp_path / "i", bias=bias, names=list("abcde"))


def test_what_is_refused(subject: Subject, source: ModelRows, tmp_path: Path) -> None:
    out = tmp_path / "i"
    with pytest.raises(MechlabError, match="threshold is negative"):
        index_site(SITE, source, out, threshold=-1.0)
    with pytest.raises(MechlabError, match="share is out of range: 2"):
        index_site(SITE, source, out, share=2.0)
    with pytest.raises(MechlabError, match="no site"):
        index_site("blocks.1.mlp.hook_pots", source, out)
    with pytest.raises(MechlabError, match=r"layers do not exist: \[2\]"):
        index_heads(subject, source, out, layers=[2])
    with pytest.raises(MechlabError, match=r"layers do not exist: \[1, 1\]"):
        index_heads(subject, source, out, layers=[1, 1])
    with pytest.raises(MechlabError, match="patterns have no coordinates"):
        index_site("blocks.0.attn.hook_pattern", source, out)
    with pytest.raises(MechlabError, match="text comes from another model than the heads"):
        index_heads(load_model(save_tiny_model(tmp_path / "other", "gpt2")), source, out)
    with pytest.raises(MechlabError, match="another size than"):
        index_vectors(torch.ones(2, 3), SITE, source, out)
    with pytest.raises(MechlabError, match="vectors and names differ in number"):
        index_vectors(torch.ones(2, 16), SITE, source, out, names=["one"])
    assert not out.exists()
