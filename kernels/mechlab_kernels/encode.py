"""The encoder of a dictionary: pre-activations ``x @ encoder.T + bias``, of which few are kept.

Weights are latent-major (``encoder [latent d]``) and codes padded: ``values [row k]`` with
``indices [row k]``. The dense ``[row latent]`` array is never held: blocks of it go through a
small buffer, and what is kept moves on to running results. The floor is the matrix product.

Compiled for float32 on a CPU and for CUDA (Triton); the ``*_reference`` functions, dense and by
definition, for all else. The same input gives the same bits on the same machine and number of
threads. Gradients: ``autograd``.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab_kernels import encode_bf16, encode_cpu
from mechlab_kernels.dispatch import on_cpu, on_cuda

Search = Literal["float32", "bfloat16", "auto"]


def encode_topk(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    k: int,
    *,
    absolute: bool = False,
    search: Search = "float32",
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The ``k`` largest pre-activations of each row, as ``(values, indices)``, in no special order.

    Equal values go to the lower latent. A row with a NaN among its pre-activations comes out
    as all NaN.

    Args:
        absolute: the largest by magnitude; values keep their sign.
        search: "bfloat16" finds candidates with a bfloat16 product and scores them in float32; a
            proven bound (``encode_bf16``) makes the result that of "float32", up to the rounding of
            a float32 dot product. "auto" does so where it pays. Only CPUs look at it.

    Raises ValueError for shapes that do not fit and for ``k`` outside ``[1, latent]``.
    """
    _check(x, encoder, bias)
    if not 1 <= k <= len(encoder):
        raise ValueError(f"k = {k} is outside [1, {len(encoder)}]")
    if on_cpu(x, encoder, bias):
        x, encoder, bias = (part.detach().contiguous() for part in (x, encoder, bias))
        if search == "bfloat16" or (search == "auto" and low_precision_supported() and len(x) >= 256):
            return encode_bf16.topk(x, encoder, bias, k, absolute)
        return encode_cpu.topk(x, encoder, bias, k, absolute)
    if on_cuda(x, encoder, bias):
        from mechlab_kernels import triton_encode

        x, encoder, bias = (part.detach().contiguous() for part in (x, encoder, bias))
        return triton_encode.encode_topk(x, encoder, bias, k, absolute)
    return encode_topk_reference(x, encoder, bias, k, absolute=absolute)


def encode_topk_reference(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    k: int,
    *,
    absolute: bool = False,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The same by definition: all pre-activations, sorted."""
    pre = _pre_activations(x, encoder, bias)
    key = pre.abs() if absolute else pre
    indices = torch.sort(key, dim=1, descending=True, stable=True).indices[:, :k]
    values = pre.gather(1, indices)
    bad = pre.isnan().any(1, keepdim=True)
    indices = torch.where(bad, torch.arange(k, device=x.device), indices)
    return torch.where(bad, torch.nan, values), indices


def encode_above(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    threshold: Float[Tensor, "latent"],
) -> tuple[Float[Tensor, "row m"], Int[Tensor, "row m"]]:
    """All pre-activations above their latent's threshold, as ``(values, indices)`` by latent.

    Padded with value 0, index 0 to the widest row (``m`` >= 1). A NaN counts as above, so that
    it shows. Raises ValueError for shapes that do not fit.
    """
    _check(x, encoder, bias)
    if threshold.shape != bias.shape:
        raise ValueError(f"threshold has shape {tuple(threshold.shape)}, bias {tuple(bias.shape)}")
    if on_cpu(x, encoder, bias, threshold):
        return encode_cpu.above(*(part.detach().contiguous() for part in (x, encoder, bias, threshold)))
    if on_cuda(x, encoder, bias, threshold):
        from mechlab_kernels import triton_encode

        return triton_encode.encode_above(
            *(part.detach().contiguous() for part in (x, encoder, bias, threshold))
        )
    return encode_above_reference(x, encoder, bias, threshold)


def encode_above_reference(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    threshold: Float[Tensor, "latent"],
) -> tuple[Float[Tensor, "row m"], Int[Tensor, "row m"]]:
    """The same by definition: all pre-activations, those above moved to the front."""
    pre = _pre_activations(x, encoder, bias)
    above = ~(pre <= threshold)
    width = max(1, int(above.sum(1).max())) if len(x) else 1
    indices = torch.sort(above.byte(), dim=1, descending=True, stable=True).indices[:, :width]
    used = above.gather(1, indices)
    return torch.where(used, pre.gather(1, indices), 0), torch.where(used, indices, 0)


def low_precision_supported() -> bool:
    """Whether this CPU multiplies bfloat16 natively, so that ``search="bfloat16"`` is the faster."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _check(x: Tensor, encoder: Tensor, bias: Tensor) -> None:
    # Compiled code checks no bounds.
    fits = x.ndim == encoder.ndim == 2 and x.shape[1] == encoder.shape[1]
    if not fits or bias.shape != encoder.shape[:1] or not len(encoder):
        shapes = f"{tuple(x.shape)}, {tuple(encoder.shape)} and {tuple(bias.shape)}"
        raise ValueError(f"x, encoder and bias do not fit together: {shapes}")


def _pre_activations(x: Tensor, encoder: Tensor, bias: Tensor) -> Tensor:
    dtype = reduce(torch.promote_types, (x.dtype, encoder.dtype, bias.dtype))
    working = torch.promote_types(dtype, torch.float32)
    return (x.to(working) @ encoder.to(working).T + bias.to(working)).to(dtype)
