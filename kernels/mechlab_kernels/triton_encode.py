"""``encode`` on CUDA: blocks of pre-activations by torch's product, kept ones picked from each.

For the k largest, pre-activation and latent become one 64-bit integer, ordered as in ``select``:
no two are equal, so ``torch.topk`` has one right answer, which is that of the definition. In
bfloat16 the product is rounded before the bias is added, and the sum again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import no_type_check

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from jaxtyping import Float, Int
from torch import Tensor

ROWS, LATENTS = 4096, 4096  # of a block
CHUNK = 1024  # latents that a program works on at a time
NAN = 2**63 - 1  # what a NaN becomes: above all else
ROOM = 1024  # codes of a row in the first attempt of encode_above


def encode_topk(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    k: int,
    absolute: bool,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """``encode.encode_topk`` for contiguous inputs of checked shapes."""
    dtype = _dtype(x, encoder, bias)
    values = torch.empty(len(x), k, device=x.device, dtype=dtype)
    indices = torch.empty(len(x), k, device=x.device, dtype=torch.int64)
    for begin in range(0, len(x), ROWS):
        part = x[begin : begin + ROWS]
        best = torch.empty(len(part), 0, device=x.device, dtype=torch.int64)
        for first, block in _blocks(part, encoder):
            keys = torch.empty(block.shape, device=x.device, dtype=torch.int64)
            grid = (len(part), triton.cdiv(block.shape[1], CHUNK))
            _pack[grid](block, bias, keys, first, block.shape[1], ABSOLUTE=absolute, CHUNK=CHUNK)
            found = keys.topk(min(k, keys.shape[1]), dim=1, sorted=False).values
            best = torch.cat([best, found], dim=1)
            best = best.topk(min(k, best.shape[1]), dim=1, sorted=False).values
        rows = slice(begin, begin + ROWS)
        values[rows], indices[rows] = _unpack(best, absolute)
    return values, indices


def encode_above(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    threshold: Float[Tensor, "latent"],
) -> tuple[Float[Tensor, "row m"], Int[Tensor, "row m"]]:
    """``encode.encode_above`` for contiguous inputs of checked shapes. Waits for the device once.

    Where a row has more than ``ROOM`` codes, all is computed again with the room it takes.
    """
    room = min(ROOM, len(encoder))
    while True:
        counts = torch.zeros(len(x), device=x.device, dtype=torch.int64)
        values = torch.zeros(len(x), room, device=x.device, dtype=_dtype(x, encoder, bias))
        indices = torch.zeros(len(x), room, device=x.device, dtype=torch.int64)
        for begin in range(0, len(x), ROWS):
            rows = slice(begin, begin + ROWS)
            for first, block in _blocks(x[rows], encoder):
                codes = counts[rows], values[rows], indices[rows]
                width = block.shape[1]
                _place[(len(block),)](block, bias, threshold, *codes, first, width, room, CHUNK=CHUNK)
        widest = max(1, int(counts.max())) if len(x) else 1
        if widest <= room:
            return values[:, :widest].contiguous(), indices[:, :widest].contiguous()
        room = widest


def _dtype(*tensors: Tensor) -> torch.dtype:
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def _blocks(x: Tensor, encoder: Tensor) -> Iterator[tuple[int, Tensor]]:
    dtype = _dtype(x, encoder)
    for first in range(0, len(encoder), LATENTS):
        yield first, x.to(dtype) @ encoder[first : first + LATENTS].to(dtype).T


def _unpack(keys: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
    """Values and indices; rows with a NaN as all NaN."""
    order = keys >> 32
    size = (order ^ ((order >> 31) & 0x7FFFFFFF)).int().view(torch.float32)
    values = torch.where((keys & 1).bool(), -size, size) if absolute else size
    indices = 0x7FFFFFFF - ((keys >> 1) & 0x7FFFFFFF)
    bad = (keys == NAN).any(1, keepdim=True)
    slots = torch.arange(keys.shape[1], device=keys.device)
    return torch.where(bad, torch.nan, values), torch.where(bad, slots, indices)


@triton.jit
@no_type_check
def _pack(block, bias, keys, first, width, ABSOLUTE: tl.constexpr, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = column < width
    value = tl.load(block + row * width + column, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + first + column, mask=inside, other=0.0).to(tl.float32)
    value = value.to(block.dtype.element_ty).to(tl.float32)
    negative = value < 0
    size = tl.where(negative, -value, value) if ABSOLUTE else value
    bits = tl.where(size != 0, size, 0.0).to(tl.int32, bitcast=True)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    key = (order << 32) | ((0x7FFFFFFF - first - column).to(tl.int64) << 1)
    if ABSOLUTE:
        key |= negative.to(tl.int64)
    key = tl.where(value == value, key, 0x7FFFFFFFFFFFFFFF)
    tl.store(keys + row * width + column, key, mask=inside)


@triton.jit
@no_type_check
def _place(block, bias, threshold, counts, values, indices, first, width, room, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + row)
    for begin in range(0, width, CHUNK):
        column = begin + tl.arange(0, CHUNK)
        inside = column < width
        value = tl.load(block + row * width + column, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(bias + first + column, mask=inside, other=0.0).to(tl.float32)
        value = value.to(values.dtype.element_ty).to(tl.float32)
        limit = tl.load(threshold + first + column, mask=inside, other=0.0).to(tl.float32)
        # Written such that NaN counts as above.
        above = ((value <= limit) == 0) & inside
        place = count + tl.cumsum(above.to(tl.int64), axis=0) - 1
        kept = above & (place < room)
        tl.store(values + row * room + place, value.to(values.dtype.element_ty), mask=kept)
        tl.store(indices + row * room + place, (first + column).to(tl.int64), mask=kept)
        count += tl.sum(above.to(tl.int64), axis=0)
    tl.store(counts + row, count)
