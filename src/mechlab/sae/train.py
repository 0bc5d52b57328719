"""The training loop: one pass over the activations trains any number of dictionaries.

The loop knows neither where batches come from nor what the dictionaries are. All state is saved
at fixed steps (weights, moments, place in the data, counters), and everything random follows from
(seed, step), so that a run resumed after a kill gives the same bytes as one that was left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.activations.batch import Batch
from mechlab.errors import MechlabError
from mechlab.sae import checkpoint
from mechlab.sae.base import Sae
from mechlab.sae.config import PenaltyConfig, TrainConfig
from mechlab.sae.scaling import SiteScale, look
from mechlab.sae.source import Batches, Opener
from mechlab.sae.trainee import LOOK_EVERY, Loss, Trainee

_CHECKPOINTS = 10
_LOGGED = 200
# Rows looked at before training, for scales, means and medians.
_SAMPLE, _SAMPLE_BYTES = 2**15, 2**28
_UNREACHED = 0.1

Progress = Callable[[int, int, dict[str, float]], None]
Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """What training made of one config.

    Attributes:
        sae: the dictionary, in the activations' units.
        metrics: one row per logged step: step, loss, fve, l0, dead, lr, sparsity, gradient_norm …
        mean: mean of the outputs over the rows looked at before training ``[d_out]``.
        missed: what the run did not reach, in words; None when all is well.
    """

    sae: Sae
    metrics: list[dict[str, float]]
    mean: Float[Tensor, "d_out"]
    missed: str | None


def train(
    source: Opener,
    configs: Sequence[TrainConfig],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    work: Sequence[Path] | None = None,
    loss: Loss | None = None,
    start: Sequence[Sae | None] | None = None,
    log: Log | None = None,
    progress: Progress | None = None,
) -> list[Trained]:
    """Train dictionaries side by side on the same batches.

    Args:
        source: opens the batches; each must hold every config's sites.
        configs: one per dictionary; tokens and batch_size must agree.
        work: a directory for each, where checkpoints and metrics.jsonl are kept as training goes
            on, and from which it is resumed.
        loss: replaces the dictionaries' own loss (end-to-end training).
        start: dictionaries to start from, in the activations' units (fine-tuning).
        log: called with (number of the config, metrics row) at every logged step.
        progress: called with (rows done, rows in all, figures of the first dictionary).

    Raises MechlabError when configs do not go together, activations are not finite or do not
    vary, the data end early, or a loss stops being finite (naming the step and the last
    checkpoint).
    """
    first = configs[0]
    if not -(2**63) <= seed < 2**64:
        raise MechlabError("seed is out of range", seed, "at least 0, below 2**64")
    for name in ("tokens", "batch_size"):
        if len({getattr(config, name) for config in configs}) > 1:
            values = ", ".join(str(getattr(config, name)) for config in configs)
            raise MechlabError(f"dictionaries of one pass differ in {name}", values, "make them agree")
    device = torch.device(device)
    with contextlib.ExitStack() as stack:
        batches = stack.enter_context(source(first.batch_size, seed, None))
        looked = _look(batches, first)
        scales, sample = _scales(looked, configs)
        trainees = [
            Trainee(config, scales, sample, seed=seed, device=device, loss=loss) for config in configs
        ]
        for trainee, sae in zip(trainees, start or [None] * len(trainees), strict=True):
            if sae is not None:
                trainee.start_from(sae)
        del sample
        done = [checkpoint.Progress(None if work is None else work[n]) for n in range(len(trainees))]
        for trainee, own in zip(trainees, done, strict=True):
            own.load(trainee)
        # A kill between two dictionaries' checkpoints leaves one a checkpoint ahead: it waits.
        behind = min(done, key=lambda own: own.step)
        if behind.step:
            stack.close()
            batches, looked = stack.enter_context(source(first.batch_size, seed, behind.place)), []
        save_every = -(-max(1, first.steps // _CHECKPOINTS) // LOOK_EVERY) * LOOK_EVERY
        log_every = max(1, first.steps // _LOGGED)
        for step in range(behind.step, first.steps):
            # What was looked at is trained on first: for a live model it was half the work.
            batch, place = looked.pop(0) if looked else (_next(batches, step), None)
            waiting = [own.step > step for own in done]
            figures = [
                None if waits else _guarded(trainee, step, batch, own)
                for trainee, own, waits in zip(trainees, done, waiting, strict=True)
            ]
            if step % log_every == 0 or step == first.steps - 1:
                for number, (own, figure) in enumerate(zip(done, figures, strict=True)):
                    if figure is not None:
                        own.log({"step": float(step), **figure()})
                        if log:
                            log(number, own.metrics[-1])
                if progress:
                    shown = {name: done[0].metrics[-1][name] for name in ("loss", "fve", "l0", "dead")}
                    progress((step + 1) * first.batch_size, first.steps * first.batch_size, shown)
            if (step + 1) % save_every == 0 and step + 1 < first.steps:
                for trainee, own, waits in zip(trainees, done, waiting, strict=True):
                    if not waits:
                        own.save(step + 1, batches.state() if place is None else place, trainee)
    return [
        Trained(trainee.finished(), own.metrics, trainee.mean, _missed(trainee.config, own.metrics))
        for trainee, own in zip(trainees, done, strict=True)
    ]


def _look(batches: Batches, config: TrainConfig) -> list[tuple[Batch, dict[str, Any]]]:
    """The first batches, each with the place after it."""
    found: list[tuple[Batch, dict[str, Any]]] = []
    rows = _SAMPLE
    while not found or ((len(found) + 1) * config.batch_size <= rows and len(found) < config.steps):
        batch = _next(batches, len(found))
        found.append((batch, batches.state()))
        row_bytes = sum(value[0].nbytes for value in batch.values.values() if len(value))
        rows = min(_SAMPLE, _SAMPLE_BYTES // max(1, row_bytes))
    return found


def _scales(
    looked: Sequence[tuple[Batch, dict[str, Any]]], configs: Sequence[TrainConfig]
) -> tuple[dict[str, SiteScale], dict[str, Tensor]]:
    """Scale of every site, and the rows it was taken from."""
    sample = {}
    for site in dict.fromkeys(site for config in configs for site in (*config.inputs, *config.outputs)):
        for batch, _ in looked:
            if site not in batch.values:
                raise MechlabError("batches lack the site", site, f"they hold {', '.join(batch.values)}")
        sample[site] = torch.cat([batch[site].to("cpu", torch.float32) for batch, _ in looked])
    return {site: look(site, table) for site, table in sample.items()}, sample


def _next(batches: Batches, step: int) -> Batch:
    try:
        return next(batches)
    except StopIteration:
        raise MechlabError("activations ended during training", f"step {step}", "give more rows") from None


def _guarded(
    trainee: Trainee, step: int, batch: Batch, own: checkpoint.Progress
) -> Callable[[], dict[str, float]]:
    try:
        return trainee.step(step, batch)
    except MechlabError as error:
        if own.work is None or not own.step:
            raise
        where = f"{error.value}; last good checkpoint: step {own.step}, {own.work / checkpoint.CHECKPOINT}"
        raise MechlabError(error.what, where, error.remedy) from None


def _missed(config: TrainConfig, metrics: list[dict[str, float]]) -> str | None:
    """Whether the L0 that was asked for was not reached, over the last tenth of the rows logged."""
    if not isinstance(config, PenaltyConfig) or config.target_l0 is None:
        return None
    last = metrics[-max(1, len(metrics) // 10) :]
    l0 = sum(row["l0"] for row in last) / len(last)
    if abs(l0 / config.target_l0 - 1) <= _UNREACHED:
        return None
    return (
        f"target_l0 {config.target_l0:g} was not reached: L0 {l0:.3g}, penalty {last[-1]['sparsity']:.3g} x"
    )
