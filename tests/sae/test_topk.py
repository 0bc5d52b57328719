"""TopK and the base class: the maths by hand, equality with naive formulas, exact change of units."""

from __future__ import annotations

import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.sae.base import Step
from mechlab.sae.codes import Codes, concatenate, scatter, sparse
from mechlab.sae.topk import TopK, TopKConfig


def topk(d_in: int, d_sae: int, k: int, **settings: object) -> TopK:
    return TopK(TopKConfig(d_sae=d_sae, k=k, **settings), d_in)  # type: ignore[arg-type]


def step(dead: list[int] | None = None, variance: float = 1.0, number: int = 0) -> Step:
    return Step(number, 100, variance, 1.0, torch.tensor(dead or [], dtype=torch.long))


def test_encode_and_decode_by_hand() -> None:
    sae = topk(2, 3, 2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
        sae.b_enc.copy_(torch.tensor([0.0, 0.5, 0.0]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, -1.0]))
    x = torch.tensor([[3.0, 1.0], [1.0, -3.0]])
    # x - b_dec = (2, 2) and (0, -2); pre = (2, 2.5, -2) and (0, -1.5, 0).
    codes = sae.encode(x)
    dense = scatter(codes, 3)
    torch.testing.assert_close(dense, torch.tensor([[2.0, 2.5, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(sae.decode(codes), torch.tensor([[3.0, 4.0], [1.0, -1.0]]))


@pytest.mark.parametrize("seed", range(5))
def test_topk_equals_a_naive_selection(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    d_in, d_sae = (int(n) for n in torch.randint(2, 20, (2,), generator=generator))
    k = int(torch.randint(1, d_sae + 1, (1,), generator=generator))
    sae = topk(d_in, d_sae, k)
    sae.initialise(torch.randn(d_in, generator=generator), generator)
    x = torch.randn(7, d_in, generator=generator)
    dense = scatter(sae.encode(x), d_sae)
    pre = sae.pre_activations(x)
    for row, values in zip(dense, pre, strict=True):
        kept = sorted(range(d_sae), key=lambda j: -values[j].item())[:k]
        want = [max(0.0, values[j].item()) if j in kept else 0.0 for j in range(d_sae)]
        torch.testing.assert_close(row, torch.tensor(want))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradients_equal_the_dense_formula(seed: int, tied: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    sae = topk(7, 30, 4, tied=tied, aux_k=3)
    sae.initialise(torch.randn(7, generator=generator), generator)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(30, generator=generator) * 0.1)
    sae.double()
    x = torch.randn(11, 7, generator=generator, dtype=torch.float64)
    dead = [3, 8, 9, 17, 28]
    got = sae.loss(x, x, step(dead, 2.5))
    got.total.backward()
    found = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    pre = (x - sae.b_dec) @ sae.encoder.T + sae.b_enc
    bar = pre.topk(4, dim=1).values[:, -1:]
    codes = torch.where(pre >= bar, pre, 0).relu()
    error = x - codes @ sae.W_dec - sae.b_dec
    target = error.detach()
    of_dead = ((x - sae.b_dec).detach() @ sae.encoder[dead].T + sae.b_enc[dead]).relu()
    of_dead = torch.where(of_dead >= of_dead.topk(3, dim=1).values[:, -1:], of_dead, 0)
    rest = (target - of_dead @ sae.W_dec[dead]).pow(2).sum(1).mean()
    want = error.pow(2).sum(1).mean() / 2.5 + rest / (target - target.mean(0)).pow(2).sum(1).mean() / 32
    want.backward()
    torch.testing.assert_close(got.total, want)
    for name, p in sae.named_parameters():
        torch.testing.assert_close(found[name], p.grad, msg=name)
    assert torch.equal(got.fired, (codes > 0).any(0))
    assert float(got.l0) == pytest.approx(float((codes > 0).sum(1).double().mean()))


@pytest.mark.parametrize("tied", [False, True])
def test_changing_units_is_exact(tied: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sae = topk(6, 12, 3, tied=tied)
    sae.initialise(torch.randn(6, generator=generator), generator)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(12, generator=generator))
    x = torch.randn(50, 6, generator=generator)
    codes, made = sae.encode(x * 0.3), sae(x * 0.3)
    scale = torch.full((6,), 0.3)
    sae.change_units(scale, scale)
    again = sae.encode(x)
    assert torch.equal(again.indices, codes.indices)
    torch.testing.assert_close(again.values, codes.values / 0.3)
    torch.testing.assert_close(sae(x), made / 0.3)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(12))


def test_changing_units_of_a_transcoder_with_a_skip_is_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    config = TopKConfig(site="in", target="a,b", d_sae=20, k=3, skip=True)
    sae = TopK(config, (5, 3), (4, 2))
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.randn(30, 8, generator=generator)
    x_scale = torch.tensor([0.5] * 5 + [4.0] * 3)
    y_scale = torch.tensor([2.0] * 4 + [0.1] * 2)
    made, codes = sae(x * x_scale), sae.encode(x * x_scale)
    sae.change_units(x_scale, y_scale)
    torch.testing.assert_close(sae(x), made / y_scale, rtol=1e-4, atol=1e-4)
    assert torch.equal(sae.encode(x).indices, codes.indices)
    assert not sae.centred
    with pytest.raises(MechlabError, match="skip connection needs the input"):
        sae.decode(codes)


def test_k_falls_over_the_warm_up() -> None:
    config = TopKConfig(d_sae=100, k=10, k_start=50, sparsity_warmup=0.2)
    assert [config.k_at(step(number=n)) for n in (0, 5, 10, 19, 20, 99)] == [50, 40, 30, 12, 10, 10]


def test_auxk_trains_encoder_and_decoder_of_dead_latents_only() -> None:
    generator = torch.Generator().manual_seed(0)
    sae = topk(16, 64, 2)
    x = torch.randn(256, 16, generator=generator)
    sae.initialise(x.mean(0), generator)
    with torch.no_grad():
        sae.b_enc[:32] = 20.0  # the others are never among the two largest, yet often above zero
    assert sae.encode(x).indices.max() < 32
    without = sae.loss(x, x, step())
    with_aux = sae.loss(x, x, step(list(range(32, 64))))
    (with_aux.total - without.total).backward()
    assert sae.W_enc.grad is not None
    for gradient in (sae.W_enc.grad.T, sae.W_dec.grad):
        assert gradient[32:].abs().sum() > 0
        assert gradient[:32].abs().sum() < 1e-6 * gradient[32:].abs().sum()


def test_auxk_target_counts_b_dec_once() -> None:
    """The auxiliary loss rebuilds the error x - x_hat with decoder rows alone (no second b_dec)."""
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    sae = topk(2, 2, 1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 1e-3]]))
        sae.W_dec.copy_(torch.eye(2))
        sae.b_dec.copy_(torch.tensor([0.5, 0.5]))
    loss = sae.loss(x, x, step([1])).total
    # Live latent 0 rebuilds the first coordinate; the error is (0, 1.5), (0, 4.5).
    squared = (1.5**2 + 4.5**2) / 2
    error, mean = torch.tensor([1.5, 4.5]), 3.0
    auxiliary = ((error - error * 1e-3) ** 2).mean() / ((error - mean) ** 2).mean()
    assert loss.item() == pytest.approx(squared + float(auxiliary) / 32, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_codes_go_to_dense_and_back(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(9, 13, generator=generator) * (torch.rand(9, 13, generator=generator) < 0.3)
    codes = sparse(dense)
    assert torch.equal(scatter(codes, 13), dense)
    assert codes.values.shape[1] == max(1, int((dense != 0).sum(1).max()))
    assert torch.equal(codes.l0(), (dense != 0).sum(1))
    assert torch.equal(codes.fired(13), (dense != 0).any(0))
    assert torch.equal(scatter(concatenate([codes[:4], sparse(dense[4:])]), 13), dense)


def test_an_unused_slot_changes_nothing() -> None:
    codes = Codes(torch.tensor([[2.0, 0.0]]), torch.tensor([[1, 1]]))
    assert scatter(codes, 3).tolist() == [[0, 2, 0]]
    assert codes.fired(3).tolist() == [False, True, False]


def test_scatter_passes_gradients_to_values() -> None:
    values = torch.tensor([[1.0, 2.0]], requires_grad=True)
    scatter(Codes(values, torch.tensor([[4, 1]])), 5).pow(2).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[2.0, 4.0]]))


def test_settings_out_of_range() -> None:
    with pytest.raises(MechlabError, match=r"k is out of range: 9 \(between 1 and d_sae = 8\)"):
        TopKConfig(d_sae=8, k=9)
    with pytest.raises(MechlabError, match="d_sae is out of range: 0"):
        TopKConfig(d_sae=0)
    with pytest.raises(MechlabError, match="k_start is out of range: 3"):
        TopKConfig(d_sae=8, k=4, k_start=3)
    with pytest.raises(MechlabError, match=r"warmup is out of range: 1.5"):
        TopKConfig(warmup=1.5)
    with pytest.raises(MechlabError, match="transcoder's weights cannot be tied"):
        TopKConfig(site="a", target="b", tied=True)
    with pytest.raises(MechlabError, match="skip needs a target"):
        TopKConfig(site="a", skip=True)
    with pytest.raises(MechlabError, match="a site is named twice: a,b,a"):
        TopKConfig(site="a,b,a")
