"""auto-circuit, in its own process, on a GPT-2 of ours: same weights, same prompts, scores by our names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mechlab.bench.peers import FOLDER, Peer
from mechlab.circuits.graph import Graph
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward

NAME = "auto-circuit"
_CONFIG = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")


class AutoCircuit(Peer):
    """The peer's process with a model loaded; a context manager that ends it.

    Attributes:
        logits: of the clean prompts where the task reads them.
        n_edges: how many edges its graph has.
    """

    def __init__(
        self, module: nn.Module, task: Task, work: Path, device: torch.device, folder: Path = FOLDER
    ) -> None:
        """Start the process and hand it the model.

        Args:
            module: a Hugging Face GPT-2.
            task: prompts that are read at their last position.
            work: folder for the files that are exchanged.

        Raises MechlabError where the peer is missing or stops.
        """
        super().__init__(NAME, folder)
        self._work, graph = work, Graph(DecomposedForward(module).shape)
        config: Any = module.config
        state = {
            name: each.cpu().contiguous()
            for name, each in module.state_dict().items()
            if "lm_head" not in name
        }
        save_file(state, self._file("weights"))
        names = ("clean", "corrupt", "answers", "wrong")
        save_file({name: getattr(task, name).cpu().contiguous() for name in names}, self._file("prompts"))
        found = self.ask(
            "init",
            {
                "weights": self._file("weights"),
                "prompts": self._file("prompts"),
                "config": {name: getattr(config, name) for name in _CONFIG},
                "sources": graph.sources,
                "readers": graph.readers,
                "device": str(device),
                "out": self._file("logits"),
            },
        )
        self.n_edges: int = found["edges"]
        self.logits: Tensor = load_file(self._file("logits"))["logits"]

    def forward(self) -> float:
        """Seconds of a forward on the clean prompts, nothing patched."""
        return float(self.ask("forward", None)["seconds"])

    def eap(self) -> float:
        """Seconds of edge attribution patching over all edges; ``scores`` reads what it found."""
        return float(self.ask("eap", None)["seconds"])

    def scores(self) -> Float[Tensor, "n_sources n_readers"]:
        """Scores of the last ``eap``, positive where the edge supports the metric, like ours."""
        self.ask("scores", self._file("scores"))
        scores: Tensor = load_file(self._file("scores"))["scores"]
        return scores

    def ready(self) -> None:
        """Make the clean and corrupt runs that tests of edges start from."""
        self.ask("ready", None)

    def edges(self, edges: Sequence[tuple[int, int]]) -> tuple[float, Float[Tensor, "edge"]]:
        """Test single edges exactly; each call after a ``ready`` of its own, since it uses that up.

        Args:
            edges: (source, reader) of each.

        Returns seconds of all together, and the mean logit difference with each edge corrupt.
        """
        seconds = self.ask("edges", {"edges": list(edges), "out": self._file("values")})["seconds"]
        return float(seconds), load_file(self._file("values"))["values"]

    def _file(self, name: str) -> str:
        return str(self._work / f"{name}.safetensors")
