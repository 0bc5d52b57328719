"""Training: the maths by hand, recovery of planted directions, exact resume, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.sae import train as train_module
from mechlab.sae.topk import Codes, TopK, scatter
from mechlab.sae.train import TrainConfig, train


def planted(n: int = 40_000, d_in: int = 16, features: int = 32, active: int = 2, seed: int = 0) -> tuple:
    """Sparse non-negative mixtures of unit directions, far from the origin and at another scale."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    chosen = torch.rand(n, features, generator=generator).topk(active, dim=1).indices
    strength = torch.rand(n, active, generator=generator) + 0.5
    codes = torch.zeros(n, features).scatter(1, chosen, strength)
    return 20 * (codes @ directions) + 3.0, directions


def test_encode_and_decode_by_hand() -> None:
    sae = TopK(2, 3, 2)
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
    sae = TopK(d_in, d_sae, k)
    sae.initialise(torch.randn(d_in, generator=generator), generator)
    x = torch.randn(7, d_in, generator=generator)
    dense = scatter(sae.encode(x), d_sae)
    pre = sae.pre_activations(x)
    for row, values in zip(dense, pre, strict=True):
        kept = sorted(range(d_sae), key=lambda j: -values[j].item())[:k]
        want = [max(0.0, values[j].item()) if j in kept else 0.0 for j in range(d_sae)]
        torch.testing.assert_close(row, torch.tensor(want))


def test_rescaling_the_input_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    sae = TopK(6, 12, 3)
    sae.initialise(torch.randn(6, generator=generator), generator)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(12, generator=generator))
    x = torch.randn(50, 6, generator=generator)
    codes, made = sae.encode(x * 0.3), sae(x * 0.3)
    sae.rescale_input(0.3)
    again = sae.encode(x)
    assert torch.equal(again.indices, codes.indices)
    torch.testing.assert_close(again.values, codes.values / 0.3)
    torch.testing.assert_close(sae(x), made / 0.3)


def test_planted_directions_are_recovered() -> None:
    x, directions = planted()
    sae, metrics = train(x, TrainConfig(d_sae=32, k=2, tokens=600_000, batch_size=512, lr=5e-3))
    cosine = (sae.W_dec @ directions.T).abs().max(0).values
    assert cosine.mean() > 0.95
    assert metrics[-1]["fve"] > 0.9
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-5)


def test_random_directions_are_not_recovered() -> None:
    """The control: the same score on a dictionary that was never trained."""
    _, directions = planted()
    sae = TopK(16, 32, 2)
    sae.initialise(torch.zeros(16), torch.Generator().manual_seed(1))
    assert (sae.W_dec @ directions.T).abs().max(0).values.mean() < 0.8


def test_auxk_gives_dead_latents_a_gradient_in_encoder_and_decoder() -> None:
    x, _ = planted(n=4096)
    sae = TopK(16, 64, 2)
    sae.initialise(x.mean(0), torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_enc[32:] = -30.0  # never among the two largest, yet above zero for some rows
    assert sae.encode(x[:256]).indices.max() < 32
    assert (sae.pre_activations(x[:256])[:, 32:] > 0).any()
    dead = torch.zeros(64, dtype=torch.bool)
    dead[32:] = True
    loss, _, _ = train_module._loss(sae, x[:256], dead, 1.0)
    loss.backward()
    assert sae.W_enc.grad is not None
    assert sae.W_enc.grad[:, 32:].abs().sum() > 0
    assert sae.W_dec.grad is not None
    assert sae.W_dec.grad[32:].abs().sum() > 0


def test_auxk_target_counts_b_dec_once() -> None:
    """The auxiliary loss rebuilds the error x - x_hat with decoder rows alone (no second b_dec)."""
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    sae = TopK(2, 2, 1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 1e-3]]))
        sae.W_dec.copy_(torch.eye(2))
        sae.b_dec.copy_(torch.tensor([0.5, 0.5]))
    dead = torch.tensor([False, True])
    loss, _, _ = train_module._loss(sae, x, dead, variance=1.0)
    # Live latent 0 rebuilds the first coordinate; the error is (0, 1.5), (0, 4.5).
    squared = (1.5**2 + 4.5**2) / 2
    error, mean = torch.tensor([1.5, 4.5]), 3.0
    auxiliary = ((error - error * 1e-3) ** 2).mean() / ((error - mean) ** 2).mean()
    assert loss.item() == pytest.approx(squared + float(auxiliary) / 32, rel=1e-5)


def test_decoder_gradient_has_no_part_along_its_rows() -> None:
    sae = TopK(4, 6, 2)
    sae.initialise(torch.zeros(4), torch.Generator().manual_seed(0))
    sae.W_dec.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    train_module._remove_parallel_gradient(sae)
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-6


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    x, _ = planted(n=4000)
    config = TrainConfig(d_sae=24, k=2, tokens=8000, batch_size=256)
    first, again, other = (train(x, config, seed=seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.W_dec, other.W_dec)


@pytest.mark.parametrize("stop_at", [4, 17, 29])
def test_interrupted_training_ends_with_the_same_bytes(tmp_path: Path, stop_at: int) -> None:
    x, _ = planted(n=4000)
    config = TrainConfig(d_sae=24, k=2, tokens=8000, batch_size=256, dead_after=1000)
    whole, metrics = train(x, config)

    class Stopped(Exception):
        pass

    def interrupt(step: int, steps: int, row: dict[str, float]) -> None:
        if step == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        train(x, config, checkpoint=tmp_path / "c", progress=interrupt)
    assert (tmp_path / "c").is_file()
    resumed, resumed_metrics = train(x, config, checkpoint=tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert resumed_metrics == metrics


def test_every_row_is_seen_once_an_epoch() -> None:
    config = TrainConfig(tokens=100, batch_size=10)
    rows = torch.cat([r for _, r in train_module._batches(50, config, seed=3, start=0)])
    assert sorted(rows[:50].tolist()) == sorted(rows[50:].tolist()) == list(range(50))
    assert rows[:50].tolist() != rows[50:].tolist()
    late = torch.cat([r for _, r in train_module._batches(50, config, seed=3, start=7)])
    assert torch.equal(late, rows[70:])


def test_refusals() -> None:
    x, _ = planted(n=300)
    with pytest.raises(MechlabError, match=r"k is out of range: 9 \(between 1 and d_sae = 8\)"):
        train(x, TrainConfig(d_sae=8, k=9, tokens=300, batch_size=100))
    with pytest.raises(MechlabError, match="d_sae is out of range: 0"):
        TopK(4, 0, 1)
    with pytest.raises(MechlabError, match="fewer rows than one batch: 300"):
        train(x, TrainConfig(d_sae=8, k=2, batch_size=1000))
    with pytest.raises(MechlabError, match="activations do not vary"):
        train(torch.ones(300, 4), TrainConfig(d_sae=8, k=2, tokens=300, batch_size=100))
    x[5] = float("nan")
    with pytest.raises(MechlabError, match=r"loss is NaN or infinite|scale must be positive and finite"):
        train(x, TrainConfig(d_sae=8, k=2, tokens=300, batch_size=100))


def test_scatter_passes_gradients_to_values() -> None:
    values = torch.tensor([[1.0, 2.0]], requires_grad=True)
    scatter(Codes(values, torch.tensor([[4, 1]])), 5).pow(2).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[2.0, 4.0]]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu(tmp_path: Path) -> None:
    x, _ = planted()
    short = TrainConfig(d_sae=32, k=2, tokens=20_000, batch_size=512)
    train(x, short, device="cuda", checkpoint=tmp_path / "c")
    train(x, short, device="cuda", checkpoint=tmp_path / "c")  # resumes at the last step
    sae, metrics = train(
        x, TrainConfig(d_sae=32, k=2, tokens=200_000, batch_size=512, lr=5e-3), device="cuda"
    )
    assert metrics[-1]["fve"] > 0.8
    assert sae.W_dec.device.type == "cpu"
