"""Division of features by the work they are: their entries, not their number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

_PER_THREAD = 8


def portions(indptr: Int[np.ndarray, "feature_plus_1"], threads: int) -> Int[np.ndarray, "portion_plus_1"]:
    """First feature of every portion, and the number of features at the end, int64.

    Portions hold about equal numbers of entries plus features; there are more of them than threads,
    so that a feature active everywhere does not leave the other threads idle. Some may be empty.
    """
    work = indptr + np.arange(len(indptr))
    wanted = np.linspace(work[0], work[-1], _PER_THREAD * threads + 1)
    cuts = np.searchsorted(work, wanted).astype(np.int64)
    cuts[0], cuts[-1] = 0, len(indptr) - 1
    return cuts


def blocks(indptr: Int[np.ndarray, "feature_plus_1"], entries: int) -> Iterator[tuple[int, int]]:
    """First feature of every block and the one after its last; a block holds at most so many entries.

    A feature with more is a block of its own.
    """
    first, features = 0, len(indptr) - 1
    while first < features:
        last = int(np.searchsorted(indptr, indptr[first] + entries, side="right")) - 1
        last = min(max(last, first + 1), features)
        yield first, last
        first = last
