"""Products of sparse codes with dense arrays, and their transposes.

Codes are padded: slot ``(r, j)`` says that latent ``indices[r, j]`` has the value
``values[r, j]`` on row ``r``; value 0 means that the slot is not used. With the codes as a
sparse ``[row latent]`` matrix S:

    decode(values, indices, W)          S @ W
    accumulate(values, indices, rows)   S^T @ rows
    column_sums(values, indices)        S^T @ 1
    gathered_dots(a, indices, W)        (a @ W^T) at the slots

which are one another's gradients (``autograd`` offers them as such). The floor of each is one read of every
``[d]`` row that a slot names and one write of the result.

Every function runs compiled for float32 on a CPU and on CUDA (Triton), and as ``*_reference``, by
definition, for all else. The result has the inputs' common dtype; sums are float32 at least.
Results are the same bits for the same input, whatever the number of threads: each output row
is summed by one thread in a fixed order. Indices must lie in ``[0, latent)`` in unused slots too;
on a CPU ValueError says where they do not. On CUDA a check would wait for the device, and such
slots count as unused.
"""

from __future__ import annotations

from functools import reduce
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from mechlab_kernels.csr import build_csr
from mechlab_kernels.dispatch import on_cpu, on_cuda
from mechlab_kernels.threads import torch_threads


def decode(
    values: Float[Tensor, "row k"],
    indices: Int[Tensor, "row k"],
    decoder: Float[Tensor, "latent d"],
    out: Float[Tensor, "row d"] | None = None,
) -> Float[Tensor, "row d"]:
    """Weighted sum of the decoder rows that each row of codes names.

    ``out`` receives the result in place of a new tensor. Raises ValueError on shapes that do not
    fit and on indices outside the dictionary.
    """
    _check_codes(values, indices, len(decoder))
    out = _result(out, (len(values), decoder.shape[1]), values, decoder)
    if on_cpu(values, decoder, out):
        arrays = _arrays(values, indices, decoder)
        with torch_threads():
            _decode(*arrays, out.numpy())
        return out
    if on_cuda(values, decoder, out) and out.is_contiguous():
        from mechlab_kernels import triton_sparse

        return triton_sparse.decode(values.contiguous(), indices.contiguous(), decoder.contiguous(), out)
    return out.copy_(decode_reference(values, indices, decoder))


def decode_reference(
    values: Float[Tensor, "row k"], indices: Int[Tensor, "row k"], decoder: Float[Tensor, "latent d"]
) -> Float[Tensor, "row d"]:
    """The same by definition, one slot of all rows after the other."""
    dtype, working = _dtypes(values, decoder)
    total = decoder.new_zeros((len(values), decoder.shape[1]), dtype=working)
    for value, index in zip(values.to(working).T, indices.T, strict=True):
        weighted = value[:, None] * decoder[index].to(working)
        total += torch.where(value[:, None] != 0, weighted, 0)
    return total.to(dtype)


def gathered_dots(
    a: Float[Tensor, "row d"],
    indices: Int[Tensor, "row k"],
    weight: Float[Tensor, "latent d"],
    out: Float[Tensor, "row k"] | None = None,
) -> Float[Tensor, "row k"]:
    """Dot product of each row with every weight row that its slots name (unused slots too).

    ``out`` and errors as for ``decode``.
    """
    if a.ndim != 2 or indices.ndim != 2 or len(a) != len(indices) or a.shape[1] != weight.shape[1]:
        shapes = f"{tuple(a.shape)}, {tuple(indices.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"rows, indices and weight do not fit together: {shapes}")
    _check_indices(indices, len(weight))
    out = _result(out, tuple(indices.shape), a, weight)
    if on_cpu(a, weight, out):
        arrays = _arrays(a, indices, weight)
        with torch_threads():
            _gathered_dots(*arrays, out.numpy())
        return out
    if on_cuda(a, weight, out) and out.is_contiguous():
        from mechlab_kernels import triton_sparse

        return triton_sparse.gathered_dots(a.contiguous(), indices.contiguous(), weight.contiguous(), out)
    return out.copy_(gathered_dots_reference(a, indices, weight))


def gathered_dots_reference(
    a: Float[Tensor, "row d"], indices: Int[Tensor, "row k"], weight: Float[Tensor, "latent d"]
) -> Float[Tensor, "row k"]:
    """The same by definition, one slot of all rows after the other."""
    dtype, working = _dtypes(a, weight)
    out = a.new_empty(tuple(indices.shape), dtype=dtype)
    for slot, index in enumerate(indices.T):
        out[:, slot] = (a.to(working) * weight[index].to(working)).sum(1).to(dtype)
    return out


def accumulate(
    values: Float[Tensor, "row k"],
    indices: Int[Tensor, "row k"],
    rows: Float[Tensor, "row d"],
    n_latents: int,
    out: Float[Tensor, "latent d"] | None = None,
) -> Float[Tensor, "latent d"]:
    """For each latent, the sum of the rows that name it, each times its value (0 where none does).

    The slots are sorted by latent (``csr``), then every output row is written once: no atomics.
    ``out`` and errors as for ``decode``.
    """
    _check_codes(values, indices, n_latents)
    if rows.ndim != 2 or len(rows) != len(values):
        raise ValueError(f"{tuple(values.shape)} codes do not fit {tuple(rows.shape)} rows")
    out = _result(out, (n_latents, rows.shape[1]), values, rows)
    if on_cpu(values, rows, out):
        value_array, index_array, row_array = _arrays(values, indices, rows)
        indptr, row, value = build_csr(value_array, index_array, n_latents)
        with torch_threads() as threads:
            # A fair share each of the slots to read and of the output rows to write.
            cost = indptr + np.arange(n_latents + 1)
            parts = np.searchsorted(cost, np.linspace(0, cost[-1], threads + 1))
            parts[-1] = n_latents
            _accumulate(indptr, row, value, row_array, out.numpy(), parts)
        return out
    if on_cuda(values, rows, out) and out.is_contiguous():
        from mechlab_kernels import triton_sparse

        return triton_sparse.accumulate(values.contiguous(), indices, rows.contiguous(), out)
    return out.copy_(accumulate_reference(values, indices, rows, n_latents))


def accumulate_reference(
    values: Float[Tensor, "row k"],
    indices: Int[Tensor, "row k"],
    rows: Float[Tensor, "row d"],
    n_latents: int,
) -> Float[Tensor, "latent d"]:
    """The same by definition, one slot of all rows after the other."""
    dtype, working = _dtypes(values, rows)
    total = rows.new_zeros((n_latents, rows.shape[1]), dtype=working)
    for value, index in zip(values.to(working).T, indices.T, strict=True):
        weighted = value[:, None] * rows.to(working)
        total.index_add_(0, index.long(), torch.where(value[:, None] != 0, weighted, 0))
    return total.to(dtype)


def column_sums(
    values: Float[Tensor, "row k"], indices: Int[Tensor, "row k"], n_latents: int
) -> Float[Tensor, "latent"]:
    """Sum of each latent's values over all rows. Errors as for ``decode``."""
    _check_codes(values, indices, n_latents)
    if on_cpu(values):
        out = torch.empty(n_latents, dtype=torch.float32)
        value_array, index_array = (part.numpy() for part in (values.detach(), indices))
        _column_sums(value_array, index_array, np.zeros(n_latents), out.numpy())
        return out
    if on_cuda(values):
        ones = values.new_ones((len(values), 1))
        return accumulate(values, indices, ones, n_latents)[:, 0]
    return column_sums_reference(values, indices, n_latents)


def column_sums_reference(
    values: Float[Tensor, "row k"], indices: Int[Tensor, "row k"], n_latents: int
) -> Float[Tensor, "latent"]:
    """The same by definition."""
    dtype, working = _dtypes(values)
    total = values.new_zeros(n_latents, dtype=working)
    return total.index_add_(0, indices.long().flatten(), values.to(working).flatten()).to(dtype)


def _check_codes(values: Tensor, indices: Tensor, n_latents: int) -> None:
    # Compiled code checks no bounds: a difference in shape would read past the end.
    if values.ndim != 2 or values.shape != indices.shape:
        shapes = f"{tuple(values.shape)} and {tuple(indices.shape)}"
        raise ValueError(f"values and indices differ in shape: {shapes}")
    _check_indices(indices, n_latents)


def _check_indices(indices: Tensor, n_latents: int) -> None:
    if indices.device.type == "cuda" or not indices.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(indices))
    if low < 0 or high >= n_latents:
        raise ValueError(f"indices run from {low} to {high}, outside [0, {n_latents})")


def _dtypes(*tensors: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Dtype of the result, and of the sums on the way there."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return dtype, torch.promote_types(dtype, torch.float32)


def _result(out: Tensor | None, shape: tuple[int, ...], *inputs: Tensor) -> Tensor:
    if out is None:
        return inputs[0].new_empty(shape, dtype=_dtypes(*inputs)[0])
    if tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, the result {shape}")
    return out


def _arrays(dense: Tensor, indices: Tensor, other: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As numpy, contiguous; int64 indices. Always so: each other layout would be compiled anew."""
    first, second = (part.detach().contiguous().numpy() for part in (dense, other))
    return first, indices.long().contiguous().numpy(), second


# Reassociation lets the compiler use vector registers for the sums; NaN and infinity keep their
# meaning.
@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "contract"})
@no_type_check
def _decode(values, indices, decoder, out):
    k, d = values.shape[1], decoder.shape[1]
    for r in prange(values.shape[0]):
        for i in range(d):
            out[r, i] = 0
        for j in range(k):
            value = values[r, j]
            if value != 0:
                latent = indices[r, j]
                for i in range(d):
                    out[r, i] += value * decoder[latent, i]


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "contract"})
@no_type_check
def _gathered_dots(a, indices, weight, out):
    for r in prange(a.shape[0]):
        for j in range(indices.shape[1]):
            latent = indices[r, j]
            total = np.float32(0)
            for i in range(a.shape[1]):
                total += a[r, i] * weight[latent, i]
            out[r, j] = total


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "contract"})
@no_type_check
def _accumulate(indptr, row, value, rows, out, parts):
    d = rows.shape[1]
    for part in prange(len(parts) - 1):
        for latent in range(parts[part], parts[part + 1]):
            for i in range(d):
                out[latent, i] = 0
            for entry in range(indptr[latent], indptr[latent + 1]):
                for i in range(d):
                    out[latent, i] += value[entry] * rows[row[entry], i]


@njit(cache=True, nogil=True)
@no_type_check
def _column_sums(values, indices, total, out):
    for r in range(values.shape[0]):
        for j in range(values.shape[1]):
            total[indices[r, j]] += values[r, j]
    for latent in range(len(out)):
        out[latent] = total[latent]
