"""One way to call every search and every attribution method on a set of prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution import METHODS, edge_scores
from mechlab.circuits.graph import Graph
from mechlab.circuits.runs import BATCH_SIZE
from mechlab.circuits.search.acdc import acdc
from mechlab.circuits.search.found import Found
from mechlab.circuits.search.learned import edge_pruning, subnetwork_probing
from mechlab.circuits.search.paths import path_search
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.forward import DecomposedForward

# Searches choose the edges themselves; this is the one figure that each of them needs.
SEARCHES = {
    "acdc": "threshold",
    "path": "threshold",
    "subnetwork-probing": "threshold",
    "edge-pruning": "top",
}
TARGET = 0.9
# Gradient points, or training steps; other methods take neither.
STEPS = {"eap-ig": 5, "eap-ig-activations": 5, "edge-pruning": 300, "subnetwork-probing": 300}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sought:
    """What circuits are sought on: prompts, metric, ablation.

    Attributes:
        steps: gradient points of integrated gradients, training steps of learned masks; None else.
    """

    forward: DecomposedForward
    task: Task
    metric: str
    ablation: Ablation
    steps: int | None
    seed: int = 0
    batch_size: int = BATCH_SIZE

    @property
    def _steps(self) -> int:
        return 1 if self.steps is None else self.steps

    def scores(self, method: str) -> Float[Tensor, "n_sources n_readers"]:
        """Scores of all edges by an attribution method.

        "act-grad" takes activations as they are, not their distance from the ablation, which is "atp".
        """
        return edge_scores(
            self.forward,
            self.task,
            method=method,
            steps=self._steps,
            ablation=None if method == "act-grad" else self.ablation,
            metric=self.metric,
            batch_size=self.batch_size,
        )

    def search(self, method: str, size: float, progress: Progress | None = None) -> Found:
        """The circuit of a search; ``size`` is its threshold, or for edge pruning its number of edges."""
        if method == "path":
            if self.ablation.kind != "resample":
                raise MechlabError("path search resamples", self.ablation.kind, "use resample ablation")
            return path_search(
                self.forward,
                self.task,
                share=size,
                metric=self.metric,
                batch_size=self.batch_size,
                progress=progress,
            )
        common: dict[str, Any] = {"metric": self.metric, "ablation": self.ablation, "seed": self.seed}
        if method == "acdc":
            return acdc(
                self.forward, self.task, size, **common, batch_size=self.batch_size, progress=progress
            )
        if method == "edge-pruning":
            target = 1 - min(size / Graph(self.forward.shape).n_edges, 1.0)
            return edge_pruning(
                self.forward, self.task, target=target, **common, steps=self._steps, progress=progress
            )
        return subnetwork_probing(
            self.forward, self.task, penalty=size, **common, steps=self._steps, progress=progress
        )


def asked(
    method: str,
    target: float | None = None,
    top: int | None = None,
    threshold: float | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """What a circuit is sought with, defaults filled in.

    Raises MechlabError for an unknown method, or sizes that it does not take or that contradict.
    """
    if method not in (*METHODS, *SEARCHES):
        raise MechlabError("unknown method", method, near(method, (*METHODS, *SEARCHES)))
    sizes = {"target": target, "top": top, "threshold": threshold}
    given = [name for name, value in sizes.items() if value is not None]
    if method in SEARCHES and given != [SEARCHES[method]]:
        shown = " and ".join(given) or "none given"
        raise MechlabError(f"{method} takes a {SEARCHES[method]} and nothing else for its size", shown)
    if len(given) > 1:
        raise MechlabError("size of the circuit is given twice", " and ".join(given), "give one of them")
    if target is not None and not 0 < target <= 1:
        raise MechlabError("target faithfulness must be above 0 and at most 1", target)
    if top is not None and top < 1:
        raise MechlabError("a circuit needs at least one edge", top)
    if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
        raise MechlabError("threshold must be a finite number of at least 0", threshold)
    if not given:
        sizes["target"] = TARGET
    if method not in STEPS and steps is not None:
        raise MechlabError(f"{method} has no steps", steps, f"methods with steps: {', '.join(STEPS)}")
    return {"steps": STEPS.get(method) if steps is None else steps, **sizes}
