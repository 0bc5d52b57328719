"""Counts that the search for rules lives on: against counting row by row."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from features.naive_rules import random_text
from mechlab.features.rules.atoms import Spelling
from mechlab.features.rules.ground import OFFSETS, REACHES, SCALARS, Counts, Ground
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
    counts = ground.count(rows)
    for offset, at in zip(OFFSETS, counts.at.tolist(), strict=True):
        places = [row + offset for row in rows.tolist() if 0 <= row + offset < len(text)]
        places = [at for at in places if text.passage[at] == text.passage[at - offset]]
        expected = Counter(said(text, int(text.tokens[at])) for at in places)
        assert Counter(dict(enumerate(at))) == expected
    for number in (len(REACHES), 3):
        words = ground.near(rows, number)
        for reach, found in zip(
            REACHES.tolist(), ground.within(rows, words, number).T.tolist(), strict=False
        ):
            expected = Counter(
                word
                for row in rows.tolist()
                for word in {said(text, each) for each in near(text, row, reach)}
            )
            assert Counter(dict(zip(words.tolist(), found, strict=True))) == expected
    for atom, count in zip((*ground.classes, *SCALARS), [*counts.classes, *counts.marks], strict=True):
        assert count == ground.matcher.holds(atom, rows).sum()
    np.testing.assert_array_equal(
        counts.positions, np.bincount(text.position[rows], minlength=len(counts.positions))
    )
    everything, rest = (
        np.arange(len(text), dtype=np.int32),
        np.setdiff1d(np.arange(len(text), dtype=np.int32), rows),
    )
    same(ground.all, ground.count(everything))
    same(ground.all.less(counts), ground.count(rest))
    same(counts.times(2).at_least(ground.all), ground.all.at_least(counts.times(2)))
    words = np.arange(ground.size)
    np.testing.assert_array_equal(ground.within(None, words, 5), ground.within(everything, words, 5))


def same(one: Counts, other: Counts) -> None:
    for name in ("at", "marks", "positions", "classes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_spellings_that_mean_the_same_words_are_listed_once() -> None:
    generator = np.random.default_rng(0)
    ground = Ground(random_text(generator, 400), {})
    every = np.arange(400, dtype=np.int32)
    meant = [tuple(np.flatnonzero(ground.matcher.holds(atom, every))) for atom in ground.classes]
    assert len(set(meant)) == len(meant) > 0
    assert all(isinstance(atom, Spelling) for atom in ground.classes)
