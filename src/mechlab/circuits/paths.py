"""Path patching: what reaches a set of readers from one source, and nothing else.

A direct path is an edge: the readers see the source's other value, every other reader its own, and all
that follows the readers is run anew (Goldowsky-Dill et al. 2023, *Localizing model behavior with path
patching*; Wang et al. 2022). ``through_mlps`` also lets the change pass through the MLPs between source
and reader, with every head held fixed, as Wang et al. do; it costs a second pass per source.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, PairedRun, paired_runs
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Stage


def path_effects(
    forward: DecomposedForward,
    task: Task,
    senders: Sequence[str],
    receivers: Sequence[str],
    *,
    through_mlps: bool = False,
    metric: str | None = None,
    ablation: Ablation | None = None,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "sender n"]:
    """How much the metric falls, per prompt, when only this path carries the other value.

    Args:
        senders: sources, each patched on its own: "a2.h1", "m3", "embed".
        receivers: readers that see it, together: "logits", "a3.h0.q", "m3".
        ablation: what the paths carry; the corrupt prompt's value when None.

    A sender that no receiver can read has effect 0. Positive: the path supports the metric.
    Raises MechlabError for unknown names or none.
    """
    if not senders or not receivers:
        raise MechlabError("a path needs senders and receivers", f"{len(senders)} and {len(receivers)}")
    graph = Graph(forward.shape)
    rows = [graph.source(name) for name in senders]
    columns = [graph.reader(name) for name in receivers]
    ablation = ablation or Ablation("resample")
    found = []
    for pair in paired_runs(forward, task, metric_named(metric or default_metric(task)), batch_size):
        other, ends = ablation.values(pair), pair.task.positions["end"]
        masks = torch.ones(len(rows), *graph.real.shape, dtype=torch.bool)
        for mask, row in zip(masks, rows, strict=True):
            mask[row, columns] = False
        if through_mlps:
            mlps = [row for row, name in enumerate(graph.sources) if name.startswith("m")]
            masks[:, mlps] &= torch.ones(len(graph.readers), dtype=torch.bool).index_fill(
                0, torch.tensor(columns), False
            )
            # Each sender changes the MLPs in its own way, so its paths carry values of their own.
            values = [
                Masked(forward, pair.clean, _through_mlps(forward, pair, row, other), ends).metric(
                    mask[None], pair
                )[0]
                for mask, row in zip(masks, rows, strict=True)
            ]
            found.append(pair.clean.metric - torch.stack(values))
        else:
            found.append(pair.clean.metric - Masked(forward, pair.clean, other, ends).metric(masks, pair))
    return torch.cat(found, 1).cpu()


@torch.no_grad()
def _through_mlps(
    forward: DecomposedForward, pair: PairedRun, row: int, other: Float[Tensor, "source batch pos d_model"]
) -> Float[Tensor, "source batch pos d_model"]:
    """All sources' values when one source is replaced, heads stay as they were and MLPs follow."""
    values = pair.clean.sources.clone()

    def write(stage: Stage, outputs: Tensor) -> Tensor:
        new = outputs if stage.kind == "mlp" else pair.clean.sources[stage.writes].clone()
        if stage.writes.start <= row < stage.writes.stop:
            new = new.clone()
            new[row - stage.writes.start] = other[row]
        values[stage.writes] = new
        return new

    forward.run(pair.task.clean, stop=forward.shape.n_layers, write=write)
    return values
