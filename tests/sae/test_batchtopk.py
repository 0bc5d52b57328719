"""BatchTopK and Matryoshka: selection over the batch, thresholds, nested losses, the form in use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_sae import ARRANGEMENTS, bias, centred, check_against, encoder, small, step
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae, Step
from mechlab.sae.batchtopk import BatchTopK
from mechlab.sae.codes import scatter
from mechlab.sae.jumprelu import JumpReLU
from mechlab.sae.matryoshka import Matryoshka, MatryoshkaConfig

KINDS = ["batchtopk", "matryoshka"]
WIDTHS = {"batchtopk": {}, "matryoshka": {"widths": (2, 9, 30)}}


def selected(sae: Sae, x: Tensor) -> Tensor:
    """The definition: everything but the k * rows largest of the batch is zero."""
    pre = (centred(sae, x) @ encoder(sae) + sae.b_enc).relu()
    bar = pre.flatten().sort(descending=True).values[sae.config.k * len(x) - 1]
    return torch.where(pre >= bar, pre, 0)


def auxiliary(sae: Sae, x: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    target = error.detach()
    pre = centred(sae, x).detach() @ encoder(sae)[:, dead] + sae.b_enc[dead]
    bar = pre.topk(min(sae.config.aux_k, len(dead)), dim=1).values[:, -1:]
    made = torch.where(pre >= bar, pre, 0).relu() @ sae.W_dec[dead]
    return (target - made).pow(2).sum(1).mean() / (target - target.mean(0)).pow(2).sum(1).mean() / 32


def written_out(sae: Sae, x: Tensor, y: Tensor, at: Step) -> Tensor:
    codes = selected(sae, x)
    widths = sae.config.prefixes if isinstance(sae, Matryoshka) else (sae.d_sae,)
    errors = [y - codes[:, :w] @ sae.W_dec[:w] - bias(sae, x) for w in widths]
    mean = sum(error.pow(2).sum(1).mean() for error in errors) / len(errors) / at.variance
    return mean + auxiliary(sae, x, errors[-1], at.dead)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("arch", KINDS)
@pytest.mark.parametrize("dead", [[4], [1, 2, 17, 20, 21, 29]])
def test_loss_and_gradients_as_written_out(arch: str, arrangement: str, dead: list[int]) -> None:
    sae, x, y = small(arch, arrangement, k=3, aux_k=2, **WIDTHS[arch])
    got = check_against(written_out, sae, x, y, step(dead))
    codes = selected(sae, x)
    assert torch.equal(got.fired, (codes > 0).any(0))
    assert float(got.l0) == pytest.approx(3.0)


@pytest.mark.parametrize("guess", ["good", "too high", "low"])
@pytest.mark.parametrize("seed", range(3))
def test_sparse_selection_is_the_dense_one(seed: int, guess: str) -> None:
    """Whatever the candidates' bar, the batch's largest are taken; in float32, kernels included."""
    sae, x, _ = small("batchtopk", seed=seed, d_sae=200, k=4)
    assert isinstance(sae, BatchTopK)
    sae.float()
    x = x.float()
    want = selected(sae, x)
    assert torch.equal(scatter(sae.select(sae.centre(x), step()), 200) != 0, want != 0)
    bar = float(want[want > 0].min().detach())
    sae.lowest.fill_({"good": bar, "too high": 5 * bar, "low": bar / 10}[guess])
    found = sae.select(sae.centre(x), step(density=0.02))
    torch.testing.assert_close(scatter(found, 200), want)
    assert found.values.shape[1] == int((want != 0).sum(1).max())


def test_fewer_positive_than_wanted() -> None:
    sae, x, _ = small("batchtopk", k=30)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(scatter(sae.select(sae.centre(x), step()), 30), pre.relu())


@pytest.mark.parametrize(("steps", "rate"), [(20_000, 0.01), (100, 0.1), (4, 1.0)])
def test_threshold_is_the_running_mean_of_the_smallest_kept(steps: int, rate: float) -> None:
    """A short training forgets its first steps faster: see the test of what is active in use."""
    sae, x, _ = small("batchtopk", k=3)
    at = replace(step(), steps=steps)
    assert isinstance(sae, BatchTopK)
    smallest = []
    for rows in (x[:5], x[5:], x[2:9]):
        codes = selected(sae, rows)
        smallest.append(float(codes[codes > 0].min().detach()))
        sae.loss(rows, rows, at)
    want = smallest[0]
    for value in smallest[1:]:
        want = (1 - rate) * want + rate * value
    assert float(sae.threshold) == pytest.approx(want)
    assert float(sae.lowest) == pytest.approx(smallest[-1])
    assert {"threshold", "lowest"} <= set(sae.state_dict())
    # A batch without any active latent says nothing of the threshold.
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    sae.loss(x, x, at)
    assert float(sae.threshold) == pytest.approx(want)


@pytest.mark.parametrize("arch", KINDS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_finished_it_is_a_jumprelu_with_the_same_codes(arch: str, arrangement: str) -> None:
    sae, x, y = small(arch, arrangement, k=3, **WIDTHS[arch])
    sae.loss(x, y, step())
    sae.threshold.mul_(1.001)  # not a value that is there: rounding would decide
    pre = centred(sae, x) @ encoder(sae) + sae.b_enc
    want = pre.relu() * (pre > sae.threshold)
    torch.testing.assert_close(scatter(sae.encode(x), 30), want)
    made = sae(x)
    done = sae.finish()
    assert type(done) is JumpReLU
    assert done.trained_as == arch
    assert set(done.state_dict()) - {"W_skip"} == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    torch.testing.assert_close(scatter(done.encode(x.float()), 30), want.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(done(x.float()), made.float(), rtol=1e-4, atol=1e-4)


def test_auxk_is_counted_once() -> None:
    """Matryoshka's auxiliary loss is that of the whole dictionary, not one for each width."""
    sae, x, _ = small("matryoshka", k=3, aux_k=2, widths=(2, 9, 30))
    dead = torch.tensor([1, 12])
    difference = sae.loss(x, x, step(dead.tolist())).total - sae.loss(x, x, step()).total
    error = x - selected(sae, x) @ sae.W_dec - sae.b_dec
    torch.testing.assert_close(difference, auxiliary(sae, x, error, dead))


def test_nested_widths() -> None:
    assert MatryoshkaConfig(d_sae=64).prefixes == (4, 8, 16, 32, 64)
    assert MatryoshkaConfig(d_sae=3, k=2).prefixes == (1, 3)
    for widths in ((), (4, 8), (8, 4, 64), (0, 64), (64, 64)):
        with pytest.raises(MechlabError, match=r"widths is out of range: .*the last being d_sae = 64"):
            MatryoshkaConfig(d_sae=64, widths=widths)
