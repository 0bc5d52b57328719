"""Planted dictionaries: the recipe's parts by hand, the samples' law, and the reference construction."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mechlab.data.synthetic import (
    Planted,
    Recipe,
    compensated,
    forest,
    one_per_group,
    plant,
    push_apart,
    synthsaebench,
    zipf,
)
from mechlab.errors import MechlabError

SMALL = synthsaebench(1 / 32)


@pytest.fixture(scope="module")
def small() -> Planted:
    return plant(SMALL)


def tiny(probability: list[float], parent: list[int] | None = None, **others: Any) -> Planted:
    """A model whose features are the axes."""
    n = len(probability)
    return Planted(
        **{
            "directions": torch.eye(n),
            "bias": torch.zeros(n),
            "probability": torch.tensor(probability),
            "mean": torch.arange(1.0, n + 1),
            "std": torch.zeros(n),
            "factor": torch.zeros(n, 0),
            "parent": torch.tensor(parent or [-1] * n),
            **others,
        }
    )


def draw(planted: Planted, rows: int = 20_000) -> Tensor:
    return planted.batch(rows, 0, 0)[1]


def overlap(directions: Tensor) -> float:
    gram = directions @ directions.T
    return float((gram - torch.diag(gram.diag())).square().sum())


def test_zipf_by_hand() -> None:
    # Shares 1, 1/2, 1/3, 1/4 stretched onto 0.1 .. 0.5.
    expected = torch.tensor([0.5, 0.1 + 0.4 / 3, 0.1 + 0.4 / 9, 0.1])
    torch.testing.assert_close(zipf(4, 1.0, 0.5, 0.1), expected)
    assert zipf(1, 1.0, 0.5, 0.1).tolist() == [0.5]


def test_forest_by_hand() -> None:
    whole = [-1, -1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert forest(16, 2, 2, 2).tolist() == [*whole, -1, -1]
    assert forest(9, 2, 2, 2).tolist() == whole[:9]
    assert forest(3, 0, 2, 2).tolist() == [-1] * 3
    assert forest(3, 2, 0, 2).tolist() == [-1] * 3


def test_compensation_by_hand() -> None:
    p, parent = torch.tensor([0.5, 0.1, 0.2, 0.3]), torch.tensor([-1, 0, 0, -1])
    torch.testing.assert_close(compensated(p, parent, False), torch.tensor([0.5, 0.2, 0.4, 0.3]))
    torch.testing.assert_close(compensated(p, parent, True), torch.tensor([0.5, 0.28, 0.48, 0.3]))
    assert compensated(torch.tensor([0.1, 0.2]), torch.tensor([-1, 0]), True).tolist() == pytest.approx(
        [0.1, 1]
    )


@pytest.mark.parametrize(("features", "d", "seed"), [(12, 4, 0), (40, 16, 1), (7, 9, 2)])
def test_pushing_apart_equals_autograd_on_all_pairs(features: int, d: int, seed: int) -> None:
    start = torch.randn(features, d, generator=torch.Generator().manual_seed(seed))
    slow = (start / start.norm(dim=1, keepdim=True)).requires_grad_()
    adam = torch.optim.Adam([slow], lr=0.01)
    for _ in range(20):
        adam.zero_grad()
        gram = slow @ slow.T
        apart = (gram - torch.diag(gram.diag())).square().sum()
        (apart + features * (gram.diag() - 1).square().sum()).backward()
        adam.step()
    fast = push_apart(start, 20, 0.01)
    torch.testing.assert_close(fast, (slow / slow.norm(dim=1, keepdim=True)).detach(), atol=1e-4, rtol=0)
    assert overlap(fast) < 0.9 * overlap(push_apart(start, 0, 0.01))
    torch.testing.assert_close(fast.norm(dim=1), torch.ones(features))


def test_a_batch_follows_from_seed_and_index_alone(small: Planted) -> None:
    once = small.batch(64, 3, 5)
    small.batch(64, 3, 4)
    again = plant(SMALL).batch(64, 3, 5)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    for other in (small.batch(64, 3, 6), small.batch(64, 4, 5)):
        assert not torch.equal(once[0], other[0])


def test_rows_are_the_features_they_claim(small: Planted) -> None:
    x, features = small.batch(500, 0, 0)
    torch.testing.assert_close(x, features @ small.directions + small.bias, atol=1e-4, rtol=1e-5)
    noisy, features = replace(small, noise=0.25).batch(500, 0, 0)
    rest = noisy - features @ small.directions - small.bias
    assert float(rest.std()) == pytest.approx(0.25, rel=0.05)
    assert abs(float(rest.mean())) < 0.01


def test_independent_features_fire_as_often_and_as_strongly_as_asked() -> None:
    planted = plant(
        Recipe(features=20, d=8, p_max=0.4, p_min=0.05, mean_first=5.0, mean_last=4.0, std_mean=0.5)
    )
    rows = 40_000
    features = draw(planted, rows)
    share = (features > 0).float().mean(0)
    error = (planted.probability * (1 - planted.probability) / rows).sqrt()
    assert bool(((share - planted.probability).abs() < 5 * error).all())
    strength = features.sum(0) / (features > 0).sum(0)
    torch.testing.assert_close(strength, planted.mean, atol=0.06, rtol=0)


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.8), (0.7, -0.9), (0.0, 0.5)])
def test_common_factors_correlate_firing(first: float, second: float) -> None:
    planted = tiny([0.5, 0.5], factor=torch.tensor([[first], [second]]))
    features = draw(planted, 40_000) > 0
    # Orthant probability of a bivariate normal (Sheppard 1899).
    expected = 0.25 + math.asin(first * second) / (2 * math.pi)
    assert float(features.all(1).float().mean()) == pytest.approx(expected, abs=0.012)
    torch.testing.assert_close(features.float().mean(0), torch.tensor([0.5, 0.5]), atol=0.012, rtol=0)


def test_children_need_their_parent_and_exclude_one_another(small: Planted) -> None:
    fires = draw(small, 5000) > 0
    child = (small.parent >= 0).nonzero()[:, 0]
    assert len(child) == 4 * (4 + 16 + 64)
    assert not (fires[:, child] & ~fires[:, small.parent[child]]).any()
    for parent in small.parent[child].unique():
        assert int(fires[:, small.parent == parent].sum(1).max()) <= 1
    assert fires[:, child].any(0).float().mean() > 0.9


def test_one_of_two_willing_children_is_drawn_evenly() -> None:
    fires = draw(tiny([1.0, 1.0, 1.0, 1.0], [-1, 0, 0, 1])) > 0
    assert bool(fires[:, 0].all())
    assert bool((fires[:, 1] ^ fires[:, 2]).all())
    assert float(fires[:, 1].float().mean()) == pytest.approx(0.5, abs=0.02)
    # The grandchild follows its own parent, also where that lost the draw.
    assert torch.equal(fires[:, 3], fires[:, 1])
    both = draw(tiny([1.0, 1.0, 1.0, 1.0], [-1, 0, 0, 1], exclusive=False), 100)
    assert bool((both > 0).all())


def test_magnitudes_follow_the_parent_down_the_tree() -> None:
    tree: dict[str, Any] = {
        "probability": [0.7, 0.6, 0.9],
        "parent": [-1, 0, 1],
        "std": torch.tensor([0.3, 0, 0]),
    }
    features = draw(tiny(**tree), 2000)
    fires = features > 0
    # Means 1, 2, 3 and spread only at the root: x1 = 2 x0, x2 = 3 (x1 / 2) = 3 x0.
    torch.testing.assert_close(features[:, 1], 2 * features[:, 0] * fires[:, 1])
    torch.testing.assert_close(features[:, 2], 3 * features[:, 0] * fires[:, 2])
    plain = draw(tiny(**tree, scaled=False), 2000)
    assert set(plain[:, 2].tolist()) == {0.0, 3.0}


def test_one_per_group_leaves_exactly_one() -> None:
    group = torch.randint(0, 50, (400,), generator=torch.Generator().manual_seed(0))
    kept = one_per_group(group, torch.Generator().manual_seed(1))
    assert sorted(group[kept].tolist()) == sorted(set(group.tolist()))
    assert not one_per_group(group[:0], torch.Generator()).numel()


def test_the_benchmark_at_full_scale_has_its_published_l0() -> None:
    recipe = synthsaebench()
    assert (recipe.features, recipe.d, recipe.roots) == (16384, 768, 128)
    fires = draw(plant(replace(recipe, steps=0)), 1024) > 0
    # Published: about 34, and about 25 for the 4,096 most frequent features.
    assert float(fires.sum(1).float().mean()) == pytest.approx(34, abs=1.5)
    assert float(fires[:, :4096].sum(1).float().mean()) == pytest.approx(25, abs=1.2)


def test_small_clone() -> None:
    assert (SMALL.features, SMALL.d, SMALL.roots) == (512, 64, 4)
    for scale in (0.0, 1.5):
        with pytest.raises(MechlabError, match="scale"):
            synthsaebench(scale)


@pytest.mark.parametrize(
    ("field", "value"),
    [("features", 0), ("d", 0), ("p_min", 0.5), ("p_max", 1.5), ("zipf", 0.0), ("noise", -1.0), ("rank", -1)],
)
def test_errors_name_the_field(field: str, value: float) -> None:
    with pytest.raises(MechlabError, match=field):
        Recipe(**{"features": 8, "d": 4, field: value})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [42, 7])
def test_the_construction_is_that_of_the_reference_package(seed: int) -> None:
    from sae_lens import synthetic as theirs

    recipe = synthsaebench(1 / 32, seed=seed)
    peer = theirs.SyntheticModel(
        theirs.SyntheticModelConfig(
            num_features=recipe.features,
            hidden_dim=recipe.d,
            firing_probability=theirs.ZipfianFiringProbabilityConfig(
                exponent=0.5, max_prob=0.4, min_prob=5e-4
            ),
            hierarchy=theirs.HierarchyConfig(
                total_root_nodes=recipe.roots,
                branching_factor=4,
                max_depth=3,
                mutually_exclusive_portion=1.0,
                compensate_probabilities=True,
                scale_children_by_parent=True,
            ),
            orthogonalization=theirs.OrthogonalizationConfig(num_steps=100, lr=3e-4),
            correlation=theirs.LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
            mean_firing_magnitudes=theirs.LinearMagnitudeConfig(start=5.0, end=4.0),
            std_firing_magnitudes=theirs.FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
            bias=0.5,
            seed=seed,
        )
    )
    ours, generator = plant(recipe), peer.activation_generator
    pairs = [
        (ours.probability, generator.firing_probabilities),
        (ours.mean, generator.mean_firing_magnitudes),
        (ours.std, generator.std_firing_magnitudes),
        (ours.factor, peer.correlation_matrix.correlation_factor),
        (ours.directions, peer.feature_dict.feature_vectors.detach()),
        (ours.bias, peer.feature_dict.bias.detach()),
    ]
    for mine, their in pairs:
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=0)
    # The samples' law: how often and how strongly each feature fires.
    torch.manual_seed(0)
    mine, their = draw(ours, 40_000), generator.sample(40_000)
    torch.testing.assert_close((mine > 0).float().mean(0), (their > 0).float().mean(0), atol=0.015, rtol=0)
    torch.testing.assert_close(mine.mean(0), their.mean(0), atol=0.08, rtol=0)
    torch.testing.assert_close(mine.T.cov(), their.T.cov(), atol=0.3, rtol=0)


@pytest.mark.gpu
def test_the_gpu_samples_the_same_law(small: Planted) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x, there = small.to("cuda").batch(40_000, 0, 0)
    assert x.is_cuda
    here = draw(small, 40_000)
    torch.testing.assert_close(
        (there.cpu() > 0).float().mean(0), (here > 0).float().mean(0), atol=0.015, rtol=0
    )
