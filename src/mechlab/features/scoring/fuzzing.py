"""Fuzzing: are the marked tokens of a window those on which the feature is active?

In a positive every token with at least 0.3 of the window's largest activation is marked. Every
negative borrows the marks of one positive, as they stand, for a window in which all those tokens
are inactive: so the marks of positives and negatives are the same collection, and whatever looks at
their number or places only is at chance, exactly. Negatives are by turns windows with the feature
(elsewhere: only telling *where* it is active helps) and without it. A positive whose marks suit no
other window is left out together with its negative.

Source: Paulo et al. (2024), arXiv 2410.13928 (fuzzing; the pairing is ours).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int

from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.held import Held
from mechlab.features.scoring.items import MARKED, MISPLACED, RANDOM, Items

SHARE = 0.3


def fuzzing_items(held: Held, feature: int, generator: np.random.Generator) -> Items | str:
    """Pairs of a rightly and a wrongly marked window, or why there are too few."""
    active, width = held.active(feature), held.windows.width
    positives, quantile = held.spread(active, held.samples, generator)
    if len(positives) < held.fewest:
        return f"is active in windows of only {len(positives)} held-out documents"
    start = held.windows.start[positives]
    values = activations(held.index, feature, start, width)
    marks = values >= SHARE * values.max(1, keepdims=True)
    elsewhere = active.window[held.distinct(active.window, generator)]
    without = held.silent(active, 2 * held.samples, generator)
    candidates = np.concatenate([elsewhere[: 2 * held.samples], without])
    misplaced = np.arange(len(candidates)) < len(candidates) - len(without)
    taken = activations(held.index, feature, held.windows.start[candidates], width) > 0
    fits = marks.astype(np.float32) @ taken.T.astype(np.float32) == 0
    pair, partner = _pairs(fits, misplaced, held.windows.document[candidates], generator)
    if len(pair) < held.fewest:
        return f"has other windows for the marks of only {len(pair)} of its windows"
    chosen = candidates[partner]
    window = np.concatenate([positives[pair], chosen])
    kind = np.where(misplaced[partner], MISPLACED, RANDOM)
    items = Items(
        start=held.windows.start[window],
        width=width,
        label=np.arange(len(window)) < len(pair),
        marks=np.concatenate([marks[pair], marks[pair]]),
        document=held.windows.document[window],
        group=np.concatenate([quantile[pair], kind]),
        asks=MARKED,
    )
    return items.take(generator.permutation(len(window)))


def activations(
    index: FeatureIndex, feature: int, start: Int[np.ndarray, "window"], width: int
) -> Float32[np.ndarray, "window width"]:
    """A feature's activation on every token of windows; 0 where it is not active."""
    row, value = index.entries(feature)
    wanted = start[:, None] + np.arange(width)
    if not len(row):
        return np.zeros(wanted.shape, np.float32)
    place = np.minimum(np.searchsorted(row, wanted.astype(row.dtype)), len(row) - 1)
    return np.where(row[place] == wanted, value[place], np.float32(0))


def _pairs(
    fits: Bool[np.ndarray, "positive candidate"],
    misplaced: Bool[np.ndarray, "candidate"],
    document: Int[np.ndarray, "candidate"],
    generator: np.random.Generator,
) -> tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "pair"]]:
    """For each positive a candidate that suits its marks, every candidate and document once.

    Positives ask for either kind by turns, and take the other where theirs has none left. Those
    that fewest candidates suit choose first.
    """
    free = np.ones(len(misplaced), bool)
    preference = generator.random(len(misplaced))
    order = np.argsort(fits.sum(1), kind="stable")
    pair, partner = [], []
    for turn, positive in enumerate(order.tolist()):
        able = fits[positive] & free
        if not able.any():
            continue
        wanted = able & (misplaced == bool(turn % 2))
        chosen = int(np.argmax(np.where(wanted if wanted.any() else able, preference, -1.0)))
        free &= document != document[chosen]
        pair.append(positive)
        partner.append(chosen)
    return np.array(pair, np.int64), np.array(partner, np.int64)
