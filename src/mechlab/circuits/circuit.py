"""``Circuit``: a boolean matrix over edges with everything needed to judge it, and its artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.circuits.graph import Edge, Graph
from mechlab.circuits.patching import HeadPatching
from mechlab.data.tasks import Task
from mechlab.files import write_atomic
from mechlab.models.forward import Shape
from mechlab.scores import Score

_TENSORS, _RECORD = "circuit.safetensors", "circuit.json"
_SETTINGS = ("task", "metric", "method", "steps", "ablation", "target", "n_top")
_INPUTS = ("model", "selection", "held_out")
ABLATION = "resample"


@dataclass(frozen=True)
class SizePoint:
    """Faithfulness of one circuit size on the selection prompts.

    Attributes:
        n_top: edges taken by |score|; n_edges: those left on a path from "embed" to the logits.
    """

    n_top: int
    n_edges: int
    faithfulness: float


@dataclass(frozen=True)
class Circuit:
    """A circuit of one model for one task.

    Attributes:
        shape: the model's shape; ``graph`` names rows and columns.
        mask: the edges.
        scores: attribution of every edge of the model, means over the selection prompts.
        task, metric, method: what was found, how it was read, how edges were ranked.
        steps: gradient points, for integrated gradients.
        ablation: what edges outside carry; "resample" is their value in the corrupt run.
        target: faithfulness asked for on the selection prompts.
        seed: of the controls and the bootstrap.
        model, selection, held_out: fingerprints of the model and of both sets of prompts.
        n_top: edges before pruning to a connected circuit (``n_edges`` after).
        curve: faithfulness of every size tried, on the selection prompts.
        faithfulness: on the held-out prompts, with random circuits as the null.
        heads: exact patching of the highest-ranked nodes, on the held-out prompts.
    """

    shape: Shape
    mask: Bool[Tensor, "n_sources n_readers"]
    scores: Float[Tensor, "n_sources n_readers"]
    task: str
    metric: str
    method: str
    steps: int
    ablation: str
    target: float
    seed: int
    model: str
    selection: str
    held_out: str
    n_top: int
    curve: tuple[SizePoint, ...]
    faithfulness: Score
    heads: HeadPatching

    @property
    def graph(self) -> Graph:
        """Names and edges of the model."""
        return Graph(self.shape)

    @property
    def n_edges(self) -> int:
        """Number of edges in the circuit."""
        return int(self.mask.sum())

    @property
    def edges(self) -> Iterator[Edge]:
        """The circuit's edges with their scores."""
        return self.graph.edges(self.mask, self.scores)

    def save(self, path: Path | str, *, overwrite: bool = False) -> Artifact:
        """Write the circuit as an artifact directory; see ``mechlab.artifacts.writing`` for refusals."""
        config = {
            **{name: getattr(self, name) for name in _SETTINGS},
            "controls": 0 if self.faithfulness.null is None else self.faithfulness.null.n,
            "checked": len(self.heads.effects),
        }
        inputs = {name: getattr(self, name) for name in _INPUTS}
        with writing(
            path, "circuit", config=config, seed=self.seed, inputs=inputs, overwrite=overwrite
        ) as writer:
            if writer.finished is not None:
                return writer.finished
            tensors = {"mask": self.mask.contiguous(), "scores": self.scores.contiguous()}
            write_atomic(writer.work / _TENSORS, safetensors.torch.save(tensors))
            record = {
                "shape": asdict(self.shape),
                "curve": [asdict(point) for point in self.curve],
                "faithfulness": self.faithfulness.to_dict(),
                "heads": self.heads.to_dict(),
                "edges": [[edge.source, edge.reader, edge.score] for edge in self.edges],
            }
            write_atomic(writer.work / _RECORD, json.dumps(record, indent=1) + "\n")
            facts = {"n_edges": self.n_edges, "faithfulness": self.faithfulness.to_dict()}
            return writer.commit([_TENSORS, _RECORD], facts)

    @classmethod
    def load(cls, path: Path | str) -> Circuit:
        """Read a circuit; MechlabError when there is none or it is damaged."""
        artifact = open_artifact(path, "circuit")
        artifact.verify()
        tensors = safetensors.torch.load_file(artifact.file(_TENSORS))
        fields: dict[str, Any] = {name: artifact.manifest.config[name] for name in _SETTINGS}
        fields |= {name: artifact.manifest.inputs[name] for name in _INPUTS}
        record = json.loads(artifact.file(_RECORD).read_text())
        return cls(
            shape=Shape(**record["shape"]),
            mask=tensors["mask"],
            scores=tensors["scores"],
            seed=artifact.manifest.seed,
            curve=tuple(SizePoint(**point) for point in record["curve"]),
            faithfulness=Score.from_dict(record["faithfulness"]),
            heads=HeadPatching.from_dict(record["heads"]),
            **fields,
        )


def task_fingerprint(task: Task) -> str:
    """SHA-256 over what a task's metric depends on: prompts, answers, answer sets, positions read."""
    digest = hashlib.sha256(task.name.encode())
    sets = task.answer_sets or ()
    for tensor in (task.clean, task.corrupt, task.answers, task.wrong, task.positions["end"], *sets):
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()
