"""The trainer: recovery of planted directions, exact resume, several dictionaries, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from planted_rows import SITE, planted, recovered

from mechlab.activations.batch import Batch
from mechlab.errors import MechlabError
from mechlab.sae.base import Step, StepLoss
from mechlab.sae.checkpoint import CHECKPOINT, METRICS
from mechlab.sae.config import PenaltyConfig, TrainConfig
from mechlab.sae.jumprelu import JumpReLUConfig
from mechlab.sae.matching_pursuit import MatchingPursuitConfig
from mechlab.sae.relu import ReluConfig
from mechlab.sae.scaling import geometric_median
from mechlab.sae.schedule import L0Controller, learning_rate
from mechlab.sae.source import tables
from mechlab.sae.topk import TopK, TopKConfig
from mechlab.sae.train import train
from mechlab.sae.trainee import Trainee

SHORT = TopKConfig(site=SITE, d_sae=24, k=2, tokens=12_000, batch_size=256, dead_after=1000)


class Stopped(Exception):
    pass


def test_planted_directions_are_recovered() -> None:
    x, directions = planted()
    config = TopKConfig(site=SITE, d_sae=32, k=2, tokens=600_000, batch_size=512, lr=5e-3)
    (done,) = train(tables({SITE: x}), [config])
    assert recovered(done.sae.W_dec, directions) > 0.95
    assert done.metrics[-1]["fve"] > 0.9
    assert torch.allclose(done.sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-5)
    made = done.sae(x[:1000])  # in the activations' own units
    assert float((x[:1000] - made).pow(2).sum() / (x[:1000] - x.mean(0)).pow(2).sum()) < 0.1


def test_random_directions_are_not_recovered() -> None:
    """The control: the same score on a dictionary that was never trained."""
    _, directions = planted()
    sae = TopK(SHORT, 16)
    sae.initialise(torch.zeros(16), torch.Generator().manual_seed(1))
    assert recovered(sae.W_dec.detach(), directions) < 0.8


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    x, _ = planted(n=4000)
    first, again, other = (train(tables({SITE: x}), [SHORT], seed=seed)[0].sae for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.W_dec, other.W_dec)


@pytest.mark.parametrize("stop_at", [12, 17, 29, 46])
def test_interrupted_training_ends_with_the_same_bytes(tmp_path: Path, stop_at: int) -> None:
    x, _ = planted(n=4000)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    (whole,) = train(tables({SITE: x}), [SHORT], work=[tmp_path / "whole"])

    def interrupt(done: int, _: int, __: dict[str, float]) -> None:
        if done == (stop_at + 1) * 256:
            raise Stopped

    with pytest.raises(Stopped):
        train(tables({SITE: x}), [SHORT], work=[tmp_path / "stopped"], progress=interrupt)
    assert (tmp_path / "stopped" / CHECKPOINT).is_file()
    seen = []
    (resumed,) = train(
        tables({SITE: x}), [SHORT], work=[tmp_path / "stopped"], progress=lambda done, *_: seen.append(done)
    )
    assert min(seen) > 10 * 256
    assert all(
        torch.equal(a, b) for a, b in zip(whole.sae.parameters(), resumed.sae.parameters(), strict=True)
    )
    assert resumed.metrics == whole.metrics
    assert (tmp_path / "stopped" / METRICS).read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()


def test_several_dictionaries_equal_each_alone(tmp_path: Path) -> None:
    x, _ = planted(n=4000)
    configs = [SHORT, SHORT.model_copy(update={"k": 4}), SHORT.model_copy(update={"d_sae": 40})]
    together = train(tables({SITE: x}), configs)
    for config, one in zip(configs, together, strict=True):
        (alone,) = train(tables({SITE: x}), [config])
        assert all(
            torch.equal(a, b) for a, b in zip(alone.sae.parameters(), one.sae.parameters(), strict=True)
        )
        assert alone.metrics == one.metrics


def test_a_dictionary_that_is_a_checkpoint_ahead_waits(tmp_path: Path) -> None:
    """A kill between two checkpoints of one step."""
    x, _ = planted(n=4000)
    configs = [SHORT, SHORT.model_copy(update={"k": 4})]
    whole = train(tables({SITE: x}), configs)
    work = [tmp_path / "0", tmp_path / "1"]
    for folder in work:
        folder.mkdir()

    def interrupt(at: int) -> object:
        def stop(done: int, _: int, __: dict[str, float]) -> None:
            if done == at * 256:
                raise Stopped

        return stop

    with pytest.raises(Stopped):
        train(tables({SITE: x}), configs, work=work, progress=interrupt(15))
    before = (work[1] / CHECKPOINT).read_bytes()
    with pytest.raises(Stopped):
        train(tables({SITE: x}), configs, work=work, progress=interrupt(25))
    (work[1] / CHECKPOINT).write_bytes(before)
    resumed = train(tables({SITE: x}), configs, work=work)
    for one, other in zip(whole, resumed, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(one.sae.parameters(), other.sae.parameters(), strict=True)
        )
        assert one.metrics == other.metrics


def test_every_row_is_seen_once_an_epoch() -> None:
    x = torch.arange(50.0)[:, None]
    with tables({SITE: x})(10, 3, None) as batches:
        rows = torch.cat([next(batches).row for _ in range(10)])
        place = batches.state()
        following = next(batches).row
    assert sorted(rows[:50].tolist()) == sorted(rows[50:].tolist()) == list(range(50))
    assert rows[:50].tolist() != rows[50:].tolist()
    with tables({SITE: x})(10, 3, place) as batches:
        assert torch.equal(next(batches).row, following)


def test_learning_rate_rises_and_falls() -> None:
    config = TopKConfig(d_sae=1024, tokens=1000, batch_size=10, warmup=0.1, decay=0.5)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[9:51] == pytest.approx([2e-3] * 42)
    assert rates[-1] == pytest.approx(2e-3 / 50)
    assert TopKConfig(d_sae=4096).peak_lr == pytest.approx(1e-3)


def test_the_controller_finds_the_penalty_that_gives_the_target() -> None:
    config = PenaltyConfig(d_sae=1000, target_l0=20.0, tokens=4000, batch_size=1)
    controller = L0Controller(config)
    for step in range(4000):
        l0 = 300 * math.exp(-1.5 * math.log1p(controller.factor))  # falls as the penalty grows
        controller.see(step, l0)
    assert l0 == pytest.approx(20, rel=0.01)


def test_geometric_median_by_hand() -> None:
    # Of three points, one of them far away; for a triangle with an angle above 120 degrees the
    # median is that corner.
    points = torch.tensor([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.1]])
    torch.testing.assert_close(geometric_median(points, most=2000), torch.zeros(2), atol=2e-3, rtol=0)
    line = torch.tensor([[0.0], [1.0], [100.0]])
    torch.testing.assert_close(geometric_median(line, most=2000), torch.ones(1), atol=1e-2, rtol=0)


@pytest.mark.parametrize("where", ["mean", "geometric_median", "zero"])
def test_b_dec_starts_where_it_is_told(where: str) -> None:
    x, _ = planted(n=2000)
    config = TopKConfig(site=SITE, d_sae=24, k=2, tokens=1, batch_size=2000, b_dec=where, lr=1e-12)
    (done,) = train(tables({SITE: x}), [config])
    want = {"mean": x.mean(0), "geometric_median": geometric_median(x), "zero": torch.zeros(16)}[where]
    torch.testing.assert_close(done.sae.b_dec, want, atol=1e-3, rtol=1e-3)


def test_starting_from_a_dictionary_keeps_it() -> None:
    x, _ = planted(n=4000)
    (done,) = train(tables({SITE: x}), [SHORT])
    still = SHORT.model_copy(update={"tokens": 256, "lr": 1e-12})
    (again,) = train(tables({SITE: x}), [still], start=[done.sae])
    for a, b in zip(done.sae.parameters(), again.sae.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_metrics_are_on_disk_while_training_goes_on(tmp_path: Path) -> None:
    x, _ = planted(n=4000)

    def look(done: int, _: int, __: dict[str, float]) -> None:
        rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
        assert rows[-1]["step"] == done / 256 - 1

    train(tables({SITE: x}), [SHORT], work=[tmp_path], progress=look)


def test_refusals(tmp_path: Path) -> None:
    x, _ = planted(n=300)
    config = TopKConfig(site=SITE, d_sae=8, k=2, tokens=300, batch_size=100)
    with pytest.raises(MechlabError, match="fewer rows than one batch: 300"):
        train(tables({SITE: x}), [config.model_copy(update={"batch_size": 1000})])
    with pytest.raises(MechlabError, match="do not vary: 300 equal rows"):
        train(tables({SITE: torch.ones(300, 4)}), [config])
    with pytest.raises(MechlabError, match="batches lack the site: elsewhere"):
        train(tables({SITE: x}), [config.model_copy(update={"site": "elsewhere"})])
    with pytest.raises(MechlabError, match="differ in tokens: 300, 400"):
        train(tables({SITE: x}), [config, config.model_copy(update={"tokens": 400})])
    with pytest.raises(MechlabError, match="tables differ in their number of rows"):
        tables({"a": x, "b": x[:5]})
    (tmp_path / CHECKPOINT).write_bytes(b"half")
    with pytest.raises(MechlabError, match="checkpoint is damaged"):
        train(tables({SITE: x}), [config], work=[tmp_path])
    x[5] = float("nan")
    with pytest.raises(MechlabError, match="NaN or infinite: 1 of 300 rows"):
        train(tables({SITE: x}), [config])


@pytest.mark.parametrize("where", [0.02, 0.05, 0.5, 0.9])
def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path: Path, where: float) -> None:
    x, _ = planted(n=4000)

    def interrupt(done: int, _: int, __: dict[str, float]) -> None:
        if done == 25 * 256:
            raise Stopped

    with pytest.raises(Stopped):
        train(tables({SITE: x}), [SHORT], work=[tmp_path], progress=interrupt)
    content = bytearray((tmp_path / CHECKPOINT).read_bytes())
    content[int(where * len(content))] ^= 1
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(MechlabError, match="checkpoint is damaged"):
        train(tables({SITE: x}), [SHORT], work=[tmp_path])


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (TopKConfig, "aux"),
        (ReluConfig, "sparsity"),
        (JumpReLUConfig, "threshold"),
        (JumpReLUConfig, "bandwidth"),
        (MatchingPursuitConfig, "residual_threshold"),
    ],
)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_settings_are_finite(kind: type[TrainConfig], setting: str, value: float) -> None:
    with pytest.raises(MechlabError, match=f"{setting} is out of range: {value} "):
        kind.model_validate({setting: value})


def test_resampling_more_often_than_there_are_steps_for_is_refused() -> None:
    settings = {"tokens": 1000, "batch_size": 10}
    with pytest.raises(MechlabError, match=r"resample is out of range: 51 \(0 to 50"):
        ReluConfig(**settings, resample=51)
    config = ReluConfig(**settings, resample=50)
    assert sum(config.resamples_at(step) for step in range(config.steps)) == 50


def test_seeds_that_torch_cannot_take_are_refused() -> None:
    x, _ = planted(n=300)
    with pytest.raises(MechlabError, match="seed is out of range"):
        train(tables({SITE: x}), [SHORT], seed=2**64)


def test_rows_that_turn_bad_are_told_from_a_loss_that_does(tmp_path: Path) -> None:
    x, _ = planted(n=40_000)

    def broken(trainee: Trainee, batch: Batch, step: Step) -> StepLoss:
        loss = trainee.sae.loss(*trainee.scaled(batch), step)
        if step.number == 33:
            return StepLoss(loss.total * float("nan"), loss.error, loss.l0, loss.fired)
        return loss

    with pytest.raises(
        MechlabError, match=r"loss is NaN or infinite: step 33; last good checkpoint: step 30,"
    ):
        train(tables({SITE: x}), [SHORT], work=[tmp_path], loss=broken)
    config = SHORT.model_copy(update={"tokens": 40_000})
    x[-1] = float("inf")
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(MechlabError, match=rf"activations at {SITE} are NaN or infinite: (step|1 of)"):
        train(tables({SITE: x}), [config])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu(tmp_path: Path) -> None:
    x, directions = planted()
    train(tables({SITE: x}), [SHORT], device="cuda", work=[tmp_path])
    train(tables({SITE: x}), [SHORT], device="cuda", work=[tmp_path])  # resumes at the last checkpoint
    config = TopKConfig(site=SITE, d_sae=32, k=2, tokens=600_000, batch_size=512, lr=5e-3)
    (done,) = train(tables({SITE: x}), [config], device="cuda")
    assert recovered(done.sae.W_dec, directions) > 0.95
    assert done.sae.W_dec.device.type == "cpu"
