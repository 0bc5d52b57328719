"""What attribution starts from: how far every source is from its ablated value, and a path between.

Under resample ablation, nothing is computed twice: heads are compared before W_O, so that one product
gives the differences of their outputs, and a run whose gradient is wanted is the run compared.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution.beside import run_beside
from mechlab.circuits.metrics import Metric
from mechlab.circuits.runs import paired_runs
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward, Run, Trace


@dataclass(frozen=True)
class Ends:
    """The ablated and the clean end of a batch.

    Attributes:
        difference: output of every source on the clean run minus its ablated value.
        low, high: ablated and clean embeddings.
        clean_logits: the model's own, where the task reads them.
        narrow: runs go on after the last attention only where the task reads; only there is the
            difference of the last MLP known.
        runs: traced runs, by their α, that were made on the way.
    """

    forward: DecomposedForward
    task: Task
    metric: Metric
    difference: Float[Tensor, "source batch pos d_model"]
    low: Float[Tensor, "batch pos d_model"]
    high: Float[Tensor, "batch pos d_model"]
    clean_logits: Float[Tensor, "batch *read d_vocab"]
    narrow: bool = False
    runs: dict[float, Run] = field(default_factory=dict)

    def traced(self, points: Sequence[float]) -> Run:
        """One run of the batch at every α, first axis ``[point · batch]``, ready to be walked back."""
        if len(points) == 1 and points[0] in self.runs:
            return self.runs.pop(points[0])
        x = torch.cat([torch.lerp(self.low, self.high, point) for point in points])
        return _traced(self.forward, x, self.task, self.narrow)

    def total(self, run: Run) -> Float[Tensor, ""]:
        """The metric of a run, summed over prompts and points."""
        assert run.logits is not None
        copies = torch.split(run.logits, len(self.task))
        return torch.stack([self.metric(part, self.task, self.clean_logits).sum() for part in copies]).sum()


def make_ends(
    forward: DecomposedForward,
    batch: Task,
    metric: Metric,
    ablation: Ablation | None = None,
    points: Container[float] = (),
    *,
    narrow: bool = False,
) -> Ends:
    """Both ends of a batch.

    Args:
        ablation: resample when None.
        narrow: see ``Ends``.
        points: where gradients will be taken; an end among them is run with gradient at once.

    Raises MechlabError when the ablation does not fit the prompts.
    """
    if ablation is not None and ablation.kind != "resample":
        pair = next(paired_runs(forward, batch, metric, len(batch)))
        clean, other = pair.clean, ablation.values(pair)
        difference = clean.sources - other
        return Ends(forward, batch, metric, difference, other[0], clean.sources[0], clean.logits, narrow)
    runs, ends = {}, batch.positions["end"]
    with torch.no_grad():
        low, high = forward.embed(batch.corrupt), forward.embed(batch.clean)
        if 1.0 in points and 0.0 not in points:
            with torch.enable_grad():
                runs[1.0], corrupt = run_beside(forward, high, low, ends, narrow=narrow)
        elif 0.0 in points:
            with torch.enable_grad():
                runs[0.0] = _traced(forward, low, batch, narrow)
            corrupt = _wrote(runs[0.0])
        else:
            corrupt = _wrote(
                forward.run(x=low, stop=forward.shape.n_layers, positions=ends, trace=True, narrow=narrow)
            )
        if 1.0 in runs:
            clean_run = runs[1.0]
        elif 1.0 in points:
            with torch.enable_grad():
                clean_run = runs[1.0] = _traced(forward, high, batch, narrow)
        else:
            clean_run = forward.run(x=high, positions=ends, trace=True, narrow=narrow)
        assert clean_run.logits is not None
        difference = high.new_empty(forward.shape.n_sources, *high.shape)
        torch.sub(high, low, out=difference[0])
        for trace, before in zip(clean_run.traces, corrupt, strict=False):
            _fill(forward, trace, before, difference)
    return Ends(forward, batch, metric, difference, low, high, clean_run.logits.detach(), narrow, runs)


def repeated(positions: Int[Tensor, "batch *read"], times: int) -> Int[Tensor, "row *read"]:
    """Positions of a batch that stands ``times`` times in one run."""
    return positions if times == 1 else positions.repeat(times, *[1] * (positions.ndim - 1))


def _traced(forward: DecomposedForward, x: Tensor, batch: Task, narrow: bool) -> Run:
    positions = repeated(batch.positions["end"], len(x) // len(batch))
    return forward.run(x=x, positions=positions, trace=True, leaves=True, narrow=narrow)


def _wrote(run: Run) -> list[Tensor]:
    return [trace.wrote.detach() for trace in run.traces if trace.wrote is not None]


def _fill(forward: DecomposedForward, trace: Trace, before: Tensor, difference: Tensor) -> None:
    """Put a stage's differences in their rows."""
    assert trace.wrote is not None
    change, out = trace.wrote.detach() - before, difference[trace.stage.writes].flatten(1, 2)
    if trace.positions is not None:
        rows = torch.arange(len(change), device=change.device)[:, None]
        difference[trace.stage.writes.start].zero_()[rows, trace.positions] = change
    elif trace.stage.kind == "mlp":
        out.copy_(change.view_as(out))
    else:
        output = forward.attentions[trace.stage.layer].output
        torch.bmm(change.flatten(0, 1).transpose(0, 1), output, out=out)
