"""Triton kernels against the definitions, on the device named on the command line.

A program of its own, because Triton decides once, when it is imported, whether to compile for a
GPU or, with TRITON_INTERPRET=1, to be interpreted on the CPU.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from mechlab_kernels import adam, encode, sparse, triton_adam, triton_encode, triton_sparse


def close(ours: Tensor, theirs: Tensor) -> None:
    rough = ours.dtype == torch.bfloat16
    torch.testing.assert_close(
        ours, theirs, rtol=2e-2 if rough else 1e-5, atol=5e-2 if rough else 1e-4, equal_nan=True
    )


def check_encode(device: str, rows: int, d: int, latents: int, k: int, dtype: torch.dtype) -> None:
    # Small integers: exact in every precision, with many ties.
    x, encoder = (torch.randint(-2, 3, s, device=device).to(dtype) for s in ((rows, d), (latents, d)))
    bias, threshold = (torch.randint(-2, 3, (latents,), device=device).to(dtype) for _ in range(2))
    for bad in (False, True):
        if bad:
            x[rows // 2, 0] = torch.nan
        for absolute in (False, True):
            found = triton_encode.encode_topk(x, encoder, bias, k, absolute)
            expected = encode.encode_topk_reference(x, encoder, bias, k, absolute=absolute)
            (values, places), (wanted, order) = (
                (pair[0].gather(1, pair[1].argsort(1)), pair[1].sort(1).values) for pair in (found, expected)
            )
            assert torch.equal(places, order)
            close(values, wanted)
        values, places = triton_encode.encode_above(x, encoder, bias, threshold)
        wanted, order = encode.encode_above_reference(x, encoder, bias, threshold)
        assert torch.equal(places, order)
        close(values, wanted)


def check_sparse(device: str, rows: int, d: int, latents: int, k: int, dtype: torch.dtype) -> None:
    values = torch.randn(rows, k, device=device).to(dtype)
    values[torch.rand(rows, k, device=device) < 0.3] = 0
    indices = torch.randint(0, latents, (rows, k), device=device)
    x, weight = (
        torch.randn(rows, d, device=device).to(dtype),
        torch.randn(latents, d, device=device).to(dtype),
    )
    decoded = triton_sparse.decode(values, indices, weight, torch.full_like(x, torch.nan))
    close(decoded, sparse.decode_reference(values, indices, weight))
    dots = triton_sparse.gathered_dots(x, indices, weight, torch.full_like(values, torch.nan))
    close(dots, sparse.gathered_dots_reference(x, indices, weight))
    total = triton_sparse.accumulate(values, indices, x, torch.full_like(weight, torch.nan))
    close(total, sparse.accumulate_reference(values, indices, x, latents))
    # Slots out of range are not used.
    indices[0, 0] = latents
    outside = triton_sparse.decode(values, indices, weight, torch.full_like(x, torch.nan))
    values[0, 0], indices[0, 0] = 0, 0
    close(outside, sparse.decode_reference(values, indices, weight))


def check_adam(device: str, shape: tuple[int, ...], unit: bool) -> None:
    start = torch.randn(shape, device=device)
    start = torch.nn.functional.normalize(start) if unit else start
    fast, slow = ([start.clone(), torch.zeros_like(start), torch.zeros_like(start)] for _ in range(2))
    for step in range(1, 4):
        gradient = torch.randn(shape, device=device)
        for run, (parameter, first, second) in ((triton_adam.adam_, fast), (adam.adam_reference_, slow)):
            run(parameter, gradient, first, second, 1e-2, step, 0.9, 0.999, 1e-8, 0.5, unit)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def main(device: str) -> None:
    torch.manual_seed(0)
    triton_encode.LATENTS, triton_encode.CHUNK, triton_encode.ROWS = 48, 16, 4
    triton_encode.ROOM = 8
    for dtype in (torch.float32, torch.bfloat16):
        for rows, d, latents, k in ((1, 1, 1, 1), (5, 7, 100, 3), (6, 33, 50, 50)):
            check_encode(device, rows, d, latents, k, dtype)
            check_sparse(device, rows, d, latents, k, dtype)
    for shape, unit in (((3, 5), False), ((7, 33), True), ((1100,), False)):
        check_adam(device, shape, unit)
    print("all agree")


if __name__ == "__main__":
    main(sys.argv[1])
