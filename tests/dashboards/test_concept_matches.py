"""Concepts of features against counting row by row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features.exchanged import random_index
from mechlab.dashboards.concepts import LEAST, TOP, concept_matches, fable_labels
from mechlab.data.fable import CONCEPT_INDEX, TOKEN_ID, document
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.planted.corpora import fable_vocabulary
from mechlab.features.text import Text


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_those_of_counting(seed: int) -> None:
    index, generator = random_index(seed, features=7), np.random.default_rng(seed)
    names = tuple(f"c{number}" for number in range(9))
    labels = generator.random((len(index.text), len(names))) < 0.3
    labels[:, 3] = index.dense(0) > 0
    labels[:, 4] = False
    labels[::2, 5] = index.dense(1)[::2] > 0
    found = concept_matches(index, labels, names)
    for feature in range(index.n_features):
        active, wanted = index.dense(feature) > 0, []
        for column, name in enumerate(names):
            label, both = labels[:, column], int((active & labels[:, column]).sum())
            if not both:
                continue
            precision, recall = both / active.sum(), both / label.sum()
            f1 = 2 * precision * recall / (precision + recall)
            if f1 >= LEAST:
                wanted.append((-f1, column, name, precision, recall))
        wanted = sorted(wanted)[:TOP]
        got = found.get(feature, [])
        assert [each.name for each in got] == [each[2] for each in wanted]
        for each, (f1, _, _, precision, recall) in zip(got, wanted, strict=True):
            assert (each.f1, each.precision, each.recall) == pytest.approx((-f1, precision, recall))
    assert found[0][0].f1 == 1.0


def fable_index(number: int, split: str = "validation", **about: object) -> FeatureIndex:
    """Document ``number`` of the corpus' numbering and the next of its split, with a feature of names."""
    ids, documents = [], []
    for each in (number, number + 3):
        words = document(split, each // 3).tokens
        ids += [TOKEN_ID[word] for word in words]
        documents += [each] * len(words)
    places = np.concatenate([np.arange(documents.count(each)) + 1 for each in dict.fromkeys(documents)])
    text = Text(np.array(ids, np.int32), np.array(documents), places, np.array(documents), fable_vocabulary())
    names = np.isin(text.tokens, [TOKEN_ID["Mary"], TOKEN_ID["John"]]).astype(float)
    return replace(index_of(text, {0: names}), about={"text": {"corpus": "fable", "split": split, **about}})


def test_labels_are_those_of_the_documents() -> None:
    index = fable_index(31)
    labels, names = fable_labels(index)
    assert labels.shape == (len(index.text), len(names))
    wanted = [document("validation", 10).concepts, document("validation", 11).concepts]
    np.testing.assert_array_equal(labels, np.concatenate(wanted))
    assert names[CONCEPT_INDEX["comma"]] == "comma"


def test_other_texts_have_no_labels() -> None:
    assert fable_labels(random_index(0)) is None
    assert fable_labels(fable_index(31, corpus="stories.jsonl")) is None
    assert fable_labels(fable_index(30)) is None  # numbers of another split
    other = fable_index(31)
    tokens = other.text.tokens.copy()
    tokens[5] += 1
    assert fable_labels(replace(other, text=replace(other.text, tokens=tokens))) is None
