"""Differentiable encode and decode on sparse codes, with sparse gradients.

Only kept pre-activations carry gradient, so every backward pass is one of the sparse products of
``sparse``: nothing of size ``[row latent]`` exists. With g the gradient at the values:

    encoder: S(g)^T @ x     bias: S(g)^T @ 1     x: S(g) @ encoder     (values = x @ encoder.T + bias)
    decoder: S(values)^T @ g     values: (g @ decoder.T) at the slots  (x_hat = S(values) @ decoder)

Gradients of gradients are not offered.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mechlab_kernels import sparse
from mechlab_kernels.encode import Search, encode_topk


def topk_pre_activations(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    k: int,
    absolute: bool = False,
    search: Search = "float32",
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """``encode.encode_topk``, differentiable in the first three at the latents chosen."""
    values: Tensor
    indices: Tensor
    values, indices = _TopkPreActivations.apply(x, encoder, bias, k, absolute, search)  # type: ignore[no-untyped-call]
    return values, indices


def selected_pre_activations(
    x: Float[Tensor, "row d"],
    encoder: Float[Tensor, "latent d"],
    bias: Float[Tensor, "latent"],
    indices: Int[Tensor, "row k"],
) -> Float[Tensor, "row k"]:
    """Pre-activations ``x @ encoder.T + bias`` at the given latents only, differentiable.

    Raises ValueError on shapes that do not fit and indices outside the dictionary.
    """
    values: Tensor = _SelectedPreActivations.apply(x, encoder, bias, indices)  # type: ignore[no-untyped-call]
    return values


def sparse_decode(
    values: Float[Tensor, "row k"], indices: Int[Tensor, "row k"], decoder: Float[Tensor, "latent d"]
) -> Float[Tensor, "row d"]:
    """``sparse.decode``, differentiable in values and decoder.

    Unused slots (value 0) receive a gradient like all others. Errors as for ``sparse.decode``.
    """
    x_hat: Tensor = _SparseDecode.apply(values, indices, decoder)  # type: ignore[no-untyped-call]
    return x_hat


def _encoder_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, encoder, indices = ctx.saved_tensors
    return (
        sparse.decode(gradient, indices, encoder) if ctx.needs_input_grad[0] else None,
        sparse.accumulate(gradient, indices, x, len(encoder)) if ctx.needs_input_grad[1] else None,
        sparse.column_sums(gradient, indices, len(encoder)) if ctx.needs_input_grad[2] else None,
    )


class _TopkPreActivations(Function):
    @staticmethod
    def forward(ctx: Any, x: Any, encoder: Any, bias: Any, k: int, absolute: bool, search: Any) -> Any:
        values, indices = encode_topk(x, encoder, bias, k, absolute=absolute, search=search)
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(x, encoder, indices)
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any, _: Any) -> Any:
        return *_encoder_gradients(ctx, gradient), None, None, None


class _SelectedPreActivations(Function):
    @staticmethod
    def forward(ctx: Any, x: Any, encoder: Any, bias: Any, indices: Any) -> Any:
        ctx.save_for_backward(x, encoder, indices)
        return sparse.gathered_dots(x, indices, encoder) + bias[indices]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        return *_encoder_gradients(ctx, gradient), None


class _SparseDecode(Function):
    @staticmethod
    def forward(ctx: Any, values: Any, indices: Any, decoder: Any) -> Any:
        ctx.save_for_backward(values, indices, decoder)
        return sparse.decode(values, indices, decoder)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        values, indices, decoder = ctx.saved_tensors
        return (
            sparse.gathered_dots(gradient, indices, decoder) if ctx.needs_input_grad[0] else None,
            None,
            sparse.accumulate(values, indices, gradient, len(decoder)) if ctx.needs_input_grad[2] else None,
        )
