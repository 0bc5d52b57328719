"""What a dictionary's training leaves in its working directory: a checkpoint and its metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.files import canonical_json, disk_errors, write_atomic
from mechlab.sae.trainee import Trainee

_PLACE = "place."
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
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if facts.pop("checksum") != _checksum(tensors, facts):
                    raise ValueError("checksum")
                trainee.load(tensors, facts)
                self.step, self.metrics = facts["step"], facts["metrics"]
                inside = {n.removeprefix(_PLACE): t for n, t in tensors.items() if n.startswith(_PLACE)}
                self.place = {**facts["place"], **inside}
            except Exception as error:  # whatever is wrong in a damaged file
                raise MechlabError("checkpoint is damaged", path, "delete it to start again") from error
        # Rows logged after the checkpoint will be logged again.
        write_atomic(self.work / METRICS, "".join(json.dumps(row) + "\n" for row in self.metrics))

    def save(self, step: int, place: dict[str, Any], trainee: Trainee) -> None:
        """Write the checkpoint."""
        self.step, self.place = step, place
        if self.work is None:
            return
        # A live model's place holds tensors: which row is in which slot of its ring.
        plain = {name: value for name, value in place.items() if not isinstance(value, Tensor)}
        tensors = trainee.tensors() | {_PLACE + n: t for n, t in place.items() if isinstance(t, Tensor)}
        facts = {"step": step, "place": plain, "metrics": self.metrics, **trainee.facts()}
        facts["checksum"] = _checksum(tensors, facts)
        write_atomic(self.work / CHECKPOINT, save(tensors, metadata={"mechlab": json.dumps(facts)}))

    def log(self, row: dict[str, float]) -> None:
        """Keep a metrics row, and append it to the file that people watch."""
        self.metrics.append(row)
        if self.work is not None:
            path = self.work / METRICS
            with disk_errors(path), path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _checksum(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """XXH3 of all that a checkpoint holds: a flipped bit would go unnoticed otherwise."""
    found = xxhash.xxh3_128(canonical_json(facts).encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
