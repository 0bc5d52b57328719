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
ordered as the numbers are: 32 are compared at once with the smallest a that could reach T, the
k-th largest L so far, given the largest bias and norms of their chunk of latents.

Rows with too many candidates, with values not finite or near overflow go the float32 way.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from mechlab_kernels import encode_cpu
from mechlab_kernels.encode_cpu import CHUNK
from mechlab_kernels.select import pack, select, write_out
from mechlab_kernels.threads import torch_threads

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
    room = 3 * k + 2 * CHUNK
    given_up = np.zeros(rows, np.bool_)
    with torch_threads():
        encoder_low, norm, gap = _rounded(encoder)
        latent_errors = norm, _spread(norm, gap, d), bias.numpy()
        chunks = _chunk_maxima(*latent_errors, absolute)
        for part in encode_cpu.row_blocks(rows, 2 * room):
            low, x_norm, x_gap = _rounded(x[part])
            # Of each row: |x - x'|, |x'| and t.
            wide = (x_norm + x_gap) * SLACK
            tiny = 2 * d * SUBNORMAL * (1 + wide + norm.max())
            row_errors = np.stack([x_gap, wide, tiny], axis=1) * SLACK
            notes = _blank_notes(len(low), room, k)
            largest = np.maximum(x_norm, 1) * norm.max() + np.abs(bias.numpy()).max()
            notes.number[~(largest < OVERFLOW)] = -1
            for first, block in encode_cpu.blocks(low, encoder_low):
                bits = block.view(torch.int16).numpy()
                _scan(bits, first, k, absolute, row_errors, *latent_errors, chunks, *notes)
            arrays = (tensor.numpy() for tensor in (x[part], encoder, bias, values[part], indices[part]))
            _score(*arrays, absolute, *notes[:4])
            given_up[part] = notes.number < 0
    again = torch.from_numpy(given_up).nonzero()[:, 0]
    if len(again):
        values[again], indices[again] = encode_cpu.topk(x[again], encoder, bias, k, absolute)
    return values, indices


class _Notes(NamedTuple):
    """The candidates of each row so far."""

    latent: Int[np.ndarray, "row room"]
    lower: Float[np.ndarray, "row room"]
    upper: Float[np.ndarray, "row room"]
    number: Int[np.ndarray, "row"]  # -1: the row is given up
    least: Float[np.ndarray, "row"]  # T
    full: Int[np.ndarray, "row"]  # as many candidates bring T up to date


def _blank_notes(rows: int, room: int, k: int) -> _Notes:
    lower, upper = np.empty((rows, room), np.float32), np.empty((rows, room), np.float32)
    start = np.zeros(rows, np.int64), np.full(rows, -np.inf, np.float32), np.full(rows, 2 * k)
    return _Notes(np.empty((rows, room), np.int32), lower, upper, *start)


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


@njit(cache=True, nogil=True)
@no_type_check
def _any_from(bits, key, absolute):
    """Whether a number is at least the one that ``key`` stands for; see ``_order``."""
    largest = np.int16(-32768)
    if absolute:
        for j in range(len(bits)):
            order = np.int16(bits[j] & np.int16(0x7FFF))
            largest = order if order > largest else largest
    else:
        for j in range(len(bits)):
            order = np.int16(bits[j] ^ np.int16((bits[j] >> 15) & 0x7FFF))
            largest = order if order > largest else largest
    return largest >= key


@njit(cache=True, nogil=True)
@no_type_check
def _flag_from(bits, key, absolute, flags):
    """``flags``: which of them ``_any_from`` found."""
    flags[len(bits) :] = 0
    if absolute:
        for j in range(len(bits)):
            flags[j] = np.int16(bits[j] & np.int16(0x7FFF)) >= key
    else:
        for j in range(len(bits)):
            flags[j] = np.int16(bits[j] ^ np.int16((bits[j] >> 15) & 0x7FFF)) >= key


@njit(cache=True, nogil=True)
@no_type_check
def _smallest(least, absolute):
    """16 bits, ordered, of a number at or just below the smallest a with a + |a| / 254 >= least."""
    least *= 1 / (1 + OUTPUT_ERROR) if least > 0 else 1 / (1 - OUTPUT_ERROR)
    # As an integer -0 is less than 0: zero goes below both.
    least -= SUBNORMAL + abs(least) * 2.0**-20
    if absolute and least < 0:
        return np.int16(0)
    bits = np.float32(least).view(np.int32)
    return np.int16((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> 16)


@njit(cache=True, nogil=True, parallel=True)
@no_type_check
def _scan(
    block,
    first,
    k,
    absolute,
    errors,
    norm,
    spread,
    bias,
    chunks,
    latents,
    lower,
    upper,
    counts,
    least,
    full,
):
    """Note the candidates among latents ``first, first + 1, ...``."""
    room = latents.shape[1]
    for r in prange(block.shape[0]):
        flags = np.empty(CHUNK, np.uint8)
        eights = flags.view(np.uint64)
        gap, wide, tiny = errors[r]
        count, limit = counts[r], np.float64(least[r])
        for start in range(0, block.shape[1], CHUNK):
            at = (first + start) // CHUNK
            reach = gap * chunks[at, 0] + wide * chunks[at, 1] + tiny + chunks[at, 2]
            key = _smallest(limit - reach, absolute)
            chunk = block[r, start : start + CHUNK]
            if count < 0 or not _any_from(chunk, key, absolute):
                continue
            if count >= full[r] or count + CHUNK > room:
                lows = lower[r, :count].copy()
                select(lows, k)
                limit = np.float64(lows[k - 1])
                count = _keep(latents[r], lower[r], upper[r], count, lows[k - 1])
                if count + CHUNK > room:
                    count = -1
                    continue
                full[r] = count + k
                key = _smallest(limit - reach, absolute)
            _flag_from(chunk, key, absolute, flags)
            for eight in range(CHUNK // 8):
                if eights[eight] == 0:
                    continue
                for j in range(8 * eight, 8 * eight + 8):
                    if flags[j] == 0:
                        continue
                    latent = first + start + j
                    product = np.float64(np.int32(np.int32(chunk[j]) << 16).view(np.float32))
                    value = product + bias[latent]
                    size = abs(value) if absolute else value
                    error = gap * norm[latent] + wide * spread[latent] + tiny + abs(product) * OUTPUT_ERROR
                    # The last term: of rounding to float32.
                    error += (abs(size) + error) * 2.0**-20
                    if size + error >= limit:
                        latents[r, count] = latent
                        lower[r, count], upper[r, count] = size - error, size + error
                        count += 1
        counts[r], least[r] = count, limit


@njit(cache=True, nogil=True)
@no_type_check
def _keep(latents, lower, upper, count, least):
    """Drop the candidates that can no longer be among the k largest; the number of those left."""
    kept = 0
    for j in range(count):
        if upper[j] >= least:
            latents[kept], lower[kept], upper[kept] = latents[j], lower[j], upper[j]
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
def _score(x, encoder, bias, values, indices, absolute, latents, lower, upper, counts):
    """The k largest of the candidates, scored in float32."""
    k = values.shape[1]
    for r in prange(x.shape[0]):
        count = counts[r]
        if count < 0:
            continue
        lows = lower[r, :count].copy()
        select(lows, k)
        count = _keep(latents[r], lower[r], upper[r], count, lows[k - 1])
        keys = np.empty(count, np.int64)
        for j in range(count):
            latent = latents[r, j]
            value = _dot(x[r], encoder[latent]) + bias[latent]
            if value != value:
                counts[r] = -1
                break
            keys[j] = pack(value, latent, absolute)
        if counts[r] >= 0:
            write_out(keys, values[r], indices[r], absolute)
