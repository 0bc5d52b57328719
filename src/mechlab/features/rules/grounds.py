"""The text to learn from, and parts of it for features that are active often."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.features.rules.ground import Ground
from mechlab.features.split import Split
from mechlab.features.text import Text

OFTEN = 2000
"""Active rows that are enough to learn from."""
_PARTS = 7_919  # so that the parts do not follow the division of the user, who begins with seed 0


class Grounds:
    """The text, and parts of its documents: 1/2, 1/4, …; what is active often is learnt on a part."""

    def __init__(self, text: Text, concepts: Mapping[str, Collection[str]], seed: int) -> None:
        self.text, self.concepts, self.seed = text, concepts, seed
        self.whole = Ground(text, concepts)
        self.parts: dict[int, tuple[Ground, Bool[np.ndarray, "row"], Int[np.ndarray, "row"]]] = {}
        self.lock = threading.Lock()

    def part(
        self, rows: Int[np.ndarray, "entry"], values: Float[np.ndarray, "entry"]
    ) -> tuple[Ground, Int[np.ndarray, "part_entry"], Float[np.ndarray, "part_entry"]]:
        """A ground on which a feature is active often enough, and its entries there."""
        # Copied, as compiled loops are compiled once more for a file that cannot be written to.
        rows, values = np.array(rows, np.int32), np.array(values)
        for halvings in range(int(math.log2(max(len(rows) / OFTEN, 1))), 0, -1):
            ground, keep, number = self.halved(halvings)
            kept = keep[rows]
            if kept.sum() >= OFTEN / 2:
                return ground, number[rows[kept]], values[kept]
        return self.whole, rows, values

    def halved(self, times: int) -> tuple[Ground, Bool[np.ndarray, "row"], Int[np.ndarray, "row"]]:
        """The ground, which rows of the text are in it, and their numbers there."""
        with self.lock:
            if times not in self.parts:
                keep = Split(0.5**times, self.seed + _PARTS).explains(self.text.document)
                number = (np.cumsum(keep) - 1).astype(np.int32)
                self.parts[times] = Ground(self.text.select(keep), self.concepts), keep, number
            return self.parts[times]
