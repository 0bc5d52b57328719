"""Statistics by hand and their accessors; the kernel has tests of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.statistics import joined, load_statistics, statistics_of, summary_of
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary


@pytest.fixture
def index() -> FeatureIndex:
    text = text_of([[0, 1], [1, 0, 1, 1]], Vocabulary((" a", " b")))
    first, third = np.array([0, 2.0, 4, 0, 1, 0]), np.array([0, 0, 0, 0, 0, 0.5])
    return index_of(text, {0: first, 2: third})


def test_by_hand(index):
    found = statistics_of(index)
    assert found.n_features == 3
    assert found.rows == 6
    assert found.active.tolist() == [3, 0, 1]
    assert found.density.tolist() == [0.5, 0, 1 / 6]
    assert found.maximum.tolist() == [4, 0, 0.5]
    assert np.allclose(found.mean, [7 / 6, 0, 1 / 12])
    assert np.allclose(found.active_mean, index.mean)
    assert np.allclose(found.variance[0], 21 / 6 - (7 / 6) ** 2)
    assert [found.at(0, share) for share in (0.0, 0.3, 0.35, 0.65, 0.7, 1.0)] == [1, 1, 2, 2, 4, 4]
    assert found.histogram.sum(1).tolist() == [3, 0, 1]
    assert np.array_equal(found.histogram[0], np.histogram([1.0, 2.0, 4.0], found.edges(0))[0])


def test_a_feature_as_json(index):
    fields = statistics_of(index).to_dict(0)
    assert json.loads(json.dumps(fields)) == fields
    assert fields["active"] == 3
    assert fields["density"] == 0.5


def test_groups_of_features_join(index):
    cut = [summary_of(index.indptr[a : b + 1], index.value, 6) for a, b in ((0, 1), (1, 3))]
    whole = statistics_of(index)
    assert all(
        np.array_equal(a, b) for a, b in zip(vars(joined(cut)).values(), vars(whole).values(), strict=True)
    )


def test_what_is_refused(index, tmp_path):
    found = statistics_of(index)
    for call in (lambda: found.at(3, 0.5), lambda: found.edges(-1), lambda: found.to_dict(3)):
        with pytest.raises(MechlabError, match="feature does not exist"):
            call()
    for share in (0.51, -0.05, 1.05):
        with pytest.raises(MechlabError, match="share"):
            found.at(0, share)
    with pytest.raises(MechlabError, match="no feature-index"):
        load_statistics(tmp_path)
    broken = FeatureIndex(index.text, index.indptr, index.row, np.full(4, np.nan, np.float32))
    with pytest.raises(MechlabError, match="damaged"):
        statistics_of(broken)
