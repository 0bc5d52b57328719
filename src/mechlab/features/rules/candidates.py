"""Every atom that could come next in a clause, the best of each kind."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from mechlab.features.rules.atoms import Atom, Position, Token, Within
from mechlab.features.rules.choosing import Goal, best_interval, best_set, shrunk, worst_set
from mechlab.features.rules.ground import OFFSETS, REACHES, SCALARS, Ground

MAX_WORDS, MAX_LEFT_OUT, MAX_NEAR = 64, 16, 8
_SAMPLE = 20_000
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
    def here(self) -> tuple[Int[np.ndarray, "word"], Int[np.ndarray, "word"]]:
        """Words of the active rows and of all, counted."""
        return self.at(0)

    def at(self, offset: int) -> tuple[Int[np.ndarray, "word"], Int[np.ndarray, "word"]]:
        """Words at an offset from the active rows and from all, counted."""
        seen = self.ground.at(self.rows, offset)
        if self.rows is None and self.taken is not None:
            seen = seen - self.ground.at(self.taken, offset)
        return self.ground.at(self.active, offset), seen

    def within(self) -> tuple[Int[np.ndarray, "reach word"], Int[np.ndarray, "reach word"]]:
        """Words near before the active rows and before all, by reach; of many rows from a sample."""
        reaches = len(REACHES) if self.rows is None else _SHORT
        hits = self.ground.within(self.active, reaches)
        if self.rows is None:
            seen = self.ground.within(None, reaches)
            return hits, seen if self.taken is None else seen - self.ground.within(self.taken, reaches)
        step = -(-len(self.rows) // _SAMPLE)
        seen = self.ground.within(self.rows[::step], reaches) * step
        return hits, np.maximum(seen, hits)

    def scalar(self, which: int) -> tuple[float, float]:
        """Active rows, and rows, on which one of ``SCALARS`` holds."""
        seen = self.ground.scalar(self.rows, which)
        if self.rows is None and self.taken is not None:
            seen -= self.ground.scalar(self.taken, which)
        return float(self.ground.scalar(self.active, which)), float(seen)

    def positions(self) -> tuple[Int[np.ndarray, "position"], Int[np.ndarray, "position"]]:
        """Active rows, and rows, at each position."""
        seen = self.ground.positions(self.rows)
        if self.rows is None and self.taken is not None:
            seen = seen - self.ground.positions(self.taken)
        return self.ground.positions(self.active), seen


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


def token_choices(region: Region, goal: Goal, offset: int, further: bool) -> list[Choice]:
    """The best words at an offset, and the best to exclude there."""
    hits, seen = region.here if offset == 0 else region.at(offset)
    found = []
    words = np.flatnonzero(hits)
    if len(words):
        expected = shrunk(hits[words], seen[words], region.base)
        chosen, near, matched = best_set(expected, seen[words].astype(np.float64), goal, MAX_WORDS)
        chosen = words[chosen]
        atom = Token(_texts(region, chosen), offset)
        found.append(_choice(goal, atom, near, matched, float(hits[chosen].sum()) - near, len(chosen)))
    if further:
        made = _exclusion(region, goal, hits, seen, MAX_LEFT_OUT)
        if made is not None:
            chosen, left, matched = made
            atom = Token(_texts(region, chosen), offset, True)
            found.append(_choice(goal, atom, left, matched, 0.0, len(chosen)))
    return found


def given_choice(region: Region, goal: Goal, atom: Token) -> Choice:
    """An atom whose words are not chosen but given."""
    hits, seen = region.at(atom.offset)
    # Counts are filed under the first of the ids that say the same.
    words = region.ground.first_ids(atom.words)
    near, matched = float(hits[words].sum()), float(seen[words].sum())
    return _choice(goal, atom, near, matched, 0.0, len(atom.words))


def within_choices(region: Region, goal: Goal, further: bool) -> list[Choice]:
    """The best words to have come shortly before, and the best not to have come."""
    hits, seen = region.within()
    found = []
    alone = goal.values(shrunk(hits, seen, region.base), np.maximum(seen, 1.0))
    reach = int(np.argmax(alone.max(axis=1)))
    words = np.flatnonzero(hits[reach])
    if len(words):
        expected = shrunk(hits[reach, words], seen[reach, words], region.base)
        chosen, near, matched = best_set(expected, seen[reach, words].astype(np.float64), goal, MAX_NEAR)
        chosen = words[chosen]
        atom: Atom = Within(_texts(region, chosen), int(REACHES[reach]))
        loss = float(hits[reach, chosen].sum()) - near
        found.append(_choice(goal, atom, near, matched, loss, len(chosen)))
    if further:
        level = goal.value(float(len(region.active)), float(region.size))
        worst = level * seen - (1 + goal.beta**2) * shrunk(hits, seen, region.base)
        reach = int(np.argmax(worst.max(axis=1)))
        made = _exclusion(region, goal, hits[reach], seen[reach], MAX_NEAR)
        if made is not None:
            chosen, left, matched = made
            atom = Within(_texts(region, chosen), int(REACHES[reach]), True)
            found.append(_choice(goal, atom, left, matched, 0.0, len(chosen)))
    return found


def _exclusion(
    region: Region, goal: Goal, hits: Int[np.ndarray, "word"], seen: Int[np.ndarray, "word"], limit: int
) -> tuple[Int[np.ndarray, "chosen"], float, float] | None:
    words = np.flatnonzero(seen)
    expected = shrunk(hits[words], seen[words], region.base)
    total = float(len(region.active)), float(region.size)
    chosen, left, matched = worst_set(expected, seen[words].astype(np.float64), total, goal, limit)
    return (words[chosen], left, matched) if len(chosen) else None


def _classes(region: Region, goal: Goal, further: bool) -> list[Choice]:
    hits, seen = (region.ground.by_class(counts) for counts in region.here)
    found = []
    expected = shrunk(hits, seen, region.base)
    signs = (False, True) if further else (False,)
    for negated in signs:
        near = len(region.active) - expected if negated else expected
        matched = region.size - seen if negated else seen
        values = goal.values(near, matched.astype(np.float64))
        values[(matched == 0) | (matched == region.size)] = 0
        if len(values) and values.max() > 0:
            which = int(np.argmax(values))
            atom = replace(region.ground.classes[which], negated=negated)
            loss = 0.0 if negated else float(hits[which] - near[which])
            found.append(_choice(goal, atom, float(near[which]), float(matched[which]), loss, 1))
    return found


def _scalars(region: Region, goal: Goal, further: bool) -> list[Choice]:
    found = []
    for which, atom in enumerate(SCALARS):
        hits, seen = region.scalar(which)
        if 0 < seen < region.size:
            found.append(_choice(goal, atom, hits, seen, 0.0, 1))
            if further:
                without = len(region.active) - hits, region.size - seen
                found.append(_choice(goal, replace(atom, negated=True), *without, 0.0, 1))
    return found


def _positions(region: Region, goal: Goal) -> list[Choice]:
    hits, seen = region.positions()
    first, last, near, matched = best_interval(hits.astype(np.float64), seen.astype(np.float64), goal)
    occupied = np.flatnonzero(seen)
    if len(occupied) == 0 or (first <= occupied[0] and last >= occupied[-1]):
        return []
    end = None if last >= len(seen) - 1 else last
    return [_choice(goal, Position(first, end), near, matched, 0.0, 1)]


def _choice(goal: Goal, atom: Atom, hits: float, matched: float, loss: float, words: int) -> Choice:
    worth = goal.value(hits, matched) - goal.penalty * (1 + float(np.log2(words)))
    return Choice(atom, hits, matched, loss, worth)


def _texts(region: Region, words: Int[np.ndarray, "chosen"]) -> tuple[str, ...]:
    texts = region.ground.text.vocabulary.texts
    return tuple(texts[word] for word in words.tolist())
