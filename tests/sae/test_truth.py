"""Figures against planted features: every one by hand, then against the reference package."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from mechlab.data.synthetic import Planted, Recipe, plant
from mechlab.errors import MechlabError
from mechlab.sae.codes import Codes, scatter, sparse
from mechlab.sae.truth import (
    GroundTruth,
    Observed,
    cosine,
    ground_truth,
    matched_cosine,
    measure,
    random_control,
)

# Three features on the axes; latents: twice the first, the second turned round, a mixture.
AXES = torch.eye(3)
LATENTS = torch.tensor([[3.0, 0, 0], [2.0, 0, 0], [0, -1.0, 0], [0, 0.6, 0.8]])
FEATURES = torch.tensor([[1.0, 0, 2.0], [1.0, 0, 0], [0, 3.0, 0], [0, 0, 0]])
# Latent 0 fires on rows 0, 2; latent 1 never; latent 2 on rows 1, 2 (once negative); latent 3 on row 0.
CODES = sparse(torch.tensor([[1.0, 0, 0, 1.0], [0, 0, -1.0, 0], [1.0, 0, 2.0, 0], [0, 0, 0, 0]]))


class Projection:
    """A plain dictionary: products with the encoder above a threshold."""

    def __init__(self, encoder: Tensor, decoder: Tensor, b_dec: Tensor) -> None:
        self.encoder, self.W_dec, self.b_dec = encoder, decoder, b_dec

    def encode(self, x: Tensor) -> Codes:
        made = (x - self.b_dec) @ self.encoder
        return sparse(made * (made > 1e-3))

    def decode(self, codes: Codes, x: Tensor) -> Tensor:
        return scatter(codes, len(self.W_dec)) @ self.W_dec + self.b_dec


def random_parts(seed: int, rows: int = 300) -> tuple[Tensor, Tensor, Observed]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = draw(rows, 6) + 2
    x[0] = 0
    dense = draw(rows, 8) * (draw(rows, 8) > 0.8)
    dense[:, 3] = 0
    features = draw(rows, 11).relu() * (draw(rows, 11) > 0.5)
    return draw(8, 6), draw(11, 6), Observed(x, x + 0.3 * draw(rows, 6), sparse(dense), features)


def measured(x: Tensor, x_hat: Tensor) -> GroundTruth:
    return ground_truth(LATENTS, AXES, [Observed(x, x_hat, CODES, FEATURES)])


@pytest.fixture(scope="module")
def figures() -> GroundTruth:
    x = torch.tensor([[3.0, 4, 0], [0, 2, 0], [0, 0, 0], [1, 0, 0]])
    x_hat = torch.tensor([[3.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    return measured(x, x_hat)


def test_cosine_of_nothing_is_nothing() -> None:
    torch.testing.assert_close(
        cosine(torch.tensor([[3.0, 4], [0, 0]]), torch.eye(2)), torch.tensor([[0.6, 0.8], [0, 0]])
    )


def test_mean_max_cosine_by_hand(figures: GroundTruth) -> None:
    # Latents: 1, 1, 0 (turned round: the best cosine is with another axis), 0.8.
    assert figures.mmcs_latents == pytest.approx(2.8 / 4)
    # Features: 1, 0.6, 0.8.
    assert figures.mmcs_features == pytest.approx(2.4 / 3)


def test_matching_by_hand(figures: GroundTruth) -> None:
    # Pairs: a first-axis latent, the turned one for the second, the mixture for the third.
    assert figures.mcc == pytest.approx((1 + 1 + 0.8) / 3)
    # Cosines .8 .6 / .6 0 (one turned round): taking the .8 first would leave 0 for the other.
    left = torch.eye(3)[:2]
    right = torch.tensor([[-0.8, -0.6, 0], [0.6, 0, 0.8]])
    assert matched_cosine(left, right) == pytest.approx(0.6)


def test_uniqueness_by_hand(figures: GroundTruth) -> None:
    # Best features 0, 0, 1, 2.
    assert figures.uniqueness == 3 / 4


def test_classification_by_hand(figures: GroundTruth) -> None:
    # Latent 0 for feature 0 (rows 0, 1): 1 of 2 hits, 1 of 2 found. Latent 1 never fires.
    # Latent 2 for feature 1 (row 2): 1 of 2 hits, 1 of 1. Latent 3 for feature 2 (row 0): 1, 1.
    assert figures.precision == pytest.approx((0.5 + 0 + 0.5 + 1) / 4)
    assert figures.recall == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert figures.f1 == pytest.approx((0.5 + 0 + 2 / 3 + 1) / 4)


def test_l0_and_dead_by_hand(figures: GroundTruth) -> None:
    assert (figures.l0, figures.l0_true, figures.dead, figures.rows) == (5 / 4, 4 / 4, 1 / 4, 4)


def test_shrinkage_and_variance_by_hand(figures: GroundTruth) -> None:
    # 3/5, 1/2, a row without direction left out, 1.
    assert figures.shrinkage == pytest.approx((0.6 + 0.5 + 1) / 3)
    # Squared errors 16, 1, 1, 0; mean row (1, 1.5, 0); squares 25, 4, 0, 1 less 4 times 3.25.
    assert figures.fve == pytest.approx(1 - 18 / (30 - 13))


def test_unused_slots_say_nothing() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    padded = Codes(
        torch.cat([CODES.values, torch.zeros(4, 2)], 1),
        torch.cat([CODES.indices, torch.full((4, 2), 1)], 1),
    )
    again = ground_truth(LATENTS, AXES, [Observed(x, x, padded, FEATURES)])
    assert again == measured(x, x)
    assert again.fve == 1.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_batches_do_not_matter(seed: int) -> None:
    decoder, directions, whole = random_parts(seed)
    cuts = [slice(0, 17), slice(17, 200), slice(200, None)]
    parts = [Observed(whole.x[c], whole.x_hat[c], whole.codes[c], whole.features[c]) for c in cuts]
    once, again = ground_truth(decoder, directions, [whole]), ground_truth(decoder, directions, parts)
    assert once.to_dict() == pytest.approx(again.to_dict())


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(
        Recipe(features=24, d=24, steps=400, lr=0.01, p_max=0.2, p_min=0.05, mean_last=2.0, bias=0.5)
    )


def test_the_true_dictionary_scores_full_marks_and_its_control_does_not(planted: Planted) -> None:
    # Nearly orthogonal; with the inverse as encoder, codes are the true activations.
    sae = Projection(planted.directions.inverse(), planted.directions, planted.bias)
    found = measure(sae, planted, rows=3000, batch=512, seed=1)
    for name in ("mmcs_latents", "mmcs_features", "mcc", "uniqueness", "precision", "recall", "f1", "fve"):
        assert getattr(found, name) == pytest.approx(1, abs=1e-3), name
    assert found.l0 == pytest.approx(found.l0_true)
    assert found.rows == 3000
    assert found.control is not None
    for name, most in {"mmcs_latents": 0.6, "mcc": 0.55, "uniqueness": 0.85, "f1": 0.45, "fve": 0.75}.items():
        assert getattr(found.control, name) < most, name
    assert json.loads(json.dumps(found.to_dict()))["control"]["mcc"] == found.control.mcc
    assert found == measure(sae, planted, rows=3000, batch=512, seed=1)


def test_random_directions_fare_the_worse_the_more_dimensions(planted: Planted) -> None:
    def chance(d: int) -> GroundTruth:
        model = plant(Recipe(features=64, d=d))
        batches = [model.batch(256, 0, i) for i in range(2)]
        return random_control(batches, model.directions, width=32, l0=3.0, generator=torch.Generator())

    few, many = chance(8), chance(256)
    assert few.l0 == pytest.approx(3, abs=0.1)
    assert many.mcc < 0.25 < few.mcc
    assert many.mmcs_latents < few.mmcs_latents
    # The best single scale cannot do worse than the mean alone.
    assert min(few.fve, many.fve) > -1e-6


def test_errors(planted: Planted) -> None:
    with pytest.raises(MechlabError, match="no rows"):
        ground_truth(torch.ones(2, 3), torch.ones(2, 3), [])
    sae = Projection(torch.eye(24), torch.eye(24), torch.zeros(24))
    with pytest.raises(MechlabError, match="rows"):
        measure(sae, planted, rows=0)
    with pytest.raises(MechlabError, match="width"):
        measure(Projection(torch.eye(8), torch.eye(8), torch.zeros(8)), planted, rows=8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_agree_with_the_reference_package(seed: int) -> None:
    from sae_lens.evals import ExplainedVarianceCalculator
    from sae_lens.synthetic import evals as theirs

    decoder, directions, seen = random_parts(seed)
    ours = ground_truth(decoder, directions, [seen])
    classes = theirs.compute_classification_metrics(
        scatter(seen.codes, 8), seen.features, decoder, directions
    )
    variance, shrinkage = ExplainedVarianceCalculator(), theirs.ShrinkageCalculator()
    variance.add_batch(seen.x_hat, seen.x)
    shrinkage.add_batch(seen.x_hat, seen.x)
    expected = {
        "mcc": theirs.mean_correlation_coefficient(decoder, directions),
        "uniqueness": theirs.feature_uniqueness(decoder, directions),
        "precision": classes.precision,
        "recall": classes.recall,
        "f1": classes.f1_score,
        "fve": variance.compute(),
        "shrinkage": shrinkage.compute(),
    }
    assert {name: getattr(ours, name) for name in expected} == pytest.approx(expected, rel=1e-5)
