"""Best latent of a concept; coverage and reconstruction of a board."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_concepts import planted

from mechlab.data import fable
from mechlab.sae.codes import Codes, scatter, sparse
from mechlab.sae.metrics.latents import _Firings, best_latent_f1, board_reconstruction
from mechlab.sae.metrics.rows import train_rows


def test_sweep_by_hand() -> None:
    # Latent 0 fires 3, 2, 2, 1 on rows with labels 1, 1, 0, 0; latent 1 on the last row; latent 2 never.
    values = torch.tensor([[3.0, 0.0], [2.0, 0.0], [2.0, 0.0], [1.0, 4.0]])
    indices = torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1]])
    firings = _Firings.of(Codes(values, indices), 3)
    f1, threshold = firings.best_f1(torch.tensor([True, True, False, False]))
    # At 3: TP 1 of 2, F1 2/3. At 2: TP 2 of 3 firing, F1 4/5. At 1: TP 2 of 4, F1 2/3.
    torch.testing.assert_close(f1, torch.tensor([0.8, 0.0, 0.0], dtype=torch.double))
    assert threshold.tolist() == [1.0, torch.inf, torch.inf]


def slow_best(dense: torch.Tensor, label: torch.Tensor) -> tuple[float, float]:
    best, at = 0.0, float("inf")
    for threshold in sorted({0.0, *dense[dense > 0].tolist()}, reverse=True):
        said = dense > threshold
        f1 = float(2 * (said & label).sum() / (said.sum() + label.sum()))
        if f1 > best + 1e-9:
            best, at = f1, threshold
    return best, at


@pytest.mark.parametrize(("k", "d_sae", "seed"), [(2, 5, 0), (4, 30, 1), (3, 8, 2)])
def test_every_pair_equals_a_slow_sweep(k: int, d_sae: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = 240
    # Few distinct strengths: ties everywhere.
    values = torch.randint(0, 6, (rows, k), generator=generator).float()
    indices = torch.stack([torch.randperm(d_sae, generator=generator)[:k] for _ in range(rows)])
    labels = torch.rand(rows, 3, generator=generator) < torch.tensor([0.2, 0.5, 0.8])
    documents = torch.arange(12).repeat_interleave(20)
    codes = Codes(values, indices)
    got = best_latent_f1(codes, labels, documents, d_sae)
    dense, train = scatter(codes, d_sae), train_rows(documents)
    for c in range(3):
        for latent in range(d_sae):
            f1, threshold = slow_best(dense[train, latent], labels[train, c])
            assert float(got.train_f1[c, latent]) == pytest.approx(f1, abs=1e-6)
            assert float(got.threshold[c, latent]) == threshold
            said = dense[~train, latent] > threshold
            y = labels[~train, c]
            want = float(2 * (said & y).sum() / (said.sum() + y.sum()))
            assert float(got.held_out_f1[c, latent]) == pytest.approx(want, abs=1e-6)
    best = got.held_out_f1.gather(1, got.latent[:, None]).mean()
    assert got.f1.value == pytest.approx(float(best), abs=1e-6)


def test_planted_board_is_covered_and_rebuilt() -> None:
    data = planted(4)
    got = best_latent_f1(data.codes, data.labels, data.documents, data.d_sae)
    assert got.latent.tolist() == [0, 1, 2, 3]
    assert got.f1.value == 1.0
    assert got.f1.beats_null
    made = board_reconstruction(data.codes, data.labels, data.documents, data.d_sae)
    assert made.detectors.tolist() == [1, 1, 1, 1]
    assert made.f1.value == 1.0


def test_split_detectors_rebuild_what_no_single_one_covers() -> None:
    data = planted(1, seed=3)
    label = data.labels[:, 0]
    dense = torch.zeros(len(data.x), 6)
    third = torch.arange(len(data.x)) % 3
    for latent in range(3):
        dense[:, latent] = (label & (third == latent)) * 2.0
    # Latent 3 fires on all of them weakly, and elsewhere more weakly still: precise above a threshold only.
    dense[:, 3] = torch.where(label, 1.0, 0.5)
    single = best_latent_f1(sparse(dense[:, :3]), data.labels, data.documents, 6)
    assert single.f1.value < 0.6
    made = board_reconstruction(sparse(dense[:, :3]), data.labels, data.documents, 6)
    assert made.f1.value == 1.0
    made = board_reconstruction(sparse(dense), data.labels, data.documents, 6)
    assert made.detectors.tolist() == [4]
    assert made.f1.value == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_stand_at_chance(seed: int) -> None:
    data = planted(5, seed=seed)
    for got in (best_latent_f1, board_reconstruction):
        f1 = got(data.codes, data.labels, data.documents, data.d_sae, seed=seed).f1
        assert f1.null is not None
        assert f1.null.value == pytest.approx(f1.chance, abs=0.05)


def test_latents_that_never_fire() -> None:
    data = planted(1)
    got = best_latent_f1(sparse(torch.zeros(len(data.x), 4)), data.labels, data.documents, 4)
    assert got.f1.value == 0.0
    assert torch.isinf(got.threshold).all()


def test_word_latents_tell_fables_lexical_concepts() -> None:
    documents = list(fable.documents("validation", count=60))
    words = torch.tensor([fable.TOKEN_ID[token] for d in documents for token in d.tokens])
    labels = torch.from_numpy(np.concatenate([d.concepts for d in documents]))
    numbers = torch.tensor([d.id for d in documents for _ in d.tokens])
    codes = Codes(torch.ones(len(words), 1), words[:, None])
    got = best_latent_f1(codes, labels, numbers, len(fable.VOCABULARY))
    comma = got.concepts.index(fable.CONCEPT_INDEX["comma"])
    assert int(got.latent[comma]) == fable.TOKEN_ID[","]
    assert got.verdicts.f1(comma).value == 1.0
    many = got.concepts.index(fable.CONCEPT_INDEX["preposition"])
    assert got.verdicts.f1(many).value < 0.6  # one preposition of many
    assert got.f1.beats_null
    made = board_reconstruction(codes, labels, numbers, len(fable.VOCABULARY))
    assert int(made.detectors[many]) > 5
    assert made.verdicts.f1(many).value > got.verdicts.f1(many).value + 0.3


@pytest.mark.parametrize("seed", range(3))
def test_the_control_has_labels_of_whole_documents_where_the_labels_are_such(seed: int) -> None:
    """Latents that know the document look precise for any label of documents, and tell nothing of others."""
    generator = torch.Generator().manual_seed(seed)
    documents = torch.arange(60).repeat_interleave(30)
    x = torch.randn(60, 16, generator=generator)[documents]
    values, indices = (x @ torch.randn(16, 64, generator=generator)).topk(6, dim=1)
    labels = (torch.rand(60, 8, generator=generator) < 0.5)[documents]
    found = board_reconstruction(Codes(values.relu(), indices), labels, documents, 64, seed=seed)
    assert found.f1.value > 0.4
    assert found.f1.null is not None
    assert found.f1.null.value == pytest.approx(found.f1.value, abs=0.2)
