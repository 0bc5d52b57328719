"""Compiled selection of the largest, for the scans of ``encode_cpu`` and ``encode_bf16``.

A value and its latent travel as one 64-bit integer, ordered as the value is (by size where
``absolute``) and among equals with the lower latent first, so that comparing and moving them is
one operation each. From the top: 32 bits of the value, the negative ones mirrored; 31 bits of
``LAST - latent``; the sign that ``absolute`` took off.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

LAST = 0x7FFFFFFF


@njit(cache=True, nogil=True)
@no_type_check
def pack(value, latent, absolute):
    """The integer of a value (not NaN) and its latent."""
    negative = absolute and value < 0
    size = np.float32(-value if negative else value)
    # -0 and 0 are equal.
    bits = size.view(np.int32) if size != 0 else np.int32(0)
    order = np.int64(bits ^ ((bits >> 31) & LAST))
    return (order << 32) | np.int64((LAST - latent) << 1) | np.int64(negative)


@njit(cache=True, nogil=True)
@no_type_check
def unpack(key, absolute):
    """Value and latent of an integer made by ``pack``."""
    order = key >> 32
    size = np.int32(order ^ ((order >> 31) & LAST)).view(np.float32)
    return (-size if absolute and key & 1 else size), LAST - ((key >> 1) & LAST)


@njit(cache=True, nogil=True)
@no_type_check
def select(numbers, k):
    """Move the k largest to the front, the least of them to place k - 1 (Hoare's quickselect)."""
    left, right, target = 0, len(numbers) - 1, k - 1
    while left < right:
        low, pivot, high = numbers[left], numbers[(left + right) // 2], numbers[right]
        pivot = max(min(low, high), min(max(low, high), pivot))
        i, j = left, right
        while i <= j:
            while numbers[i] > pivot:
                i += 1
            while numbers[j] < pivot:
                j -= 1
            if i <= j:
                numbers[i], numbers[j] = numbers[j], numbers[i]
                i += 1
                j -= 1
        if target <= j:
            right = j
        elif target >= i:
            left = i
        else:
            break


@njit(cache=True, nogil=True)
@no_type_check
def write_out(keys, values, indices, absolute):
    """Spell out the k largest of ``keys`` into one row of results."""
    k = len(values)
    if len(keys) > k:
        select(keys, k)
    for j in range(k):
        values[j], indices[j] = unpack(keys[j], absolute)
