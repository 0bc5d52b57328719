"""``encode`` in float32 on a CPU: a block of pre-activations at a time, then a scan of the block.

The scan asks of 64 pre-activations at once, in vector registers, whether any passes the
threshold that it would have to pass; hardly ever does one. Those that pass go, one by one, into
a heap of the row's k largest so far (its smallest on top, which is the threshold).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from mechlab_kernels.threads import torch_threads

ROWS, LATENTS, CHUNK = 4096, 512, 64


def blocks(
    x: Tensor, encoder: Tensor, rows: int = ROWS, latents: int = LATENTS
) -> Iterator[tuple[slice, int, Tensor]]:
    """``(rows, first latent, x @ encoder.T there)`` by blocks, in a buffer that is used again."""
    buffer = x.new_empty(min(rows, len(x)) * min(latents, len(encoder)))
    for row in range(0, len(x), rows):
        for latent in range(0, len(encoder), latents):
            left, right = x[row : row + rows], encoder[latent : latent + latents]
            block = buffer[: len(left) * len(right)].view(len(left), len(right))
            yield slice(row, row + rows), latent, torch.mm(left, right.T, out=block)


def topk(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    k: int,
    absolute: bool,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """``encode.encode_topk`` for contiguous float32."""
    values, indices = torch.empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64)
    value_array, index_array, bias_array = values.numpy(), indices.numpy(), bias.numpy()
    with torch_threads():
        for rows, first, block in blocks(x, encoder):
            _scan_topk(block.numpy(), bias_array, first, absolute, value_array[rows], index_array[rows])
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
        for rows, first, block in blocks(x, encoder):
            rest = bias[first:].numpy(), threshold[first:].numpy()
            found = _count_above(block.numpy(), *rest)
            wanted = int((counts[rows] + found).max())
            if wanted > values.shape[1]:
                more = max(wanted, min(2 * values.shape[1], len(encoder))) - values.shape[1]
                values = np.pad(values, ((0, 0), (0, more)))
                indices = np.pad(indices, ((0, 0), (0, more)))
            _place_above(block.numpy(), *rest, first, found, counts[rows], values[rows], indices[rows])
    width = max(1, int(counts.max(initial=0)))
    return torch.from_numpy(values[:, :width].copy()), torch.from_numpy(indices[:, :width].copy())


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _scan_topk(block, bias, first, absolute, values, indices):
    """Merge the pre-activations of latents ``first, first + 1, ...`` into each row's k largest.

    Results hold the first k latents until there are more, and are a heap from then on.
    """
    k, width = values.shape[1], block.shape[1]
    for r in prange(block.shape[0]):
        for start in range(0, width, CHUNK):
            end = min(start + CHUNK, width)
            at = start
            while at < end and first + at < k:
                values[r, first + at] = block[r, at] + bias[first + at]
                indices[r, first + at] = first + at
                at += 1
                if first + at == k:
                    for place in range(k // 2 - 1, -1, -1):
                        sift(values[r], indices[r], place, absolute)
                    poison(values[r], indices[r])
            if at == end:
                continue
            least = abs(values[r, 0]) if absolute else values[r, 0]
            # Written such that NaN passes.
            passing = 0
            if absolute:
                for j in range(at, end):
                    passing += not (abs(block[r, j] + bias[first + j]) <= least)
            else:
                for j in range(at, end):
                    passing += not (block[r, j] + bias[first + j] <= least)
            if passing:
                for j in range(at, end):
                    insert(values[r], indices[r], block[r, j] + bias[first + j], first + j, absolute)


@njit(cache=True, nogil=True)
@no_type_check
def insert(values, indices, value, index, absolute):
    """Take a value into the heap if it belongs there; indices must come in ascending order."""
    least, size = values[0], value
    if absolute:
        least, size = abs(least), abs(size)
    if size > least:
        values[0], indices[0] = value, index
        sift(values, indices, 0, absolute)
    elif size != size:
        values[0] = value
        poison(values, indices)


@njit(cache=True, nogil=True)
@no_type_check
def poison(values, indices):
    """One NaN makes all of them NaN; nothing enters the heap after that."""
    for value in values:
        if value != value:
            for j in range(len(values)):
                values[j], indices[j] = np.nan, j
            return


@njit(cache=True, nogil=True)
@no_type_check
def sift(values, indices, place, absolute):
    """Let the entry sink to where no child is smaller; of equals the later latent is the smaller."""
    value, index = values[place], indices[place]
    size = abs(value) if absolute else value
    while 2 * place + 1 < len(values):
        child = 2 * place + 1
        least = abs(values[child]) if absolute else values[child]
        if child + 1 < len(values):
            other = abs(values[child + 1]) if absolute else values[child + 1]
            if other < least or (other == least and indices[child + 1] > indices[child]):
                child, least = child + 1, other
        if not (least < size or (least == size and indices[child] > index)):
            break
        values[place], indices[place] = values[child], indices[child]
        place = child
    values[place], indices[place] = value, index


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _count_above(block, bias, threshold):
    counts = np.empty(block.shape[0], np.int64)
    for r in prange(block.shape[0]):
        count = 0
        for j in range(block.shape[1]):
            count += not (block[r, j] + bias[j] <= threshold[j])
        counts[r] = count
    return counts


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _place_above(block, bias, threshold, first, found, counts, values, indices):
    for r in prange(block.shape[0]):
        if found[r]:
            at = counts[r]
            for j in range(block.shape[1]):
                value = block[r, j] + bias[j]
                if not (value <= threshold[j]):
                    values[r, at], indices[r, at] = value, first + j
                    at += 1
            counts[r] = at
