"""Rows of labelled tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_concepts import planted

from mechlab.activations.capture import activations
from mechlab.data import fable
from mechlab.errors import MechlabError
from mechlab.models.subject import load_model
from mechlab.sae.codes import Codes, scatter
from mechlab.sae.metrics.rows import (
    balanced,
    columns,
    concept_rows,
    mean_difference,
    random_codes,
    scorable,
    train_rows,
)

SITE = "blocks.1.hook_resid_post"


def test_rows_of_fable_align_with_their_tokens() -> None:
    subject = load_model("fable")
    rows = concept_rows(subject, SITE, documents=3, start=5)
    documents = list(fable.documents("validation", count=3, start=5))
    assert rows.documents.tolist() == [d.id for d in documents for _ in d.tokens]
    vocabulary = subject.tokenizer.get_vocab()
    assert rows.tokens.tolist() == [vocabulary[token] for d in documents for token in d.tokens]
    assert np.array_equal(rows.labels.numpy(), np.concatenate([d.concepts for d in documents]))
    assert rows.concepts[fable.CONCEPT_INDEX["person_name"]] == "person_name"
    last = activations(subject, documents[2].text, SITE)[SITE][0, 1:]
    torch.testing.assert_close(rows.activations[SITE][-len(last) :], last)


def test_another_tokenizer_is_refused(stories_model) -> None:
    with pytest.raises(MechlabError, match="Fable's words"):
        concept_rows(load_model(stories_model), "blocks.0.hook_resid_post", documents=1)


def test_documents_are_never_divided() -> None:
    documents = torch.arange(9).repeat_interleave(4)
    train = train_rows(documents, seed=3)
    assert not set(documents[train].tolist()) & set(documents[~train].tolist())
    assert torch.equal(train, train_rows(documents, seed=3))
    assert not torch.equal(train, train_rows(documents, seed=4))
    with pytest.raises(MechlabError, match="cannot be split by document"):
        train_rows(torch.zeros(5, dtype=torch.long))


def test_balanced_rows_come_from_the_pool_in_equal_numbers() -> None:
    label = torch.rand(500, generator=torch.Generator().manual_seed(0)) < 0.2
    pool = torch.arange(500) % 2 == 0
    rows = balanced(label, pool, 4000, torch.Generator().manual_seed(0))
    assert pool[rows].all()
    assert len(rows.unique()) == len(rows) == 2 * int((label & pool).sum())
    assert int(label[rows].sum()) * 2 == len(rows)
    assert len(balanced(label, pool, 20, torch.Generator())) == 20


def test_rare_concepts_are_named() -> None:
    labels = torch.zeros(100, 2, dtype=torch.bool)
    labels[::2, 1] = True
    train = torch.arange(100) < 50
    assert scorable(labels, train) == ([1], {0: "rarer class has only 0 train rows and 0 held-out rows"})
    with pytest.raises(MechlabError, match="no concept can be scored"):
        scorable(labels[:, :1], train)


@pytest.mark.parametrize("seed", range(3))
def test_columns_and_mean_difference_equal_dense_ones(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(50, 4, generator=generator)
    indices = torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(50)])
    values[::3, 3], indices[::3, 3] = 0, indices[::3, 0]  # unused slots may name a latent in use
    codes = Codes(values, indices)
    dense = scatter(codes, 9)
    latents = torch.tensor([7, 0, 3])
    assert torch.equal(columns(codes, latents), dense[:, latents])
    label = torch.rand(50, generator=generator) < 0.4
    want = dense[label].mean(0) - dense[~label].mean(0)
    torch.testing.assert_close(mean_difference(codes, label, 9), want)


def test_a_random_dictionary_is_as_sparse() -> None:
    data = planted()
    codes = random_codes(data.x, data.codes, 200, seed=1)
    assert (codes.l0() <= data.codes.l0()).all()
    assert float(codes.l0().float().mean()) == pytest.approx(float(data.codes.l0().float().mean()), rel=0.01)
    again = random_codes(data.x, data.codes, 200, seed=1)
    assert torch.equal(codes.values, again.values)
