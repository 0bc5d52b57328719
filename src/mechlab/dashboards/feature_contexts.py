"""Which contexts a page shows of a feature: the strongest, some of every third, near misses, random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from mechlab.features.contexts import (
    Context,
    context_at,
    distinct_contexts,
    near_miss_contexts,
    quantile_peaks,
    random_contexts,
)
from mechlab.features.index import FeatureIndex
from mechlab_kernels.contexts import top_peaks

TOP, RADIUS = 8, 12
QUANTILES, OF_EACH = 3, 2
NEAR, RANDOM = 3, 2
# Neighbours that are asked for a near miss before the page goes without.
_ASKED = 8


@dataclass(frozen=True)
class Quantile:
    """One of the groups of equal size into which a feature's peaks fall by rank.

    Attributes:
        low, high: smallest and largest activation in it.
        share: its part of the peaks: of the passages in which the feature is active.
        contexts: random ones of it.
    """

    low: float
    high: float
    share: float
    contexts: list[Context]


@dataclass(frozen=True)
class Chosen:
    """The contexts of one feature.

    Attributes:
        top: strongest first, one of a passage.
        quantiles: the strongest group first; all empty for a dead feature, as is the rest.
        near: (neighbour, context): the neighbour is active in its middle, the feature nowhere.
        random: around random active tokens.
    """

    top: list[Context]
    quantiles: list[Quantile]
    near: list[tuple[int, Context]]
    random: list[Context]


def strongest(index: FeatureIndex) -> Int[np.ndarray, "feature top"]:
    """Rows of the strongest peaks of all features, strongest first; -1 where there are no more."""
    text = index.text
    return top_peaks(index.indptr, index.row, index.value, text.tokens, text.bounds, TOP, RADIUS)


def choose_contexts(
    index: FeatureIndex, feature: int, peaks: Int[np.ndarray, "top"], neighbours: Sequence[int], seed: int = 0
) -> Chosen:
    """The contexts of one feature.

    Args:
        peaks: its row of ``strongest``.
        neighbours: features like it, nearest first; each lends at most one near miss.
        seed: random choices follow from it and the feature's number.

    Raises MechlabError for a feature that does not exist.
    """
    top = [context_at(index.text, int(row), RADIUS) for row in peaks if row >= 0]
    if not top:
        return Chosen([], [], [], [])
    generator = np.random.default_rng([seed, feature])
    groups = [group for group in quantile_peaks(index, feature, QUANTILES) if len(group[0])]
    whole = sum(len(row) for row, _ in groups)
    quantiles = [
        Quantile(
            float(value[-1]),
            float(value[0]),
            len(row) / whole,
            distinct_contexts(index.text, generator.permutation(row), OF_EACH, RADIUS),
        )
        for row, value in groups
    ]
    near: list[tuple[int, Context]] = []
    for other in neighbours[:_ASKED]:
        if len(near) == NEAR:
            break
        rows = {context.row for _, context in near}
        found = near_miss_contexts(index, feature, [other], 1, generator, radius=RADIUS)
        near += [(other, context) for context in found if context.row not in rows]
    return Chosen(top, quantiles, near, random_contexts(index, feature, RANDOM, generator, radius=RADIUS))
