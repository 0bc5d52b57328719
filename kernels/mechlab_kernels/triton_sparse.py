"""``sparse`` on CUDA. Contiguous inputs of checked shapes; sums in float32.

No atomics: each result is summed by one program in a fixed order. Slots whose index is out of
range count as unused.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from jaxtyping import Float, Int
from torch import Tensor

SLOTS = 16


def _width(d: int) -> int:
    """Columns that a program works on at a time."""
    return int(min(1024, triton.next_power_of_2(d)))


def decode(
    values: Float[Tensor, "row k"],
    indices: Int[Tensor, "row k"],
    decoder: Float[Tensor, "latent d"],
    out: Float[Tensor, "row d"],
) -> Float[Tensor, "row d"]:
    """``sparse.decode`` into ``out``."""
    (rows, k), (latents, d) = values.shape, decoder.shape
    if out.numel():
        grid = (rows, triton.cdiv(d, _width(d)))
        _decode[grid](values, indices, decoder, out, k, latents, d, D=_width(d))
    return out


def gathered_dots(
    a: Float[Tensor, "row d"],
    indices: Int[Tensor, "row k"],
    weight: Float[Tensor, "latent d"],
    out: Float[Tensor, "row k"],
) -> Float[Tensor, "row k"]:
    """``sparse.gathered_dots`` into ``out``; 0 where the index is out of range."""
    (rows, k), (latents, d) = indices.shape, weight.shape
    if out.numel():
        grid = (rows, triton.cdiv(k, SLOTS))
        _gathered_dots[grid](a, indices, weight, out, k, latents, d, K=SLOTS, D=min(128, _width(d)))
    return out


def accumulate(
    values: Float[Tensor, "row k"],
    indices: Int[Tensor, "row k"],
    rows: Float[Tensor, "row d"],
    out: Float[Tensor, "latent d"],
) -> Float[Tensor, "latent d"]:
    """``sparse.accumulate`` into ``out``: slots sorted by latent, then one program a latent."""
    latents, d = out.shape
    if not out.numel():
        return out
    used = (values != 0) & (indices >= 0) & (indices < latents)
    latent, order = torch.where(used, indices.long(), latents).flatten().sort(stable=True)
    # Where each latent's slots begin, without a wait for the device.
    indptr = torch.searchsorted(latent, torch.arange(latents + 1, device=latent.device))
    grid = (latents, triton.cdiv(d, _width(d)))
    _accumulate[grid](values, order, indptr, rows, out, values.shape[1], d, D=_width(d))
    return out


@triton.jit
@no_type_check
def _decode(values, indices, decoder, out, k, latents, d, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D + tl.arange(0, D)
    total = tl.zeros([D], tl.float32)
    for slot in range(k):
        value = tl.load(values + row * k + slot).to(tl.float32)
        latent = tl.load(indices + row * k + slot).to(tl.int64)
        if (value != 0) & (latent >= 0) & (latent < latents):
            weight = tl.load(decoder + latent * d + column, mask=column < d, other=0.0)
            total += value * weight.to(tl.float32)
    tl.store(out + row * d + column, total.to(out.dtype.element_ty), mask=column < d)


@triton.jit
@no_type_check
def _gathered_dots(a, indices, weight, out, k, latents, d, K: tl.constexpr, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * K + tl.arange(0, K)
    latent = tl.load(indices + row * k + slot, mask=slot < k, other=-1).to(tl.int64)
    known = (latent >= 0) & (latent < latents)
    total = tl.zeros([K], tl.float32)
    for begin in range(0, d, D):
        column = begin + tl.arange(0, D)
        left = tl.load(a + row * d + column, mask=column < d, other=0.0).to(tl.float32)
        inside = known[:, None] & (column < d)[None, :]
        right = tl.load(weight + latent[:, None] * d + column[None, :], mask=inside, other=0.0)
        total += tl.sum(tl.where(inside, left[None, :] * right.to(tl.float32), 0.0), axis=1)
    tl.store(out + row * k + slot, total.to(out.dtype.element_ty), mask=slot < k)


@triton.jit
@no_type_check
def _accumulate(values, order, indptr, rows, out, k, d, D: tl.constexpr):
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D + tl.arange(0, D)
    total = tl.zeros([D], tl.float32)
    for entry in range(tl.load(indptr + latent), tl.load(indptr + latent + 1)):
        slot = tl.load(order + entry)
        value = tl.load(values + slot).to(tl.float32)
        row = tl.load(rows + (slot // k) * d + column, mask=column < d, other=0.0)
        total += value * row.to(tl.float32)
    tl.store(out + latent * d + column, total.to(out.dtype.element_ty), mask=column < d)
