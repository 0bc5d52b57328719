"""Counts that the search for rules lives on: against counting row by row."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from features.naive_rules import random_text
from mechlab.features.rules.atoms import Spelling
from mechlab.features.rules.ground import REACHES, Ground
from mechlab.features.text import Text


def near(text: Text, row: int, reach: int) -> list[int]:
    begin = row
    while not text.starts[begin]:
        begin -= 1
    return text.tokens[max(begin, row - reach) : row].tolist()


def said(text: Text, token: int) -> int:
    """The first id with the same text."""
    return text.vocabulary.texts.index(text.vocabulary[token])


@pytest.mark.parametrize("seed", range(5))
def test_same_as_row_by_row(seed: int) -> None:
    generator = np.random.default_rng(seed)
    text = random_text(generator, int(generator.integers(5, 120)))
    ground = Ground(text, {"letters": ["a", " b"]})
    rows = np.flatnonzero(generator.random(len(text)) < 0.4).astype(np.int32)
    for offset in (0, -1, -2, 1):
        places = [row + offset for row in rows.tolist() if 0 <= row + offset < len(text)]
        places = [at for at in places if text.passage[at] == text.passage[at - offset]]
        expected = Counter(said(text, int(text.tokens[at])) for at in places)
        assert Counter(dict(enumerate(ground.at(rows, offset).tolist()))) == expected
    for reach, counts in zip(REACHES.tolist(), ground.within(rows, len(REACHES)).tolist(), strict=True):
        expected = Counter(
            word for row in rows.tolist() for word in {said(text, each) for each in near(text, row, reach)}
        )
        assert Counter(dict(enumerate(counts))) == expected
    counts = ground.at(rows, 0)
    for atom, count in zip(ground.classes, ground.by_class(counts).tolist(), strict=True):
        assert count == ground.matcher.holds(atom, rows).sum()
    everything = ground.every
    np.testing.assert_array_equal(ground.at(None, -1), ground.at(everything, -1))
    np.testing.assert_array_equal(ground.positions(None), ground.positions(everything))


def test_spellings_that_mean_the_same_words_are_listed_once() -> None:
    generator = np.random.default_rng(0)
    ground = Ground(random_text(generator, 400), {})
    meant = [tuple(np.flatnonzero(ground.matcher.holds(atom, ground.every))) for atom in ground.classes]
    assert len(set(meant)) == len(meant) > 0
    assert all(isinstance(atom, Spelling) for atom in ground.classes)
