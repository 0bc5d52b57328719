"""Co-occurrence and cosines against what loops over all pairs give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.neighbours import alike, co_occurring
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary


def random_index(seed: int, rows: int = 200, features: int = 23) -> FeatureIndex:
    generator = np.random.default_rng(seed)
    text = text_of([[0] * 10 for _ in range(rows // 10)], Vocabulary(("a",)))
    density = generator.uniform(0, 0.4, features)
    active = generator.random((features, rows)) < density[:, None]
    active[3], active[7] = False, active[8]  # one that is dead, two that are the same
    return index_of(text, {f: row.astype(np.float64) for f, row in enumerate(active)})


def naive(active: np.ndarray, measure: str, fewest: int) -> list[list[tuple[int, float]]]:
    n = active.shape[1]
    found = []
    for f in range(len(active)):
        pairs = []
        for g in range(len(active)):
            both = int((active[f] & active[g]).sum())
            if f == g or both < fewest:
                continue
            lift = both * n / (int(active[f].sum()) * int(active[g].sum()))
            jaccard = both / int((active[f] | active[g]).sum())
            pairs.append((g, {"jaccard": jaccard, "lift": lift, "pmi": math.log(lift)}[measure]))
        found.append(sorted(pairs, key=lambda pair: (-round(pair[1], 12), pair[0])))
    return found


@pytest.mark.parametrize("measure", ["jaccard", "lift", "pmi"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_co_occurrence_is_that_of_all_pairs(measure: str, seed: int) -> None:
    index = random_index(seed)
    active = np.stack([index.dense(f) > 0 for f in range(index.n_features)])
    found = co_occurring(index, top=4, measure=measure, fewest=3)
    assert found.n_rows == len(index.text)
    for f, pairs in enumerate(naive(active, measure, 3)):
        wanted = pairs[:4]
        assert [g for g in found.feature[f].tolist() if g >= 0] == [g for g, _ in wanted]
        np.testing.assert_allclose(found.value[f, : len(wanted)], [value for _, value in wanted])
        for place, (g, _) in enumerate(wanted):
            assert found.together[f, place] == (active[f] & active[g]).sum()
    assert (found.feature[3] == -1).all()
    assert (found.value[3] == 0).all()
    if measure != "jaccard":  # what independent features would have
        np.testing.assert_allclose(found.expected[found.feature >= 0], float(measure == "lift"), atol=1e-12)
    elif found.feature[7, 0] == 8:
        assert found.value[7, 0] == 1


def test_a_sample_of_rows_estimates_all_of_them() -> None:
    index = random_index(0, rows=20_000)
    whole = co_occurring(index, top=22, rows=None)
    part = co_occurring(index, top=22, rows=5000, seed=1)
    again = co_occurring(index, top=22, rows=5000, seed=1)
    assert part.n_rows == 5000
    assert np.array_equal(part.feature, again.feature)
    of = [dict(zip(each.feature[0].tolist(), each.value[0].tolist(), strict=True)) for each in (whole, part)]
    common = set(of[0]) & set(of[1]) - {-1}
    assert len(common) > 15
    assert max(abs(of[0][g] - of[1][g]) for g in common) < 0.03


def test_independent_features_have_what_is_expected() -> None:
    found = co_occurring(random_index(3, rows=40_000), top=22)
    kept = (found.feature >= 0) & (found.value < 1)  # without the two that are the same
    assert np.abs(found.value - found.expected)[kept].max() < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosines_are_those_of_all_pairs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(57, 8, generator=generator)
    rows[5] = 3 * rows[9]
    rows[11] = 0
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    found = alike(rows, top=56, block=10, dtype=dtype)
    assert found.feature.shape == (57, 56)
    for f in range(57):
        assert sorted(found.feature[f].tolist()) == [g for g in range(57) if g != f]
        torch.testing.assert_close(found.value[f], cosine[f, found.feature[f]])
        assert bool((found.value[f].diff() <= 1e-6).all())
    assert int(found.feature[5, 0]) == 9
    assert int(found.feature[9, 0]) == 5
    assert found.largest.n == 57


def test_random_directions_are_as_alike_as_their_control() -> None:
    rows = torch.randn(2000, 32, generator=torch.Generator().manual_seed(1))
    random = alike(rows, top=1).largest
    assert random.null is not None
    assert abs(random.value - random.null.value) < 0.02
    doubled = alike(torch.cat([rows, rows + 0.1]), top=1).largest
    assert doubled.beats_null


def test_what_is_refused() -> None:
    index = random_index(0)
    with pytest.raises(MechlabError, match=r"unknown measure: jacard .*did you mean jaccard"):
        co_occurring(index, measure="jacard")
    with pytest.raises(MechlabError, match="must be positive"):
        co_occurring(index, top=0)
    with pytest.raises(MechlabError, match="cannot be compared"):
        alike(torch.ones(1, 3))
