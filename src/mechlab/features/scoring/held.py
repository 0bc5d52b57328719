"""What all scorers share: an index of documents no explainer saw, and its windows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.features.windows import WIDTH, Windows, divide

QUANTILES = 10
"""Groups of equal size into which a feature's active windows are ranked."""
SAMPLES = 50
FEWEST = 5
# Features whose windows are remembered: neighbours of neighbours come again and again.
_REMEMBERED = 256


@dataclass(frozen=True, eq=False)
class Active:
    """The windows in which a feature is active.

    Attributes:
        window: ascending.
        peak: largest activation in each.
    """

    window: Int[np.ndarray, "active"]
    peak: Float[np.ndarray, "active"]

    def __len__(self) -> int:
        return len(self.window)


@dataclass(frozen=True, eq=False)
class Held:
    """The index that is scored on.

    Attributes:
        index: of documents that had no part in the explanations.
        windows: its text divided.
        samples: most items of either class; fewest: items of either class below which there is no score.
        neighbours: feature → features like it, for near misses.
    """

    index: FeatureIndex
    windows: Windows
    samples: int = SAMPLES
    fewest: int = FEWEST
    neighbours: Mapping[int, Sequence[int]] = field(default_factory=dict)
    _known: OrderedDict[int, Active] = field(default_factory=OrderedDict)

    def active(self, feature: int) -> Active:
        """Where a feature is active. MechlabError when it does not exist."""
        found = self._known.get(feature)
        if found is None:
            found = Active(*self.windows.peaks(*self.index.entries(feature)))
            self._known[feature] = found
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def base_rate(self, feature: int) -> float:
        """Share of windows in which a feature is active."""
        return len(self.active(feature)) / len(self.windows)

    def distinct(
        self, windows: Int[np.ndarray, "window"], generator: np.random.Generator
    ) -> Int[np.ndarray, "kept"]:
        """Places of windows in random order, one of every document."""
        order = generator.permutation(len(windows))
        _, first = np.unique(self.windows.document[windows[order]], return_index=True)
        kept: np.ndarray = order[np.sort(first)]
        return kept

    def spread(
        self, active: Active, count: int, generator: np.random.Generator
    ) -> tuple[Int[np.ndarray, "kept"], Int[np.ndarray, "kept"]]:
        """Active windows of distinct documents, evenly from all rank-quantiles as far as they go.

        Returns the windows and the quantile of each, 0 the strongest. Quantiles are of rank: all have
        the same number of windows, whatever their activations. Equal activations rank by place.
        """
        rank = np.empty(len(active), np.int64)
        rank[np.argsort(-active.peak, kind="stable")] = np.arange(len(active))
        quantile = rank * QUANTILES // max(len(active), 1)
        kept = self.distinct(active.window, generator)
        return self._in_turn(active.window[kept], quantile[kept], count)

    def silent(self, active: Active, count: int, generator: np.random.Generator) -> Int[np.ndarray, "kept"]:
        """Random windows of distinct documents in which a feature is not active (looked up)."""
        tries = 4 * count
        if 2 * len(active) < len(self.windows) and tries < len(self.windows):
            drawn = generator.integers(0, len(self.windows), tries)
            # The first of each document in order of drawing; the draws are random already.
            drawn = drawn[~among(drawn, active.window)]
            _, first = np.unique(self.windows.document[drawn], return_index=True)
            if len(first) >= count:
                few: np.ndarray = drawn[np.sort(first)[:count]]
                return few
        others = np.ones(len(self.windows), bool)
        others[active.window] = False
        rest = np.flatnonzero(others)
        chosen: np.ndarray = rest[self.distinct(rest, generator)[:count]]
        return chosen

    def near_misses(
        self, feature: int, count: int, generator: np.random.Generator
    ) -> Int[np.ndarray, "kept"]:
        """Windows of distinct documents without a feature in which a neighbour of it is active.

        Neighbours take turns, the nearest first. None without neighbours.
        """
        active, found, of = self.active(feature), [], []
        for place, neighbour in enumerate(self.neighbours.get(feature, ())):
            window = self.active(int(neighbour)).window
            found.append(window[~among(window, active.window)])
            of.append(np.full(len(found[-1]), place))
        if not found:
            return np.zeros(0, np.int64)
        windows, places = np.concatenate(found), np.concatenate(of)
        kept = self.distinct(windows, generator)
        return self._in_turn(windows[kept], places[kept], count)[0]

    def _in_turn(
        self, windows: Int[np.ndarray, "window"], group: Int[np.ndarray, "window"], count: int
    ) -> tuple[Int[np.ndarray, "kept"], Int[np.ndarray, "kept"]]:
        """The first of every group, the second of every group, … until there are ``count``."""
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group) if len(group) else np.zeros(0, np.int64)
        turn = np.empty(len(group), np.int64)
        turn[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        chosen = np.lexsort((group, turn))[:count]
        return windows[chosen], group[chosen]


def hold(
    index: FeatureIndex,
    *,
    width: int = WIDTH,
    samples: int = SAMPLES,
    fewest: int = FEWEST,
    neighbours: Mapping[int, Sequence[int]] | None = None,
    seed: int = 0,
) -> Held:
    """Prepare an index for scoring.

    Args:
        width: tokens per window.
        seed: decides at which end of each passage rows are left over.

    Raises MechlabError when no passage is as long as a window, or for samples or fewest below 1.
    """
    if not 1 <= fewest <= samples:
        raise MechlabError("fewest is out of range", fewest, f"give a number from 1 to samples, {samples}")
    windows = divide(index.text, width, np.random.default_rng([seed, width]))
    if not len(windows):
        raise MechlabError("no passage is as long as a window", f"{width} tokens", "use longer contexts")
    return Held(index, windows, samples, fewest, neighbours or {})


def among(asked: Int[np.ndarray, "*shape"], known: Int[np.ndarray, "known"]) -> Bool[np.ndarray, "*shape"]:
    """Whether each is among ``known``, which ascends."""
    if not len(known):
        return np.zeros(asked.shape, bool)
    asked = asked.astype(known.dtype, copy=False)  # else all that is known would be converted
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    same: np.ndarray = known[place] == asked
    return same
