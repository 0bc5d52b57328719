"""Adam in one pass over memory, for weights with one row a latent.

An update step of plain torch reads and writes the four arrays many times; on a wide
dictionary that costs as much as a matrix product. Here each row is read once, changed while it
is in the cache and written once: the floor is four reads and three writes of the parameter's size.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from mechlab_kernels.dispatch import on_cpu, on_cuda
from mechlab_kernels.threads import torch_threads


@torch.no_grad()
def adam_(
    parameter: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    first: Float[Tensor, "*shape"],
    second: Float[Tensor, "*shape"],
    *,
    lr: float,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    gradient_scale: float = 1.0,
    unit_rows: bool = False,
) -> None:
    """One Adam step (Kingma and Ba, 2015, algorithm 1), changing all but the gradient in place.

    Args:
        parameter: ``[latent d]``, or ``[n]``.
        first: running mean of the gradient, before the correction of its bias; zeros at the start.
        second: the same of its square.
        step: number of this step, from 1.
        gradient_scale: multiplies the gradient first, as clipping does.
        unit_rows: rows of ``parameter`` have norm 1 and keep it: the part of the gradient along
            the row is removed before, and the row divided by its norm after (a row of zeros stays).

    Raises ValueError on shapes that differ, a step below 1 and unit rows of fewer than 2 dimensions.
    """
    arrays = (parameter, gradient, first, second)
    if any(array.shape != parameter.shape for array in arrays) or parameter.ndim not in (1, 2):
        shapes = ", ".join(str(tuple(array.shape)) for array in arrays)
        raise ValueError(f"parameter, gradient and moments differ in shape or are not 1- or 2-d: {shapes}")
    if step < 1:
        raise ValueError(f"steps count from 1, not {step}")
    if unit_rows and parameter.ndim != 2:
        raise ValueError("unit_rows needs a two-dimensional parameter")
    whole = all(array.is_contiguous() for array in arrays)
    if whole and on_cpu(*arrays):
        rows = [array.detach().view(-1, array.shape[-1]).numpy() for array in arrays]
        scales = np.array(
            [lr / (1 - beta1**step), beta1, beta2, (1 - beta2**step) ** 0.5, eps, gradient_scale], np.float32
        )
        with torch_threads():
            _adam(*rows, scales, np.float32(1 - beta1), np.float32(1 - beta2), unit_rows)
        return
    if whole and on_cuda(*arrays) and all(array.dtype == torch.float32 for array in arrays):
        from mechlab_kernels import triton_adam

        triton_adam.adam_(*arrays, lr, step, beta1, beta2, eps, gradient_scale, unit_rows)
        return
    adam_reference_(*arrays, lr, step, beta1, beta2, eps, gradient_scale, unit_rows)


@torch.no_grad()
def adam_reference_(
    parameter: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    first: Float[Tensor, "*shape"],
    second: Float[Tensor, "*shape"],
    lr: float,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    gradient_scale: float = 1.0,
    unit_rows: bool = False,
) -> None:
    """The same by definition."""
    gradient = gradient * gradient_scale
    if unit_rows:
        gradient = gradient - (gradient * parameter).sum(1, keepdim=True) * parameter
    first.mul_(beta1).add_(gradient, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    spread = second.sqrt() / (1 - beta2**step) ** 0.5 + eps
    parameter.sub_(lr / (1 - beta1**step) * first / spread)
    if unit_rows:
        parameter.div_(parameter.norm(dim=1, keepdim=True).clamp_min(torch.finfo(parameter.dtype).tiny))


@torch.no_grad()
def squared_norm(gradient: Float[Tensor, "*shape"], along: Float[Tensor, "*shape"] | None = None) -> float:
    """Sum of squares of a gradient, in float64; one read.

    Given the unit rows of a weight as ``along``, of what is left of the gradient once its part
    along each row is removed (as ``adam_`` with ``unit_rows`` does). On CUDA this waits for the
    device. Raises ValueError on shapes that differ.
    """
    if along is not None and (along.shape != gradient.shape or gradient.ndim != 2):
        raise ValueError(f"gradient {tuple(gradient.shape)} and weight {tuple(along.shape)} differ in shape")
    arrays = [gradient] if along is None else [gradient, along]
    if not (on_cpu(*arrays) and all(array.is_contiguous() for array in arrays)):
        return squared_norm_reference(gradient, along)
    if gradient.numel() == 0:
        return 0.0
    rows = [array.detach().view(-1, array.shape[-1]).numpy() for array in arrays]
    squares = np.empty(len(rows[0]))
    with torch_threads():
        _squares(rows[0], rows[-1], along is not None, squares)
    return float(squares.sum())


def squared_norm_reference(
    gradient: Float[Tensor, "*shape"], along: Float[Tensor, "*shape"] | None = None
) -> float:
    """The same by definition."""
    wide = gradient.detach().double()
    if along is not None:
        row = along.detach().double()
        wide = wide - (wide * row).sum(1, keepdim=True) * row
    return float(wide.square().sum())


@njit(cache=True, nogil=True, parallel=True, error_model="numpy", fastmath={"reassoc", "contract"})
@no_type_check
def _adam(parameter, gradient, first, second, scales, rest1, rest2, unit_rows):
    rate, beta1, beta2, correction, eps, scale = scales
    for r in prange(parameter.shape[0]):
        along = np.float32(0)
        if unit_rows:
            for i in range(parameter.shape[1]):
                along += gradient[r, i] * parameter[r, i]
        square = np.float32(0)
        for i in range(parameter.shape[1]):
            change = (gradient[r, i] - along * parameter[r, i]) * scale
            mean = beta1 * first[r, i] + rest1 * change
            spread = beta2 * second[r, i] + rest2 * change * change
            first[r, i], second[r, i] = mean, spread
            new = parameter[r, i] - rate * mean / (np.sqrt(spread) / correction + eps)
            parameter[r, i] = new
            square += new * new
        if unit_rows:
            norm = np.sqrt(square) if square != 0 else np.float32(1)
            for i in range(parameter.shape[1]):
                parameter[r, i] /= norm


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "contract"})
@no_type_check
def _squares(gradient, weight, remove, squares):
    for r in prange(gradient.shape[0]):
        along = 0.0
        if remove:
            for i in range(gradient.shape[1]):
                along += np.float64(gradient[r, i]) * np.float64(weight[r, i])
        total = 0.0
        for i in range(gradient.shape[1]):
            left = np.float64(gradient[r, i])
            if remove:
                left -= along * np.float64(weight[r, i])
            total += left * left
        squares[r] = total
