"""Metrics of a training, sent elsewhere: Weights & Biases, TensorBoard. Both are optional packages.

A logger is called with (number of the dictionary, metrics row); ``metrics.jsonl`` is written
whether or not there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError

Log = Callable[[int, dict[str, float]], None]


@contextmanager
def to_wandb(project: str, names: Sequence[str], config: dict[str, Any]) -> Iterator[Log]:
    """Log to a Weights & Biases project, each dictionary's figures under its own name."""
    try:
        import wandb
    except ImportError:
        raise MechlabError("wandb is not installed", project, "pip install wandb") from None
    try:
        run = wandb.init(project=project, config=config)
    except wandb.errors.Error as error:
        raise MechlabError("wandb does not start", project, str(error).splitlines()[0]) from error

    def log(number: int, row: dict[str, float]) -> None:
        run.log({f"{names[number]}/{key}": value for key, value in row.items()}, step=int(row["step"]))

    try:
        yield log
    finally:
        run.finish()


@contextmanager
def to_tensorboard(folder: Path, names: Sequence[str]) -> Iterator[Log]:
    """Log to TensorBoard event files, one folder a dictionary."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MechlabError("tensorboard is not installed", folder, "pip install tensorboard") from None
    writers = [SummaryWriter(str(folder / name)) for name in names]

    def log(number: int, row: dict[str, float]) -> None:
        for key, value in row.items():
            writers[number].add_scalar(key, value, int(row["step"]))

    try:
        yield log
    finally:
        for writer in writers:
            writer.close()
