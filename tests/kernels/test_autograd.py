"""Sparse gradients against finite differences and against torch's own on the dense graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mechlab_kernels.autograd import selected_pre_activations, sparse_decode, topk_pre_activations


def weights(seed: int, rows: int, d: int, latents: int, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, d), (latents, d), (latents,))
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_topk_gradients_by_finite_differences(absolute, seed) -> None:
    x, encoder, bias = weights(seed, 4, 3, 9)
    assert gradcheck(lambda *w: topk_pre_activations(*w, 2, absolute)[0], (x, encoder, bias))


@pytest.mark.parametrize("seed", range(3))
def test_other_gradients_by_finite_differences(seed) -> None:
    x, encoder, bias = weights(seed, 4, 3, 9)
    indices = torch.randint(0, 9, (4, 5))
    assert gradcheck(lambda *w: selected_pre_activations(*w, indices), (x, encoder, bias))
    values = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v, w: sparse_decode(v, indices, w), (values, encoder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("search", ["float32", "bfloat16"])
def test_a_whole_dictionary_used_twice_in_one_graph(dtype, search) -> None:
    """Twice through the same weights, with an auxiliary loss on other latents, as training does."""
    x, encoder, bias = weights(5, 60, 12, 90, dtype)
    decoder = torch.randn(90, 12, dtype=dtype, requires_grad=True)
    others = torch.randint(0, 90, (60, 3))

    def loss(topk, selected, decode) -> Tensor:
        first = decode(*topk(x))
        second = decode(*topk(first + 0.1 * x))
        return (
            (first - x).square().sum() + (second * x).sum() + decode(selected(x).relu(), others).cos().sum()
        )

    def dense_topk(x: Tensor):
        top = (x @ encoder.T + bias).topk(7)
        return top.values.relu(), top.indices

    def dense_decode(values: Tensor, indices: Tensor) -> Tensor:
        return torch.zeros(60, 90, dtype=dtype).scatter_add(1, indices, values) @ decoder

    def sparse_topk(x: Tensor):
        values, indices = topk_pre_activations(x, encoder, bias, 7, False, search)
        return values.relu(), indices

    def our_decode(values: Tensor, indices: Tensor) -> Tensor:
        return sparse_decode(values, indices, decoder)

    leaves = (x, encoder, bias, decoder)
    ours = loss(sparse_topk, lambda x: selected_pre_activations(x, encoder, bias, others), our_decode)
    theirs = loss(dense_topk, lambda x: (x @ encoder.T + bias).gather(1, others), dense_decode)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    pairs = zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-2)


def test_only_the_gradients_asked_for() -> None:
    x, encoder, bias = weights(6, 8, 4, 10, torch.float32)
    values, indices = topk_pre_activations(x.detach(), encoder, bias.detach(), 3)
    assert not indices.requires_grad
    sparse_decode(values, indices, encoder.detach()).sum().backward()
    assert x.grad is None
    assert bias.grad is None
    assert encoder.grad is not None
    assert encoder.grad.shape == encoder.shape
