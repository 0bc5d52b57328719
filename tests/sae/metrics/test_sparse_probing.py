"""Sparse probing."""

from __future__ import annotations

import pytest
import torch
from planted_concepts import planted

from mechlab.errors import MechlabError
from mechlab.sae.codes import sparse
from mechlab.sae.metrics.probing import sparse_probing


def test_planted_latents_are_found() -> None:
    data = planted()
    got = sparse_probing(data.codes, data.x, data.labels, data.documents, data.d_sae, ks=(1, 2))
    assert got.concepts == (0, 1, 2)
    assert got.latents[1].tolist() == [[0], [1], [2]]
    assert got.latents[2].shape == (3, 2)
    for figure in (got.sparse[1].accuracy, got.sparse[1].f1, got.sparse[2].auroc):
        assert figure.value > 0.99
        assert figure.beats_null
    assert got.dense.accuracy.value > 0.95
    assert got.random[1].accuracy.value < 0.85
    assert got.random[1].accuracy.value > 0.5


def test_two_latents_together_tell_what_neither_does() -> None:
    data = planted(seed=1)
    dense = torch.zeros(len(data.x), data.d_sae)
    # Concept 0 is split: latent 5 fires on its even rows, latent 6 on the odd ones.
    even = torch.arange(len(data.x)) % 2 == 0
    dense[:, 5], dense[:, 6] = (data.labels[:, 0] & even).float(), (data.labels[:, 0] & ~even).float()
    codes = sparse(dense)
    got = sparse_probing(codes, data.x, data.labels[:, :1], data.documents, data.d_sae, ks=(1, 2))
    assert set(got.latents[2][0].tolist()) == {5, 6}
    assert 0.7 < got.sparse[1].accuracy.value < 0.8
    assert got.sparse[2].accuracy.value == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_labels_stand_at_chance(seed: int) -> None:
    data = planted(6, seed=seed)
    got = sparse_probing(data.codes, data.x, data.labels, data.documents, data.d_sae, ks=(1,), seed=seed)
    for figure in (got.sparse[1].accuracy, got.dense.auroc, got.random[1].accuracy, got.dense.f1):
        assert figure.null is not None
        assert figure.null.value == pytest.approx(figure.chance, abs=0.06)
    assert not got.sparse[1].accuracy.null.low > 0.5 + 0.02


def test_codes_without_meaning_stand_at_chance() -> None:
    data = planted(seed=2)
    mixed = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0))
    got = sparse_probing(
        type(data.codes)(data.codes.values[mixed], data.codes.indices[mixed]),
        data.x,
        data.labels,
        data.documents,
        data.d_sae,
        ks=(5,),
    )
    assert got.sparse[5].accuracy.value == pytest.approx(0.5, abs=0.05)
    assert not got.sparse[5].accuracy.beats_null


def test_rare_concepts_and_wrong_k() -> None:
    data = planted(2)
    labels = torch.cat([torch.zeros(len(data.x), 1, dtype=torch.bool), data.labels], dim=1)
    got = sparse_probing(data.codes, data.x, labels, data.documents, data.d_sae, ks=(1,))
    assert got.concepts == (1, 2)
    assert "0 train rows" in got.unscored[0]
    with pytest.raises(MechlabError, match="k is out of range"):
        sparse_probing(data.codes, data.x, labels, data.documents, data.d_sae, ks=(0,))
