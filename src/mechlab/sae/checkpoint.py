"""What a dictionary's training leaves in its working directory: a checkpoint and its metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from mechlab.errors import MechlabError
from mechlab.files import disk_errors, write_atomic
from mechlab.sae.trainee import Trainee

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


@dataclass
class Progress:
    """How far a dictionary has come.

    Attributes:
        work: directory of its files, or None to keep nothing.
        step: steps that are done and saved.
        place: place in the data after them.
        metrics: rows logged so far.
    """

    work: Path | None
    step: int = 0
    place: dict[str, Any] | None = None
    metrics: list[dict[str, float]] = field(default_factory=list)

    def load(self, trainee: Trainee) -> None:
        """Go on from the checkpoint, if there is one; MechlabError when it is damaged."""
        if self.work is None:
            return
        path = self.work / CHECKPOINT
        if path.is_file():
            try:
                with safe_open(str(path), framework="pt") as file:
                    facts = json.loads(file.metadata()["mechlab"])
                    trainee.load({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118
            except Exception as error:  # whatever is wrong in a damaged file
                raise MechlabError("checkpoint is damaged", path, "delete it to start again") from error
            self.step, self.place, self.metrics = facts["step"], facts["place"], facts["metrics"]
        # Rows logged after the checkpoint will be logged again.
        write_atomic(self.work / METRICS, "".join(json.dumps(row) + "\n" for row in self.metrics))

    def save(self, step: int, place: dict[str, Any], trainee: Trainee) -> None:
        """Write the checkpoint."""
        self.step, self.place = step, place
        if self.work is None:
            return
        facts = {"step": step, "place": place, "metrics": self.metrics, **trainee.facts()}
        write_atomic(self.work / CHECKPOINT, save(trainee.tensors(), metadata={"mechlab": json.dumps(facts)}))

    def log(self, row: dict[str, float]) -> None:
        """Keep a metrics row, and append it to the file that people watch."""
        self.metrics.append(row)
        if self.work is not None:
            path = self.work / METRICS
            with disk_errors(path), path.open("a") as file:
                file.write(json.dumps(row) + "\n")
