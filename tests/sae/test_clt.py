"""Cross-layer transcoders: the formula, causality, gradients, units, training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.base import Step
from mechlab.sae.clt import Clt, CltConfig
from mechlab.sae.codes import Codes, scatter
from mechlab.sae.source import tables
from mechlab.sae.topk import TopK, TopKConfig
from mechlab.sae.train import train


def names(letter: str, layers: int) -> str:
    return ",".join(f"{letter}{layer}" for layer in range(layers))


def clt(
    layers: int = 3, per_layer: int = 10, k: int = 3, widths: tuple[int, ...] = (5, 5, 5), **settings: object
) -> Clt:
    config = CltConfig(
        site=names("in", layers), target=names("out", layers), d_sae=layers * per_layer, k=k, **settings
    )  # type: ignore[arg-type]
    sae = Clt(config, widths, tuple(w + 1 for w in widths))
    generator = torch.Generator().manual_seed(layers)
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return sae


def naive(sae: Clt, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense codes and outputs by definition, latent by latent."""
    rows, per_layer = len(x), sae.per_layer
    codes = torch.zeros(rows, sae.d_sae, dtype=x.dtype)
    outputs = [b.expand(rows, -1).clone() for b in sae.b_dec.split(list(sae.out_sizes))]
    for layer, part in enumerate(x.split(list(sae.in_sizes), dim=1)):
        pre = part @ sae.W_read[layer].T + sae.b_enc[layer * per_layer : (layer + 1) * per_layer]
        bar = pre.topk(sae.config.k, dim=1).values[:, -1:]
        own = torch.where(pre >= bar, pre, 0).relu()
        codes[:, layer * per_layer : (layer + 1) * per_layer] = own
        start = 0
        for to in range(layer, sae.layers):
            width = sae.out_sizes[to]
            outputs[to] = outputs[to] + own @ sae.W_write[layer][:, start : start + width]
            start += width
    return codes, torch.cat(outputs, dim=1)


@pytest.mark.parametrize(("layers", "widths"), [(1, (4,)), (2, (3, 6)), (3, (5, 5, 5)), (4, (2, 7, 3, 4))])
def test_equals_the_formula(layers: int, widths: tuple[int, ...]) -> None:
    sae = clt(layers, widths=widths)
    x = torch.randn(17, sum(widths), generator=torch.Generator().manual_seed(1))
    codes, made = naive(sae, x)
    got = sae.encode(x)
    torch.testing.assert_close(scatter(got, sae.d_sae), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x), made, atol=1e-5, rtol=1e-5)
    dense = scatter(got, sae.d_sae)
    torch.testing.assert_close(dense @ sae.W_dec + sae.b_dec, made, atol=1e-5, rtol=1e-5)
    for layer in range(layers):
        own = slice(layer * 10, layer * 10 + 10)
        pre = (x @ sae.W_enc + sae.b_enc)[:, own]
        assert bool(((pre - dense[:, own]).abs() < 1e-5)[dense[:, own] > 0].all())
    # Slots in any order, some not in use.
    order = torch.randperm(got.values.shape[1], generator=torch.Generator().manual_seed(2))
    mixed = Codes(
        torch.cat([got.values[:, order], torch.zeros(17, 2)], dim=1),
        torch.cat([got.indices[:, order], torch.zeros(17, 2, dtype=torch.long)], dim=1),
    )
    torch.testing.assert_close(sae.decode(mixed), made, atol=1e-5, rtol=1e-5)


def test_one_layer_is_a_topk_transcoder() -> None:
    sae = clt(1, widths=(4,))
    other = TopK(TopKConfig(site="in0", target="out0", d_sae=10, k=3, decoder="free"), (4,), (5,))
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(other, name).copy_(getattr(sae, name))
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae(x), other(x))
    y = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    step = Step(0, 10, 3.0, 1.0, torch.tensor([1, 4, 5, 8]))
    torch.testing.assert_close(sae.loss(x, y, step).total, other.loss(x, y, step).total)


def test_no_latent_reaches_an_earlier_output_and_no_weight_is_there_for_it() -> None:
    sae = clt(3)
    for layer in range(3):
        rows = slice(layer * 10, layer * 10 + 10)
        assert sae.W_dec[rows, : 6 * layer].abs().sum() == 0
        assert bool((sae.W_dec[rows, 6 * layer :] != 0).all())
    assert sum(p.numel() for p in sae.W_write) == 10 * 6 * (3 + 2 + 1)
    x = torch.randn(9, 15, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 5:] += 1
    assert torch.equal(sae(x)[:, :6], sae(changed)[:, :6])
    assert not torch.allclose(sae(x)[:, 6:12], sae(changed)[:, 6:12])


@pytest.mark.parametrize("dead", [[], [1, 3, 4, 12, 13, 27, 29]])
def test_loss_and_gradients_equal_the_dense_formula(dead: list[int]) -> None:
    sae = clt(3, aux_k=2).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 15, generator=generator, dtype=torch.float64)
    y = torch.randn(13, 18, generator=generator, dtype=torch.float64)
    got = sae.loss(x, y, Step(0, 100, 2.5, 1.0, torch.tensor(dead, dtype=torch.long)))
    got.total.backward()
    found = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    codes, made = naive(sae, x)
    want = (y - made).pow(2).sum(1).mean() / 2.5
    if dead:
        target = (y - made).detach()
        rest = torch.zeros_like(target)
        for layer in range(3):
            own = [latent for latent in dead if latent // 10 == layer]
            pre = x @ sae.W_enc[:, own] + sae.b_enc[own]
            bar = pre.topk(min(2, len(own)), dim=1).values[:, -1:]
            rest = rest + torch.where(pre >= bar, pre, 0).relu() @ sae.W_dec[own]
        variance = (target - target.mean(0)).pow(2).sum(1).mean()
        want = want + (target - rest).pow(2).sum(1).mean() / variance / 32
    want.backward()
    torch.testing.assert_close(got.total, want)
    for name, p in sae.named_parameters():
        torch.testing.assert_close(found[name], p.grad, msg=name)
    assert torch.equal(got.fired, (codes > 0).any(0))
    assert float(got.l0) == pytest.approx(float((codes > 0).sum(1).double().mean()))


def test_codes_can_be_had_with_gradient() -> None:
    sae = clt(2, widths=(4, 5)).double().requires_grad_(False)
    x = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    codes = sae.differentiable(x, sae.encode(x))
    weights = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (scatter(codes, 20) @ weights).sum().backward()
    got = x.grad.clone()
    x.grad = None
    (naive(sae, x)[0] @ weights).sum().backward()
    torch.testing.assert_close(got, x.grad)


def test_changing_units_is_exact() -> None:
    sae = clt(3, widths=(5, 3, 4))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 12, generator=generator)
    x_scale = torch.rand(12, generator=generator) + 0.2
    y_scale = torch.rand(15, generator=generator) * 3 + 0.2
    codes, made = sae.encode(x * x_scale), sae(x * x_scale)
    sae.change_units(x_scale, y_scale)
    torch.testing.assert_close(sae(x), made / y_scale, rtol=1e-4, atol=1e-4)
    again = sae.encode(x)
    want = scatter(codes, 30) / y_scale.mean()
    torch.testing.assert_close(scatter(again, 30), want, rtol=1e-4, atol=1e-5)
    parts = sae.W_dec.split([6, 4, 5], dim=1)
    torch.testing.assert_close(sae.latent_norms(), sum(part.norm(dim=1) for part in parts))


def layered(n: int = 30_000, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Two layers of eight features; those of the first write to both outputs, the second's to the last."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(2, 8, 12, generator=generator)
    read /= read.norm(dim=-1, keepdim=True)
    write = torch.randn(3, 8, 12, generator=generator)
    write /= write.norm(dim=-1, keepdim=True)
    codes = torch.zeros(2, n, 8)
    for layer in range(2):
        chosen = torch.rand(n, 8, generator=generator).topk(1, dim=1).indices
        codes[layer].scatter_(1, chosen, 1 + torch.rand(n, 1, generator=generator))
    rows = {f"in{layer}": 5 * codes[layer] @ read[layer] + 1 for layer in range(2)}
    rows["out0"] = codes[0] @ write[0] + 2
    rows["out1"] = 10 * (codes[0] @ write[1] + codes[1] @ write[2]) - 3
    return rows, write


def test_planted_layers_are_recovered() -> None:
    rows, write = layered(10_000)
    settings = {"site": "in0,in1", "target": "out0,out1", "d_sae": 16, "k": 1, "lr": 2e-2, "dead_after": 3000}
    config = CltConfig(**settings, tokens=60_000, batch_size=256)
    trained = train(tables(rows), [config])[0]
    assert trained.metrics[-1]["fve"] > 0.97
    sae = trained.sae
    assert isinstance(sae, Clt)
    x = torch.cat([rows["in0"], rows["in1"]], dim=1)[:2000]
    y = torch.cat([rows["out0"], rows["out1"]], dim=1)[:2000]
    assert float((y - sae(x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum()) < 0.03
    made = sae.W_dec.detach()
    for rows_, columns, truth in (
        (slice(0, 8), slice(0, 12), write[0]),
        (slice(0, 8), slice(12, 24), write[1]),
        (slice(8, 16), slice(12, 24), write[2]),
    ):
        part = made[rows_, columns]
        cosine = (part / part.norm(dim=1, keepdim=True).clamp_min(1e-6)) @ truth.T
        assert cosine.max(0).values.mean() > 0.95
    short = CltConfig(**settings, tokens=3000, batch_size=256)
    one, two = (train(tables(rows), [short])[0].sae for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_refusals() -> None:
    good: dict[str, object] = {"site": "a,b", "target": "c,d", "d_sae": 20, "k": 3}
    for change, said in (
        ({"target": ""}, "needs an output for each input: 2 inputs, 0 outputs"),
        ({"target": "c"}, "needs an output for each input: 2 inputs, 1 outputs"),
        ({"d_sae": 21}, r"d_sae is out of range: 21 \(a multiple of the 2 layers"),
        ({"k": 11}, r"k is out of range: 11 \(at most 10 latents a layer"),
        ({"skip": True}, "a cross-layer transcoder has no such skip"),
        ({"decoder": "unit"}, "a cross-layer transcoder has no such decoder"),
    ):
        with pytest.raises(MechlabError, match=said):
            CltConfig(**{**good, **change})  # type: ignore[arg-type]
    with pytest.raises(MechlabError, match="needs an output for each input"):
        Clt(CltConfig(**good), (4, 4), (4,))  # type: ignore[arg-type]
