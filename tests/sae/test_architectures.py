"""What holds for every architecture: training finds planted directions, exact units, SAELens' codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted_rows import planted, recovered
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from small_sae import ARRANGEMENTS, small, step

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae
from mechlab.sae.codes import scatter
from mechlab.sae.registry import architecture
from mechlab.sae.source import tables
from mechlab.sae.train import Trained, train

TRAINED = {
    "topk": {"k": 3},
    "topk tied": {"k": 3, "tied": True},
    "abstopk": {"k": 3},
    "batchtopk": {"k": 3},
    "matryoshka": {"k": 3, "widths": (24, 32)},
    "matching_pursuit": {"max_iterations": 3},
    "relu": {"sparsity": 1.0},
    "relu tied": {"sparsity": 1.0, "tied": True},
    "relu free": {"decoder": "free", "sparsity": 1.0},
    "relu annealed": {"target_l0": 3.0, "p_end": 0.3, "tokens": 400_000},
    "gated": {"target_l0": 3.0},
    "jumprelu": {"target_l0": 3.0, "sparsity": 0.5, "tokens": 400_000},
    "jumprelu quadratic": {"target_l0": 3.0, "penalty": "quadratic"},
    "jumprelu tanh": {"target_l0": 3.0, "penalty": "tanh", "sparsity": 0.5, "tokens": 400_000},
}


def planted_run(arch: str, **settings: object) -> tuple[Trained, torch.Tensor, float]:
    x, directions = planted(d_in=24, features=32, active=3)
    common = {"site": "a", "d_sae": 32, "tokens": 180_000, "batch_size": 512, "lr": 8e-3}
    config = architecture(arch).Config.model_validate({**common, **settings})
    made = train(tables({"a": x}), [config])[0]
    y = made.sae(x[:4000])
    x = x[:4000]
    explained = 1 - (x - y).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    return made, directions, float(explained)


SLOW = {"topk tied", "relu tied", "relu free", "relu annealed", "jumprelu", "jumprelu tanh"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TRAINED]
)
def test_planted_directions_are_recovered(name: str) -> None:
    made, directions, explained = planted_run(name.split()[0], **TRAINED[name])
    found = recovered(made.sae.W_dec, directions)
    hard = name in ("matryoshka", "relu annealed") or name.endswith("tied")
    assert explained > (0.8 if hard else 0.9)
    assert found > (0.9 if hard else 0.95)
    # The form in use keeps to the L0 that training settled at.
    x, _ = planted(d_in=24, features=32, active=3)
    used = float(made.sae.encode(x[:4000]).l0().float().mean())
    assert used == pytest.approx(made.metrics[-1]["l0"], rel=0.1)
    assert made.missed is None
    if name.startswith("relu") and name != "relu annealed":
        assert used < 6
    else:
        assert used == pytest.approx(3, rel=0.1)
    if made.sae.unit:
        torch.testing.assert_close(made.sae.W_dec.norm(dim=1), torch.ones(32))


@pytest.mark.parametrize("arch", ["batchtopk", "matryoshka"])
def test_a_short_training_keeps_its_l0_in_use(arch: str) -> None:
    """Some forty steps: a threshold that remembered the first of them left a fifth of the latents out."""
    x, _ = planted(d_in=24, features=32, active=3)
    config = architecture(arch).Config(site="a", d_sae=32, tokens=20_000, batch_size=512, lr=8e-3, k=3)
    sae = train(tables({"a": x}), [config])[0].sae
    assert float(sae.encode(x[:4000]).l0().float().mean()) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("arch", ["relu", "gated", "jumprelu", "batchtopk", "matryoshka", "abstopk"])
def test_a_transcoder_with_a_skip_learns_a_linear_map(arch: str) -> None:
    x, _ = planted(d_in=12, features=16, n=8000)
    y = x @ torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) - 7
    common = {"site": "a", "target": "b", "skip": True, "d_sae": 16, "tokens": 40_000, "batch_size": 256}
    config = architecture(arch).Config.model_validate({**common, "lr": 5e-3})
    made = train(tables({"a": x, "b": y}), [config])[0]
    explained = 1 - (y - made.sae(x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    assert float(explained) > 0.95


@pytest.mark.parametrize("arch", ["relu", "gated", "jumprelu", "batchtopk", "matryoshka", "abstopk"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_changing_units_is_exact(arch: str, arrangement: str) -> None:
    sae, x, y = small(arch, arrangement)
    if "topk" in arch or arch == "matryoshka":
        sae.loss(x, y, step())
        if arch != "abstopk":
            sae.threshold.mul_(1.001)
    x_scale = torch.linspace(0.5, 3, sae.d_in).double()
    y_scale = x_scale if sae.d_in == sae.d_out else torch.linspace(0.2, 1, sae.d_out).double()
    codes, made = scatter(sae.encode(x * x_scale), 30), sae(x * x_scale) / y_scale
    sae.change_units(x_scale, y_scale)
    torch.testing.assert_close(scatter(sae.encode(x), 30), codes / y_scale.mean())
    torch.testing.assert_close(sae(x), made)


def saelens(sae: Sae) -> torch.nn.Module:
    """The same weights in SAELens' class."""
    common = {"d_in": sae.d_in, "d_sae": sae.d_sae, "dtype": "float64", "apply_b_dec_to_input": True}
    pursuit = {"max_iterations": 4, "residual_threshold": 0.3}
    kinds = {
        "relu": lambda: StandardSAE(StandardSAEConfig(**common)),
        "gated": lambda: GatedSAE(GatedSAEConfig(**common)),
        "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**common)),
        "topk": lambda: TopKSAE(TopKSAEConfig(**common, k=5)),
        "abstopk": lambda: AbsTopKSAE(AbsTopKSAEConfig(**common, k=5)),
        "matching_pursuit": lambda: MatchingPursuitSAE(MatchingPursuitSAEConfig(**common, **pursuit)),
    }
    theirs = kinds[sae.arch]()
    theirs.load_state_dict({name: value.detach() for name, value in sae.state_dict().items()})
    return theirs


SAELENS = {
    "relu": {}, "gated": {}, "jumprelu": {}, "topk": {"k": 5}, "abstopk": {"k": 5},
    "matching_pursuit": {"max_iterations": 4, "residual_threshold": 0.3},
}  # fmt: skip


@pytest.mark.parametrize("arch", SAELENS)
@pytest.mark.parametrize("seed", range(3))
def test_codes_and_reconstructions_are_those_of_saelens(arch: str, seed: int) -> None:
    sae, x, _ = small(arch, seed=seed, **SAELENS[arch])
    theirs = saelens(sae)
    torch.testing.assert_close(scatter(sae.encode(x), 30), theirs.encode(x))
    torch.testing.assert_close(sae(x), theirs(x))


@pytest.mark.parametrize("arch", ["batchtopk", "relu"])
def test_interrupted_training_ends_with_the_same_bytes(tmp_path: Path, arch: str) -> None:
    """Thresholds and the annealed penalty are part of the state."""
    x, _ = planted(n=4000)
    more = {"k": 2} if arch == "batchtopk" else {"p_end": 0.5, "resample": 2, "dead_after": 500}
    config = architecture(arch).Config.model_validate(
        {"site": "a", "d_sae": 48, "tokens": 16_000, "batch_size": 256, **more}
    )

    class Stopped(Exception):
        pass

    def interrupt(done: int, rows: int, row: dict[str, float]) -> None:
        if done > 9000:
            raise Stopped

    whole = train(tables({"a": x}), [config])[0]
    with pytest.raises(Stopped):
        train(tables({"a": x}), [config], work=[tmp_path], progress=interrupt)
    resumed = train(tables({"a": x}), [config], work=[tmp_path])[0]
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(value, resumed.sae.state_dict()[name]), name
    assert resumed.metrics == whole.metrics


def test_an_unknown_architecture_is_offered_near_names() -> None:
    with pytest.raises(MechlabError, match=r"unknown dictionary architecture: batchtop.*batchtopk"):
        architecture("batchtop")
