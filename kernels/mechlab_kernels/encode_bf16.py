"""The k largest pre-activations found with a bfloat16 product, exactly.

A CPU with bfloat16 instructions multiplies several times faster in bfloat16. Its product a(r, f)
approximates the pre-activation p(r, f) = <x, w> + b with a provable error, so it can rule out nearly
every latent; the few left are scored in float32.

**Bound.** For a row x and a latent's w let x', w' be their roundings to bfloat16, in exact arithmetic

    <x, w> - <x', w'> = <x - x', w> + <x', w - w'>,
    |<x, w> - <x', w'>| <= |x - x'| |w| + |x'| |w - w'|                           (Cauchy-Schwarz)

with the norms of the actual roundings, not of their worst case. The product of two bfloat16
numbers is exact in float32 (8 + 8 bits of 24). A float32 sum s of d such products, in any order,
each step rounded to a neighbour (even truncated: one step errs by less than u = 2^-23), obeys

    |s - <x', w'>| <= c |x'| |w'|,  c = d u / (1 - d u)     (Higham, Accuracy and Stability, 3.1)

and its rounding a to bfloat16 (8 bits, half a unit: 2^-8) obeys |a - s| <= 2^-8 |s|, hence
|a - s| <= |a| / 255. Subnormal numbers that the hardware takes for zero cost each of at most d
products and inputs less than 2^-126 (1 + |x'_i| + |w'_i|), in all at most
t = d 2^-126 (1 + |x'| + |w'|). Together, with |w'| <= |w| + |w - w'|,

    |p - (a + b)| <= E = |x - x'| |w| + |x'| (|w - w'| + c (|w| + |w - w'|)) + |a| / 255 + t.

**Selection.** Let L = a + b - E <= p <= U = a + b + E, and T the k-th largest L of a row. At least k
latents have p >= L >= T, so the k-th largest p is at least T, and each of the k largest has
U >= p >= T. The latents with U >= T therefore contain the k largest. For magnitudes the same
holds with |a + b| - E <= |p| <= |a + b| + E. Norms are rounded upwards and |a| / 254 stands for
|a| / 255, which covers the float32 rounding of these formulas themselves.

**Scan.** Bits of bfloat16 numbers, as 16-bit integers with the negative ones mirrored, are
ordered as the numbers are: 32 are compared at once with the smallest a that could reach T given
the largest bias and norms of their 64 latents.

Rows with too many candidates, with values not finite or near overflow go the float32 way.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from mechlab_kernels import encode_cpu
from mechlab_kernels.encode_cpu import CHUNK, insert, poison, sift
from mechlab_kernels.threads import torch_threads

ROWS, LATENTS = 2048, 1024
FEW_ROWS = 32  # the weights have to be rounded first: that costs as much as this many rows
OUTPUT_ERROR = 1 / 254
SUBNORMAL = 2.0**-126
SLACK = 1 + 2.0**-20
OVERFLOW = 1e37


def topk(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    k: int,
    absolute: bool,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """``encode.encode_topk`` for contiguous float32, with ``search="bfloat16"``."""
    rows, d = x.shape
    if rows < FEW_ROWS or d * 2.0**-23 > 0.5:
        return encode_cpu.topk(x, encoder, bias, k, absolute)
    values, indices = torch.empty(rows, k), torch.empty(rows, k, dtype=torch.int64)
    room = 3 * k + 4 * CHUNK
    lows = np.full((rows, k), -np.inf, np.float32)
    candidates, uppers = np.empty((rows, room), np.int32), np.empty((rows, room), np.float32)
    counts = np.zeros(rows, np.int64)
    with torch_threads():
        x_low, x_norm, x_gap = _rounded(x)
        encoder_low, norm, gap = _rounded(encoder)
        spread = _spread(norm, gap, d)
        chunks = _chunk_maxima(norm, spread, bias.numpy(), absolute)
        largest = np.maximum(x_norm, 1) * norm.max() + np.abs(bias.numpy()).max()
        counts[~(largest < OVERFLOW)] = -1
        # Of each row: |x - x'|, |x'| and t.
        x_wide = (x_norm + x_gap) * SLACK
        errors = np.stack([x_gap, x_wide, 2 * d * SUBNORMAL * (1 + x_wide + norm.max())], axis=1)
        for part, first, block in encode_cpu.blocks(x_low, encoder_low, ROWS, LATENTS):
            _scan(
                block.view(torch.int16).numpy(),
                first,
                absolute,
                errors[part],
                norm,
                spread,
                bias.numpy(),
                chunks,
                lows[part],
                candidates[part],
                uppers[part],
                counts[part],
            )
        _score(
            *(part.numpy() for part in (x, encoder, bias)),
            absolute,
            lows[:, 0],
            candidates,
            uppers,
            counts,
            values.numpy(),
            indices.numpy(),
        )
    again = torch.from_numpy(counts < 0).nonzero()[:, 0]
    if len(again):
        values[again], indices[again] = encode_cpu.topk(x[again], encoder, bias, k, absolute)
    return values, indices


def _rounded(x: Tensor) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """``x`` in bfloat16, and per row the norms of ``x`` and of what the rounding took away."""
    low = x.to(torch.bfloat16)
    norm, gap = np.empty(len(x), np.float32), np.empty(len(x), np.float32)
    _norms(x.numpy(), low.view(torch.int16).numpy(), norm, gap)
    return low, norm, gap


def _spread(norm: np.ndarray, gap: np.ndarray, d: int) -> np.ndarray:
    """What |x'| is multiplied with in E."""
    u = d * 2.0**-23
    wide, apart = norm.astype(np.float64), gap.astype(np.float64)
    spread: np.ndarray = ((apart + u / (1 - u) * (wide + apart)) * SLACK).astype(np.float32)
    return spread


def _chunk_maxima(norm: np.ndarray, spread: np.ndarray, bias: np.ndarray, absolute: bool) -> np.ndarray:
    starts = np.arange(0, len(norm), CHUNK)
    reach = np.abs(bias) if absolute else bias
    return np.stack([np.maximum.reduceat(part, starts) for part in (norm, spread, reach)], axis=1)


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "contract"})
@no_type_check
def _norms(x, low, norm, gap):
    d = x.shape[1]
    for r in prange(x.shape[0]):
        bits = np.empty(d, np.int32)
        for i in range(d):
            bits[i] = np.int32(low[r, i]) << 16
        rounded = bits.view(np.float32)
        square, apart = 0.0, 0.0
        for i in range(d):
            square += np.float64(x[r, i]) * np.float64(x[r, i])
            difference = np.float64(x[r, i]) - np.float64(rounded[i])
            apart += difference * difference
        norm[r] = np.sqrt(square) * SLACK
        gap[r] = np.sqrt(apart) * SLACK


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _scan(block, first, absolute, errors, norm, spread, bias, chunks, lows, candidates, uppers, counts):
    """Note the candidates among latents ``first, first + 1, ...``, and raise each row's k largest L.

    ``counts`` is the number of candidates, -1 where a row is given up. ``lows`` is a heap.
    """
    for r in prange(block.shape[0]):
        if counts[r] < 0:
            continue
        width, room = block.shape[1], candidates.shape[1]
        bits = np.empty(1, np.int32)
        real = bits.view(np.float32)
        gap, wide, tiny = errors[r]
        count = counts[r]
        for start in range(0, width, CHUNK):
            end = min(start + CHUNK, width)
            chunk = chunks[(first + start) // CHUNK]
            # The smallest a with U >= T, rounded down to a bfloat16; -0 is less than 0 as an integer.
            least = np.float64(lows[r, 0]) - SLACK * (gap * chunk[0] + wide * chunk[1] + tiny) - chunk[2]
            least = least / (1 + OUTPUT_ERROR) if least > 0 else least / (1 - OUTPUT_ERROR)
            least -= SLACK * SUBNORMAL + abs(least) * 2.0**-20
            if absolute and least < 0:
                least = 0.0
            real[0] = least
            key = np.int16((bits[0] ^ ((bits[0] >> 31) & 0x7FFFFFFF)) >> 16)
            passing = False
            if absolute:
                for j in range(start, end):
                    passing |= (block[r, j] & np.int16(0x7FFF)) >= key
            else:
                for j in range(start, end):
                    passing |= (block[r, j] ^ ((block[r, j] >> 15) & np.int16(0x7FFF))) >= key
            if not passing:
                continue
            if count + CHUNK > room:
                count = _compact(candidates[r], uppers[r], count, lows[r, 0])
                if count + CHUNK > room:
                    count = -1
                    break
            for j in range(start, end):
                pattern = block[r, j]
                mirrored = pattern & 0x7FFF if absolute else pattern ^ ((pattern >> 15) & 0x7FFF)
                if mirrored >= key:
                    latent = first + j
                    bits[0] = np.int32(pattern) << 16
                    value = np.float64(real[0])
                    error = gap * norm[latent] + wide * spread[latent] + tiny + abs(value) * OUTPUT_ERROR
                    value += bias[latent]
                    size = abs(value) if absolute else value
                    error = SLACK * error + abs(size) * 2.0**-20
                    if size + error >= lows[r, 0]:
                        candidates[r, count], uppers[r, count] = latent, size + error
                        count += 1
                        if size - error > lows[r, 0]:
                            lows[r, 0] = size - error
                            _sink(lows[r])
        counts[r] = count


@njit(cache=True, nogil=True)
@no_type_check
def _sink(heap):
    """Let the top entry sink to where no child is smaller."""
    value, place = heap[0], 0
    while 2 * place + 1 < len(heap):
        child = 2 * place + 1
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = value


@njit(cache=True, nogil=True)
@no_type_check
def _compact(candidates, uppers, count, least):
    """Drop the candidates that have fallen behind since; how many are left."""
    kept = 0
    for j in range(count):
        if uppers[j] >= least:
            candidates[kept], uppers[kept] = candidates[j], uppers[j]
            kept += 1
    return kept


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
@no_type_check
def _dot(a, b):
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _score(x, encoder, bias, absolute, least, candidates, uppers, counts, values, indices):
    """The k largest of the candidates, scored in float32; fewer than k give the row up."""
    k = values.shape[1]
    for r in prange(x.shape[0]):
        count = _compact(candidates[r], uppers[r], counts[r], least[r])
        if count < k:
            counts[r] = -1
            continue
        for j in range(count):
            latent = candidates[r, j]
            value = _dot(x[r], encoder[latent]) + bias[latent]
            if j >= k:
                insert(values[r], indices[r], value, latent, absolute)
                continue
            values[r, j], indices[r, j] = value, latent
            if j == k - 1:
                for place in range(k // 2 - 1, -1, -1):
                    sift(values[r], indices[r], place, absolute)
                poison(values[r], indices[r])
