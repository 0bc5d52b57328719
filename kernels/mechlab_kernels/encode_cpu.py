"""``encode`` in float32 on a CPU: a block of pre-activations at a time, then a scan of the block.

The scan asks of many pre-activations at once, in vector registers, whether any passes the
threshold that it would have to pass; hardly ever does one. Those that pass are noted. Once a
row has 2 k notes all but its k largest are dropped, the least of which is the new threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from mechlab_kernels.select import pack, select, unpack, write_out
from mechlab_kernels.threads import torch_threads

CHUNK = 128  # latents tested at once
ROWS, LATENTS = 2048, 8 * CHUNK  # of a block: 8 MB


def blocks(x: Tensor, encoder: Tensor) -> Iterator[tuple[int, Tensor]]:
    """``(first latent, x @ encoder.T there)`` by blocks of latents, in a buffer that is used again."""
    buffer = x.new_empty(len(x) * min(LATENTS, len(encoder)))
    for first in range(0, len(encoder), LATENTS):
        part = encoder[first : first + LATENTS]
        block = buffer[: len(x) * len(part)].view(len(x), len(part))
        yield first, torch.mm(x, part.T, out=block)


def row_blocks(rows: int, room: int) -> Iterator[slice]:
    """Rows to work on at a time, fewer where each needs ``room`` notes of 8 bytes (64 MB in all)."""
    size = max(64, min(ROWS, 2**23 // room))
    return (slice(row, row + size) for row in range(0, rows, size))


def topk(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    k: int,
    absolute: bool,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """``encode.encode_topk`` for contiguous float32."""
    values, indices = torch.empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64)
    room = 2 * k + CHUNK
    with torch_threads():
        for rows in row_blocks(len(x), room):
            part = x[rows]
            keys, counts = np.empty((len(part), room), np.int64), np.zeros(len(part), np.int64)
            # Not even what is below everything is at most NaN: all pass at first.
            least = np.full(len(part), np.nan, np.float32)
            for first, block in blocks(part, encoder):
                _scan_topk(block.numpy(), bias.numpy(), first, k, absolute, keys, counts, least)
            _finish(keys, counts, absolute, values[rows].numpy(), indices[rows].numpy())
    return values, indices


def above(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    threshold: Float[Tensor, "latent"],
) -> tuple[Float[Tensor, "row m"], Int[Tensor, "row m"]]:
    """``encode.encode_above`` for contiguous float32."""
    counts = np.zeros(len(x), np.int64)
    values, indices = np.zeros((len(x), 64), np.float32), np.zeros((len(x), 64), np.int64)
    with torch_threads():
        for rows in row_blocks(len(x), 1):
            for first, block in blocks(x[rows], encoder):
                rest = bias[first:].numpy(), threshold[first:].numpy()
                found = _count_above(block.numpy(), *rest)
                wanted = int((counts[rows] + found).max())
                if wanted > values.shape[1]:
                    more = max(wanted, min(2 * values.shape[1], len(encoder))) - values.shape[1]
                    values = np.pad(values, ((0, 0), (0, more)))
                    indices = np.pad(indices, ((0, 0), (0, more)))
                _place_above(block.numpy(), *rest, first, counts[rows], values[rows], indices[rows])
    width = max(1, int(counts.max(initial=0)))
    return torch.from_numpy(values[:, :width].copy()), torch.from_numpy(indices[:, :width].copy())


# Slices that are read from 0 on: indices that might be negative would keep the loop from vector
# registers. Written such that NaN passes.
@njit(cache=True, nogil=True)
@no_type_check
def _any_above(block, bias, least, absolute):
    found = False
    if absolute:
        for j in range(len(block)):
            found |= not (abs(block[j] + bias[j]) <= least)
    else:
        for j in range(len(block)):
            found |= not (block[j] + bias[j] <= least)
    return found


@njit(cache=True, nogil=True)
@no_type_check
def _flag_above(block, bias, least, absolute, flags):
    """``flags``: which of them ``_any_above`` found."""
    flags[len(block) :] = 0
    if absolute:
        for j in range(len(block)):
            flags[j] = not (abs(block[j] + bias[j]) <= least)
    else:
        for j in range(len(block)):
            flags[j] = not (block[j] + bias[j] <= least)


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _scan_topk(block, bias, first, k, absolute, keys, counts, least):
    """Note the pre-activations of latents ``first, first + 1, ...`` that may be among the k largest.

    ``counts`` is the number of notes so far, -1 where a row is lost to a NaN.
    """
    for r in prange(block.shape[0]):
        flags = np.empty(CHUNK, np.uint8)
        eights = flags.view(np.uint64)
        count, limit = counts[r], least[r]
        for start in range(0, block.shape[1], CHUNK):
            chunk, shift = block[r, start : start + CHUNK], bias[first + start : first + start + CHUNK]
            if count < 0 or not _any_above(chunk, shift, limit, absolute):
                continue
            if count >= 2 * k:
                select(keys[r, :count], k)
                count = k
                limit = unpack(keys[r, k - 1], False)[0]
            _flag_above(chunk, shift, limit, absolute, flags)
            for eight in range(CHUNK // 8):
                if eights[eight] == 0:
                    continue
                for j in range(8 * eight, 8 * eight + 8):
                    if flags[j]:
                        value = chunk[j] + shift[j]
                        if value != value or count < 0:
                            count = -1
                        else:
                            keys[r, count] = pack(value, first + start + j, absolute)
                            count += 1
        counts[r], least[r] = count, limit


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _finish(keys, counts, absolute, values, indices):
    for r in prange(values.shape[0]):
        if counts[r] >= 0:
            write_out(keys[r, : counts[r]], values[r], indices[r], absolute)
        else:
            for j in range(values.shape[1]):
                values[r, j], indices[r, j] = np.nan, j


@njit(cache=True, nogil=True)
@no_type_check
def _number_above(block, bias, threshold):
    count = np.int32(0)
    for j in range(len(block)):
        count += np.int32(not (block[j] + bias[j] <= threshold[j]))
    return count


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _count_above(block, bias, threshold):
    counts = np.empty(block.shape[0], np.int64)
    for r in prange(block.shape[0]):
        counts[r] = _number_above(block[r], bias, threshold)
    return counts


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _place_above(block, bias, threshold, first, counts, values, indices):
    for r in prange(block.shape[0]):
        at = counts[r]
        for start in range(0, block.shape[1], CHUNK):
            chunk, shift = block[r, start : start + CHUNK], bias[start : start + CHUNK]
            limit = threshold[start : start + CHUNK]
            if _number_above(chunk, shift, limit) == 0:
                continue
            for j in range(len(chunk)):
                value = chunk[j] + shift[j]
                if not (value <= limit[j]):
                    values[r, at], indices[r, at] = value, first + start + j
                    at += 1
        counts[r] = at
