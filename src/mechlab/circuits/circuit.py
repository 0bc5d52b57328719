"""``Circuit``: a boolean matrix over edges with everything needed to judge it again, and its artifact."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.circuits.ablation import Ablation
from mechlab.circuits.evaluation.record import Evaluation, plain
from mechlab.circuits.graph import Edge, Graph
from mechlab.circuits.patching import HeadPatching
from mechlab.data.published.canonical import classes_of
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.files import write_atomic
from mechlab.models.forward import Shape
from mechlab.scores import Score

_TENSORS, _RECORD = "circuit.safetensors", "circuit.json"
_CONFIG = ("task", "metric", "method", "settings")
_FACTS = ("n_top", "calls", "rows", "seconds")
_INPUTS = ("model", "selection", "held_out")


@dataclass(frozen=True)
class SizePoint:
    """Faithfulness of one circuit size on the selection prompts.

    Attributes:
        n_top: edges taken by |score|; n_edges: those left after the clean-up.
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
        scores: of every edge of the model, from the selection prompts; what they mean is the method's.
        task, metric, method: what was found, how it was read, how it was sought.
        settings: what the search was asked for (steps, target, top, threshold).
        ablation: what edges outside carry, with its constants where it has any.
        seed: of the search, the controls and the bootstrap.
        model, selection, held_out: fingerprints of the model and of both sets of prompts.
        n_top: edges that the search chose, before the clean-up (``n_edges`` after).
        calls, rows, seconds: how often the search ran the model, how many circuits that were, and
            how long it took.
        record: evidence that the search kept, plain JSON values.
        curve: faithfulness of every size tried, on the selection prompts.
        evaluation: on the held-out prompts, beside random circuits.
        heads: exact patching of the highest-ranked nodes, on the held-out prompts.
        classes: node → what it does ("name mover"), where that was looked into.
    """

    shape: Shape
    mask: Bool[Tensor, "n_sources n_readers"]
    scores: Float[Tensor, "n_sources n_readers"]
    task: str
    metric: str
    method: str
    settings: dict[str, Any]
    ablation: Ablation
    seed: int
    model: str
    selection: str
    held_out: str
    n_top: int
    calls: int
    rows: int
    seconds: float
    record: dict[str, Any]
    curve: tuple[SizePoint, ...]
    evaluation: Evaluation
    heads: HeadPatching
    classes: dict[str, str] = field(default_factory=dict)

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

    @property
    def faithfulness(self) -> Score:
        """On the held-out prompts, with random circuits as the null."""
        return self.evaluation.faithfulness

    def save(self, path: Path | str, *, overwrite: bool = False) -> Artifact:
        """Write the circuit as an artifact directory; see ``mechlab.artifacts.writing`` for refusals."""
        null = self.faithfulness.null
        config = {name: getattr(self, name) for name in _CONFIG} | {
            "ablation": self.ablation.kind,
            "controls": 0 if null is None else null.n,
            "checked": len(self.heads.effects),
        }
        inputs = {name: getattr(self, name) for name in _INPUTS}
        with writing(
            path, "circuit", config=config, seed=self.seed, inputs=inputs, overwrite=overwrite
        ) as writer:
            if writer.finished is not None:
                return writer.finished
            tensors = {"mask": self.mask.contiguous(), "scores": self.scores.contiguous()}
            if self.ablation.constant is not None:
                tensors["ablation"] = self.ablation.constant.contiguous()
            write_atomic(writer.work / _TENSORS, safetensors.torch.save(tensors))
            record = {
                "shape": asdict(self.shape),
                "curve": [asdict(point) for point in self.curve],
                "evaluation": self.evaluation.to_dict("NaN"),
                "heads": self.heads.to_dict(),
                "classes": self.classes,
                "search": plain(self.record),
                "edges": [[edge.source, edge.reader, edge.score] for edge in self.edges],
            }
            write_atomic(writer.work / _RECORD, json.dumps(record, indent=1) + "\n")
            facts = {"n_edges": self.n_edges, "faithfulness": self.faithfulness.to_dict()}
            facts |= {name: getattr(self, name) for name in _FACTS}
            return writer.commit([_TENSORS, _RECORD], facts)

    @classmethod
    def load(cls, path: Path | str) -> Circuit:
        """Read a circuit; MechlabError when there is none, it is damaged, or an older version wrote it."""
        artifact = open_artifact(path, "circuit")
        artifact.verify()
        manifest = artifact.manifest
        if "settings" not in manifest.config:
            raise MechlabError(
                "circuit was written by an older version", path, "find it again with --overwrite"
            )
        try:
            return cls._read(artifact)
        except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise MechlabError("circuit cannot be read", path, "find it again with --overwrite") from error

    @classmethod
    def _read(cls, artifact: Artifact) -> Circuit:
        manifest = artifact.manifest
        tensors = safetensors.torch.load_file(artifact.file(_TENSORS))
        record = json.loads(artifact.file(_RECORD).read_text())
        fields: dict[str, Any] = {name: manifest.config[name] for name in _CONFIG}
        fields |= {name: manifest.inputs[name] for name in _INPUTS}
        fields |= {name: manifest.facts[name] for name in _FACTS}
        return cls(
            shape=Shape(**record["shape"]),
            mask=tensors["mask"],
            scores=tensors["scores"],
            ablation=Ablation(manifest.config["ablation"], tensors.get("ablation")),
            seed=manifest.seed,
            record=record["search"],
            curve=tuple(SizePoint(**point) for point in record["curve"]),
            evaluation=Evaluation.from_dict(record["evaluation"]),
            heads=HeadPatching.from_dict(record["heads"]),
            classes=record["classes"],
            **fields,
        )


def node_classes(circuit: Circuit) -> dict[str, str]:
    """Node → class: as looked into when it was found, or as the literature names them; else empty."""
    if circuit.classes:
        return circuit.classes
    with contextlib.suppress(MechlabError):
        return classes_of(circuit.task, str(circuit.settings.get("model", "")))
    return {}


def task_fingerprint(task: Task) -> str:
    """SHA-256 over what a task's metric depends on: prompts, answers, answer sets, positions read."""
    digest = hashlib.sha256(task.name.encode())
    sets = task.answer_sets or ()
    for tensor in (task.clean, task.corrupt, task.answers, task.wrong, task.positions["end"], *sets):
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()
