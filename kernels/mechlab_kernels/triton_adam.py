"""``adam`` on CUDA: one program a row, or a stretch of 1024 numbers where rows do not matter."""

from __future__ import annotations

from typing import no_type_check

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from jaxtyping import Float
from torch import Tensor


def adam_(
    parameter: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    first: Float[Tensor, "*shape"],
    second: Float[Tensor, "*shape"],
    lr: float,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
    gradient_scale: float,
    unit_rows: bool,
) -> None:
    """``adam.adam_`` for contiguous float32. A unit row must fit one program: ``d`` <= 65536."""
    total = parameter.numel()
    if not total:
        return
    width = parameter.shape[-1] if unit_rows else 1024
    _adam[(triton.cdiv(total, width),)](
        parameter,
        gradient,
        first,
        second,
        total,
        width,
        lr / (1 - beta1**step),
        beta1,
        beta2,
        1 - beta1,
        1 - beta2,
        (1 - beta2**step) ** 0.5,
        eps,
        gradient_scale,
        UNIT=unit_rows,
        WIDTH=triton.next_power_of_2(width),
    )


@triton.jit
@no_type_check
def _adam(
    parameter,
    gradient,
    first,
    second,
    total,
    width,
    rate,
    beta1,
    beta2,
    rest1,
    rest2,
    correction,
    eps,
    scale,
    UNIT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    column = tl.arange(0, WIDTH)
    at = tl.program_id(0).to(tl.int64) * width + column
    inside = (column < width) & (at < total)
    weight = tl.load(parameter + at, mask=inside, other=0.0)
    change = tl.load(gradient + at, mask=inside, other=0.0)
    if UNIT:
        change -= tl.sum(change * weight, axis=0) * weight
    change *= scale
    mean = beta1 * tl.load(first + at, mask=inside, other=0.0) + rest1 * change
    spread = beta2 * tl.load(second + at, mask=inside, other=0.0) + rest2 * change * change
    weight -= rate * mean / (tl.sqrt(spread) / correction + eps)
    if UNIT:
        square = tl.sum(tl.where(inside, weight * weight, 0.0), axis=0)
        weight /= tl.where(square != 0, tl.sqrt(square), 1.0)
    tl.store(first + at, mean, mask=inside)
    tl.store(second + at, spread, mask=inside)
    tl.store(parameter + at, weight, mask=inside)
