"""Every atom that could come next in a clause, the best of each kind."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from mechlab.features.rules.atoms import Atom, Position, Token, Within
from mechlab.features.rules.choosing import (
    Goal,
    best_interval,
    best_near,
    best_one,
    best_words,
    worst_near,
    worst_words,
)
from mechlab.features.rules.ground import OFFSETS, REACHES, SCALARS, Counts, Ground

MAX_WORDS, MAX_LEFT_OUT, MAX_NEAR = 64, 16, 8
_SAMPLE = 8_000
_SHORT = 8
"""How many of ``REACHES`` are tried within a clause."""


@dataclass(frozen=True)
class Choice:
    """An atom that may be added, and on how many rows of its region it then holds.

    Attributes:
        hits: active rows among them, shrunk.
        matched: rows.
        loss: by how much the hits were shrunk.
        worth: F less the price of the atom.
    """

    atom: Atom
    hits: float
    matched: float
    loss: float
    worth: float


class Region:
    """Rows on which the atoms of a clause so far hold, and those among them that are active.

    What stands there is counted once; of many rows a sample is counted.

    Args:
        rows: the rows; None: all of the text but those that are ``taken``.
        taken: rows that other clauses match.
        active: active rows of the region.
    """

    def __init__(
        self,
        ground: Ground,
        rows: Int[np.ndarray, "region_row"] | None,
        taken: Int[np.ndarray, "taken_row"] | None,
        active: Int[np.ndarray, "active_row"],
    ) -> None:
        self.ground, self.rows, self.taken, self.active = ground, rows, taken, active
        self.size = len(ground.text) - (0 if taken is None else len(taken)) if rows is None else len(rows)
        self.base = len(active) / max(self.size, 1)

    @functools.cached_property
    def hits(self) -> Counts:
        """What stands on and around the active rows."""
        return self.ground.count(self.active)

    @functools.cached_property
    def seen(self) -> Counts:
        """What stands on and around all rows."""
        if self.rows is None:
            every = self.ground.all
            return every if self.taken is None else every.less(self.ground.count(self.taken))
        rows, step = self._sample
        counts = self.ground.count(rows)
        return counts if step == 1 else counts.times(step).at_least(self.hits)

    @functools.cached_property
    def near(
        self,
    ) -> tuple[Int[np.ndarray, "near"], Int[np.ndarray, "near reach"], Int[np.ndarray, "near reach"]]:
        """Words shortly before the rows; before how many active ones, and of all, each is within reach."""
        ground = self.ground
        if self.rows is None:
            words = ground.near(self.active, len(REACHES))
            seen = ground.within(None, words, len(REACHES))
            if self.taken is not None:
                seen = seen - ground.within(self.taken, words, len(REACHES))
            return words, ground.within(self.active, words, len(REACHES)), seen
        rows, step = self._sample
        words = ground.near(np.concatenate([rows, self.active]), _SHORT)
        hits, seen = ground.within(self.active, words, _SHORT), ground.within(rows, words, _SHORT)
        return words, hits, seen if step == 1 else np.maximum(seen * step, hits)

    @property
    def _sample(self) -> tuple[Int[np.ndarray, "sampled"], int]:
        assert self.rows is not None
        step = -(-len(self.rows) // _SAMPLE)
        return np.ascontiguousarray(self.rows[::step]), step


def choices(region: Region, goal: Goal, *, further: bool) -> list[Choice]:
    """The best atom of each kind, the best first.

    Args:
        further: there are atoms already, to be narrowed down: negations count, too.
    """
    found = [made for offset in OFFSETS for made in token_choices(region, goal, offset, further)]
    found += within_choices(region, goal, further)
    found += _classes(region, goal, further)
    found += _scalars(region, goal, further)
    found += _positions(region, goal)
    return sorted(found, key=lambda choice: -choice.worth)


def token_choices(region: Region, goal: Goal, offset: int, further: bool) -> Iterator[Choice]:
    """The best words at an offset, and the best to exclude there."""
    which = OFFSETS.index(offset)
    hits, seen = region.hits.at[which], region.seen.at[which]
    chosen, near, matched, real = best_words(hits, seen, region.base, goal.plain, MAX_WORDS)
    if len(chosen):
        atom = Token(_texts(region, chosen), offset)
        yield _choice(goal, atom, near, matched, real - near, len(chosen))
    if further:
        total = float(len(region.active)), float(region.size)
        chosen, near, matched = worst_words(hits, seen, region.base, total, goal.plain, MAX_LEFT_OUT)
        if len(chosen):
            atom = Token(_texts(region, chosen), offset, True)
            yield _choice(goal, atom, near, matched, 0.0, len(chosen))


def given_choice(region: Region, goal: Goal, atom: Token) -> Choice:
    """An atom whose words are not chosen but given."""
    which = OFFSETS.index(atom.offset)
    # Counts are filed under the first of the ids that say the same.
    words = region.ground.first_ids(atom.words)
    near, matched = float(region.hits.at[which, words].sum()), float(region.seen.at[which, words].sum())
    return _choice(goal, atom, near, matched, 0.0, len(atom.words))


def within_choices(region: Region, goal: Goal, further: bool) -> Iterator[Choice]:
    """The best words to have come shortly before, and the best not to have come."""
    words, hits, seen = region.near
    reach, chosen, near, matched, real = best_near(hits, seen, region.base, goal.plain, MAX_NEAR)
    if len(chosen):
        atom = Within(_texts(region, words[chosen]), int(REACHES[reach]))
        yield _choice(goal, atom, near, matched, real - near, len(chosen))
    if further:
        total = float(len(region.active)), float(region.size)
        reach, chosen, near, matched = worst_near(hits, seen, region.base, total, goal.plain, MAX_NEAR)
        if len(chosen):
            atom = Within(_texts(region, words[chosen]), int(REACHES[reach]), True)
            yield _choice(goal, atom, near, matched, 0.0, len(chosen))


def _classes(region: Region, goal: Goal, further: bool) -> Iterator[Choice]:
    hits, seen = region.hits.classes, region.seen.classes
    for negated in (False, True) if further else (False,):
        total = float(len(region.active)), float(region.size)
        which, near, matched = best_one(hits, seen, region.base, total, goal.plain, negated)
        if which >= 0:
            atom = replace(region.ground.classes[which], negated=negated)
            loss = 0.0 if negated else float(hits[which]) - near
            yield _choice(goal, atom, near, matched, loss, 1)


def _scalars(region: Region, goal: Goal, further: bool) -> Iterator[Choice]:
    for atom, hits, seen in zip(SCALARS, region.hits.marks.tolist(), region.seen.marks.tolist(), strict=True):
        if 0 < seen < region.size:
            yield _choice(goal, atom, float(hits), float(seen), 0.0, 1)
            if further:
                near, matched = float(len(region.active) - hits), float(region.size - seen)
                yield _choice(goal, replace(atom, negated=True), max(near, 0.0), max(matched, near), 0.0, 1)


def _positions(region: Region, goal: Goal) -> Iterator[Choice]:
    hits, seen = region.hits.positions, region.seen.positions
    first, last, near, matched = best_interval(hits, seen, goal)
    occupied = np.flatnonzero(seen)
    if len(occupied) and (first > occupied[0] or last < occupied[-1]):
        end = None if last >= len(seen) - 1 else last
        yield _choice(goal, Position(first, end), near, matched, 0.0, 1)


def _choice(goal: Goal, atom: Atom, hits: float, matched: float, loss: float, words: int) -> Choice:
    worth = goal.value(hits, matched) - goal.penalty * (1 + float(np.log2(words)))
    return Choice(atom, hits, matched, loss, worth)


def _texts(region: Region, words: Int[np.ndarray, "chosen"]) -> tuple[str, ...]:
    texts = region.ground.text.vocabulary.texts
    return tuple(texts[word] for word in words.tolist())
