"""Compiled loops use as many threads as torch does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch


@contextmanager
def torch_threads() -> Iterator[int]:
    """Within, numba's parallel loops run on ``torch.get_num_threads()`` threads; yields their number.

    After such a loop a forked child must not run one: GNU OpenMP ends it.
    """
    before = numba.get_num_threads()
    count = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    try:
        yield count
    finally:
        numba.set_num_threads(before)
