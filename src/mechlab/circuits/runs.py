"""Prompt pairs in batches, and the clean and corrupt runs that every method starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.metrics import Metric
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Stage

BATCH_SIZE = 64


@dataclass(frozen=True)
class End:
    """One run of a batch.

    Attributes:
        sources: output of every source.
        streams: the residual stream entering each layer, and the logits at the end.
        logits: where the task reads them.
        metric: per prompt, in the metric's units.
    """

    sources: Float[Tensor, "source batch pos d_model"]
    streams: tuple[Float[Tensor, "batch pos d_model"], ...]
    logits: Float[Tensor, "batch *read d_vocab"]
    metric: Float[Tensor, "batch"]


@dataclass(frozen=True)
class PairedRun:
    """A batch of prompt pairs, on the model's device, with both of its runs."""

    task: Task
    clean: End
    corrupt: End
    measure: Metric

    def metric(self, logits: Float[Tensor, "batch *read d_vocab"]) -> Float[Tensor, "batch"]:
        """The metric of other logits for these prompts."""
        return self.measure(logits, self.task, self.clean.logits)


def batches(task: Task, size: int, device: torch.device) -> Iterator[Task]:
    """The task's prompt pairs in order, at most ``size`` at a time, on ``device``.

    Raises MechlabError for a size below 1.
    """
    if size < 1:
        raise MechlabError("batch size must be at least 1", size)
    for first in range(0, len(task), size):
        rows = slice(first, first + size)
        moved = {
            name: getattr(task, name)[rows].to(device)
            for name in ("clean", "corrupt", "answers", "wrong", "right_set", "wrong_set", "groups")
            if getattr(task, name) is not None
        }
        yield replace(
            task,
            positions={name: index[rows].to(device) for name, index in task.positions.items()},
            prompts=task.prompts[rows],
            corrupt_prompts=task.corrupt_prompts[rows],
            **moved,
        )


def paired_runs(
    forward: DecomposedForward, task: Task, metric: Metric, batch_size: int = BATCH_SIZE
) -> Iterator[PairedRun]:
    """Both runs of every batch, without gradient.

    Raises MechlabError when the metric of a clean prompt is not a finite number.
    """
    for batch in batches(task, batch_size, forward.device):
        with torch.no_grad():
            clean = _end(forward, batch, batch.clean, metric, None)
            if not bool(clean.metric.isfinite().all()):
                raise MechlabError(
                    "metric of the model's own logits is not finite", task.name, "try dtype float32"
                )
            corrupt = _end(forward, batch, batch.corrupt, metric, clean.logits)
        yield PairedRun(batch, clean, corrupt, metric)


def _end(
    forward: DecomposedForward, batch: Task, tokens: Tensor, metric: Metric, clean: Tensor | None
) -> End:
    streams: list[Tensor] = []

    def read(stage: Stage, stream: Tensor) -> Tensor:
        if stage.kind != "mlp":
            streams.append(stream)
        return stream

    run = forward.run(tokens, positions=batch.positions["end"], read=read, keep=True)
    assert run.sources is not None
    assert run.logits is not None
    values = metric(run.logits, batch, run.logits if clean is None else clean)
    return End(run.sources, tuple(streams), run.logits, values)
