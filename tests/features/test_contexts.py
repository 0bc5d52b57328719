"""Contexts: centred on the activation, distinct, and with activity looked up."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from features.scored_features import KINDS, features_of, random_text
from mechlab.errors import MechlabError
from mechlab.features.building import IndexWriter, load_index
from mechlab.features.contexts import (
    Context,
    context_at,
    importance_contexts,
    inactive_contexts,
    near_miss_contexts,
    quantile_contexts,
    random_contexts,
    shown,
    similar_contexts,
    top_contexts,
)
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary

INDEX = features_of(random_text(80))
SET, DENSE, TOKEN = KINDS.index("set"), KINDS.index("dense"), KINDS.index("token")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def check(index: FeatureIndex, feature: int, contexts: list[Context], *, active: bool) -> None:
    text, dense = index.text, index.dense(feature)
    passages = [int(text.passage[each.row]) for each in contexts]
    texts = [each.tokens(index).tobytes() for each in contexts]
    assert len(set(passages)) == len(passages)
    assert len(set(texts)) == len(texts)
    for each in contexts:
        assert each.start + each.centre == each.row
        assert len(set(text.passage[each.start : each.stop].tolist())) == 1
        assert each.document == text.document[each.row]
        assert np.array_equal(each.activations(index, feature), dense[each.start : each.stop])
        assert (each.activations(index, feature)[each.centre] > 0) == active
        if not active:
            assert not each.activations(index, feature).any()


@pytest.mark.parametrize("feature", [SET, DENSE, TOKEN])
@pytest.mark.parametrize("radius", [0, 5, 200])
def test_every_sampler_centres_on_the_activation(feature: int, radius: int) -> None:
    for sample in (random_contexts, importance_contexts):
        found = sample(INDEX, feature, 20, generator(), radius=radius)
        assert len(found) == 20 or radius == 0  # a lone token is the same text again
        check(INDEX, feature, found, active=True)
    top = top_contexts(INDEX, feature, 20, radius)
    check(INDEX, feature, top, active=True)
    values = [INDEX.dense(feature)[each.row] for each in top]
    assert values == sorted(values, reverse=True)
    assert values[0] == INDEX.maximum[feature]
    for part in quantile_contexts(INDEX, feature, 3, generator(), radius=radius):
        check(INDEX, feature, part, active=True)
    check(INDEX, feature, inactive_contexts(INDEX, feature, 20, generator(), radius=radius), active=False)


def test_context_at_the_borders_of_a_passage() -> None:
    text = text_of([[0, 1, 2, 3], [3, 2, 1, 0]], Vocabulary(("a", "b", "c", "d")))
    assert context_at(text, 0, 2) == Context(0, 3, 0, 0, 0)
    assert context_at(text, 3, 2) == Context(1, 4, 2, 3, 0)
    assert context_at(text, 4, 2) == Context(4, 7, 0, 4, 1)
    assert context_at(text, 7, 9) == Context(4, 8, 3, 7, 1)


def test_one_of_a_passage_none_twice_ties_by_place() -> None:
    text = text_of([[0, 1, 0], [0, 1, 0], [1, 1, 2], [2, 1, 2]], Vocabulary(("a", "b", "c")))
    index = index_of(text, {0: np.array([0, 3, 0, 0, 3, 0, 3, 2, 0, 0, 3, 0.0])})
    assert [each.row for each in top_contexts(index, 0, 10, 1)] == [1, 6, 10]
    assert [each.row for each in top_contexts(index, 0, 2, 1)] == [1, 6]


def test_quantiles_are_of_rank_not_of_value() -> None:
    """Nine of ten activations are tiny: quantiles of equal value ranges would be nearly all empty."""
    text = random_text(200)
    first = text.bounds[:-1]
    activation = np.zeros(len(text))
    activation[first] = np.where(np.arange(len(first)) % 10 == 0, 100.0, 1.0) + np.arange(len(first)) * 1e-6
    index = index_of(text, {0: activation})
    parts = quantile_contexts(index, 0, 1000, generator(), quantiles=5)
    assert {len(part) for part in parts} <= {len(first) // 5, len(first) // 5 + 1}
    peaks = [[activation[each.row] for each in part] for part in parts]
    assert all(min(above) > max(below) for above, below in itertools.pairwise(peaks))
    # In random order within each.
    assert peaks[0] != sorted(peaks[0], reverse=True)


def test_importance_is_the_activation() -> None:
    text = random_text(400)
    first = text.bounds[:-1]
    activation = np.zeros(len(text))
    activation[first] = np.where(np.arange(len(first)) % 2 == 0, 9.0, 1.0)
    index = index_of(text, {0: activation})
    strong = np.mean(
        [
            activation[importance_contexts(index, 0, 1, generator(seed), radius=3)[0].row] == 9
            for seed in range(300)
        ]
    )
    even = np.mean(
        [
            activation[random_contexts(index, 0, 1, generator(seed), radius=3)[0].row] == 9
            for seed in range(300)
        ]
    )
    assert strong == pytest.approx(0.9, abs=0.06)
    assert even == pytest.approx(0.5, abs=0.1)


def test_near_misses_have_the_neighbour_and_not_the_feature() -> None:
    found = near_miss_contexts(INDEX, TOKEN, [SET, DENSE], 20, generator(), radius=6)
    assert len(found) == 20
    check(INDEX, TOKEN, found, active=False)
    of = [INDEX.dense(SET)[each.row] > 0 for each in found]
    assert all(mine or INDEX.dense(DENSE)[each.row] > 0 for mine, each in zip(of, found, strict=True))
    assert 3 <= sum(of) <= 17
    assert near_miss_contexts(INDEX, TOKEN, [], 20, generator()) == []


def test_similar_contexts_are_the_nearest_by_their_vectors() -> None:
    def vectors(texts: list[str]) -> Float[np.ndarray, "text dimension"]:
        letters = [[text.count(f" w{word} ") for word in (0, 1, 30)] for text in texts]
        return np.array(letters, np.float64) + 1e-3

    found = similar_contexts(INDEX, TOKEN, vectors, 5, generator(), radius=8)
    check(INDEX, TOKEN, found, active=False)
    again = similar_contexts(INDEX, TOKEN, vectors, 5, generator(), radius=8)
    assert found == again
    assert len(found) == 5


def test_a_feature_that_is_everywhere_has_no_inactive_contexts() -> None:
    text = text_of([[0, 1]] * 4, Vocabulary(("a", "b")))
    index = index_of(text, {0: np.ones(8), 1: np.zeros(8)})
    assert inactive_contexts(index, 0, 3, generator()) == []
    assert top_contexts(index, 1) == random_contexts(index, 1, 3, generator()) == []
    assert quantile_contexts(index, 1, 3, generator(), quantiles=2) == [[], []]


def test_shown_joins_parts_of_a_character() -> None:
    smile = "🙂".encode()
    vocabulary = Vocabulary(
        ("hi", *(f"<{byte}>" for byte in smile)), {i + 1: bytes([b]) for i, b in enumerate(smile)}
    )
    index = index_of(text_of([[0, 1, 2, 3, 4, 0]], vocabulary), {0: np.array([0.0, 1, 3, 0, 2, 0])})
    for radius in (0, 1, 2):  # never cut in two
        (context,) = top_contexts(index, 0, 1, radius)
        assert "🙂" in [each.text for each in shown(index, 0, context)]
        assert context.start + context.centre == context.row == 2
    (context,) = top_contexts(index, 0, 1, 9)
    pieces = shown(index, 0, context)
    assert [(each.text, each.activation, each.centre) for each in pieces] == [
        ("hi", 0.0, False),
        ("🙂", 3.0, True),
        ("hi", 0.0, False),
    ]


def test_a_dead_feature_of_an_index_on_disk_has_no_contexts(tmp_path: Path) -> None:
    text = text_of([[0, 1, 2]], Vocabulary((" a", " b", " c")))
    with IndexWriter(tmp_path, text.vocabulary, 2, {}, 0, {}) as writer:
        columns = (text.tokens, text.context, text.position, text.document)
        writer.add(*columns, np.array([[0.0], [2.0], [0.0]]), np.ones((3, 1), np.int64))
        writer.finish()
    index = load_index(tmp_path)
    assert random_contexts(index, 0, 3, generator()) == []
    assert importance_contexts(index, 0, 3, generator()) == []
    assert near_miss_contexts(index, 1, [0], 3, generator()) == []
    assert [each.row for each in near_miss_contexts(index, 0, [0, 1], 3, generator())] == [1]


def test_activations_that_single_precision_loses_are_silence() -> None:
    text = text_of([[0, 1]], Vocabulary((" a", " b")))
    index = index_of(text, {0: np.array([1e-50, 1.0])})
    assert [each.row for each in top_contexts(index, 0)] == [1]
    index.value[0] = np.nan
    with pytest.raises(MechlabError, match="entries of the index are damaged"):
        top_contexts(index, 0)


def test_bad_input_is_named() -> None:
    with pytest.raises(MechlabError, match="feature does not exist: 99"):
        top_contexts(INDEX, 99)
    with pytest.raises(MechlabError, match="count of contexts is not positive: 0"):
        random_contexts(INDEX, 0, 0, generator())
    with pytest.raises(MechlabError, match="no such context: row -1"):
        context_at(INDEX.text, -1)
