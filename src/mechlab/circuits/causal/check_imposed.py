"""What the imposed model's circuit is claimed to be, measured on inputs it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.causal.imposed import HOMES, PLACES, imposed_problem, imposed_task
from mechlab.circuits.causal.interchange import accuracy, interchange_accuracy
from mechlab.circuits.causal.problem import Interchanges, draw_interchanges
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.patching import patch_nodes
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject
from mechlab.scores import Score


@dataclass(frozen=True, eq=False)
class ImposedCheck:
    """Measurements on held-out prompts.

    Attributes:
        accuracy: how often the right letter is the answer.
        interchange: interchange accuracy of each variable at its place.
        nodes: effect of resampling each head and MLP, as a share of the gap between the runs.
        edges: the same for each edge alone; 0 where there is none.
    """

    accuracy: Score
    interchange: dict[str, Score]
    nodes: dict[str, float]
    edges: Float[Tensor, "n_sources n_readers"]

    @property
    def other_nodes(self) -> dict[str, float]:
        """Effects of the nodes that hold no variable."""
        homes = {home.source for home in HOMES.values()}
        return {name: effect for name, effect in self.nodes.items() if name not in homes}


def check_imposed(subject: Subject, *, n: int = 256, seed: int = 0) -> ImposedCheck:
    """Accuracy, interchange accuracy, and the exact effect of resampling every node and every edge.

    Effects are (m(clean) − m(resampled)) / (m(clean) − m(corrupt)) with m the mean logit difference
    over ``n`` prompt pairs; every node and edge is resampled by itself.
    """
    problem, task = imposed_problem(), imposed_task(n=n, seed=seed)
    forward = DecomposedForward(subject.module)
    graph = Graph(forward.shape)
    rows = list(range(1, forward.shape.n_sources))
    noising, _, clean, corrupt = patch_nodes(forward, task, rows, metric=logit_difference)
    gap = (clean - corrupt).mean()
    edges = graph.real.nonzero()
    masks = graph.real.repeat(len(edges), 1, 1)
    masks[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    values, whole, _ = run_circuits(forward, task, masks, metric="logit_difference")
    effects = torch.zeros(graph.real.shape)
    effects[edges[:, 0], edges[:, 1]] = (whole - values).mean(1) / gap
    letters = draw_interchanges(problem, "answer", n=1).outputs
    asked = Interchanges(task.clean, {}, task.answers, task.answers, letters)
    return ImposedCheck(
        accuracy=accuracy("accuracy", subject.logits(task.clean)[:, -1].cpu(), asked),
        interchange={
            name: interchange_accuracy(
                subject, draw_interchanges(problem, name, n=n, seed=seed), {name: PLACES[name]}
            )
            for name in HOMES
        },
        nodes={graph.sources[row]: float(noising[row - 1].mean() / gap) for row in rows},
        edges=effects,
    )
