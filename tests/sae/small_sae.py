"""Small random dictionaries of any architecture, and what their tests compare."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mechlab.sae.base import Sae, Step, StepLoss
from mechlab.sae.registry import architecture

Loss = Callable[[Sae, Tensor, Tensor, Step], Tensor]

# How weights and sites may be arranged: settings, widths of the inputs, widths of the outputs.
ARRANGEMENTS: dict[str, tuple[dict[str, object], tuple[int, ...], tuple[int, ...] | None]] = {
    "plain": ({}, (7,), None),
    "free": ({"decoder": "free"}, (7,), None),
    "tied": ({"tied": True}, (7,), None),
    "crosscoder": ({"site": "a,b"}, (4, 3), None),
    "transcoder": ({"site": "a", "target": "b", "skip": True}, (7,), (5,)),
}


def small(
    arch: str, arrangement: str = "plain", seed: int = 0, d_sae: int = 30, **settings: object
) -> tuple[Sae, Tensor, Tensor]:
    """A dictionary with random weights, in float64, with rows of its input and of its output."""
    kind = architecture(arch)
    more, in_sizes, out_sizes = ARRANGEMENTS[arrangement]
    sae = kind(kind.Config.model_validate({"d_sae": d_sae, **more, **settings}), in_sizes, out_sizes)
    generator = torch.Generator().manual_seed(seed)
    sae.initialise(torch.randn(sae.d_out, generator=generator), generator)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            if name in ("b_enc", "b_gate", "b_mag", "r_mag", "W_skip"):
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
            elif name == "threshold":
                p.copy_(torch.rand(p.shape, generator=generator))
            elif name == "W_enc":
                p.add_(torch.randn(p.T.shape, generator=generator).T * 0.3)
    x = torch.randn(11, sae.d_in, generator=generator).double()
    y = x if out_sizes is None else torch.randn(11, sae.d_out, generator=generator).double()
    return sae.double(), x, y


def step(
    dead: list[int] | None = None,
    *,
    number: int = 50,
    variance: float = 2.5,
    sparsity: float = 0.7,
    density: float = 1.0,
) -> Step:
    """A training step out of a hundred."""
    return Step(number, 100, variance, sparsity, torch.tensor(dead or [], dtype=torch.long), density)


def gradients(sae: Sae, total: Tensor) -> dict[str, Tensor | None]:
    """Gradient of every parameter; None where there is none."""
    sae.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    return {name: None if p.grad is None else p.grad.clone() for name, p in sae.named_parameters()}


def check_against(loss: Loss, sae: Sae, x: Tensor, y: Tensor, at: Step) -> StepLoss:
    """The dictionary's loss and gradients against those of a dense formula written out."""
    want = loss(sae, x, y, at)
    expected = gradients(sae, want)
    got = sae.loss(x, y, at)
    found = gradients(sae, got.total)
    torch.testing.assert_close(got.total, want)
    for name, gradient in expected.items():
        if gradient is None:
            gradient = torch.zeros(())
        mine = found[name]
        mine = torch.zeros_like(gradient) if mine is None else mine
        torch.testing.assert_close(mine, gradient.expand_as(mine).to(mine), msg=lambda m, n=name: f"{n}: {m}")
    # What end-to-end training rebuilds: error and penalty make the total.
    assert got.made is not None
    assert got.penalty is not None
    squared = (y - got.made).pow(2).sum(1).mean() / at.variance
    torch.testing.assert_close(squared + got.penalty, got.total)
    torch.testing.assert_close(got.error, squared.detach())
    return got


def weights_of(sae: Sae) -> Tensor:
    """Decoder norms as a penalty counts them, written out."""
    if sae.unit and len(sae.out_sizes) == 1:
        return torch.ones(sae.d_sae, dtype=sae.W_dec.dtype)
    starts = [sum(sae.out_sizes[:n]) for n in range(len(sae.out_sizes))]
    parts = [sae.W_dec[:, s : s + n] for s, n in zip(starts, sae.out_sizes, strict=True)]
    return sum(part.pow(2).sum(1).sqrt() for part in parts)  # type: ignore[return-value]


def centred(sae: Sae, x: Tensor) -> Tensor:
    """Input of the encoder, written out: transcoders do not subtract b_dec."""
    return x if sae.config.target else x - sae.b_dec


def bias(sae: Sae, x: Tensor) -> Tensor:
    """What is added to decoded codes, written out."""
    return sae.b_dec if sae.W_skip is None else sae.b_dec + x @ sae.W_skip.T


def encoder(sae: Sae) -> Tensor:
    """Encoder ``[d_in, d_sae]``, also of a tied dictionary."""
    return sae.W_dec.T if sae.W_enc is None else sae.W_enc
