"""Activation patching swept over a model: layer, head, MLP, query, key or value, position by position.

A cell puts one activation of the other run into the base run and lets everything after it follow
(Meng et al. 2022; Heimersheim & Nanda 2024). Noising starts from the clean run, denoising from the
corrupt one. Both effects are positive where the activation supports the metric:

    noising   = m(clean) − m(clean with the activation corrupt)
    denoising = m(corrupt with the activation clean) − m(corrupt)

The cells of one layer run as one batch, from that layer on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab import scores
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import default_metric, metric_named
from mechlab.circuits.runs import BATCH_SIZE, End, PairedRun, paired_runs
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.forward import DecomposedForward, Shape, Split, Stage
from mechlab.models.subject import Subject
from mechlab.scores import Score

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SWEEPS = ("layers", "attention", "heads", "mlps", "qkv")
BY = ("all", "position", "name")
# Cells that run together. Every query, key or value among them costs a stream for every cell.
_CELLS, _CELLS_OF_READERS = 16, 4


@dataclass(frozen=True)
class Sweep:
    """Effects of patching every cell of a grid.

    Attributes:
        what: one of ``SWEEPS``; direction: "noising" or "denoising"; metric: its name.
        rows: what was patched, in the graph's names ("resid_pre.2" for the stream entering layer 2).
        columns: where: token positions, the task's names of positions, or "all" positions at once.
        effects: per prompt, in the metric's units.
        clean, corrupt: the metric of both runs, per prompt.
    """

    what: str
    direction: str
    metric: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    effects: Float[Tensor, "row column n"]
    clean: Float[Tensor, "n"]
    corrupt: Float[Tensor, "n"]

    @property
    def recovered(self) -> Float[Tensor, "row column"]:
        """Mean effect as a share of the gap between the two runs (a ratio of means over prompts)."""
        gap = (self.clean - self.corrupt).mean()
        return self.effects.mean(-1) / gap

    def score(self, row: str, column: str = "all", *, seed: int = 0) -> Score:
        """The recovered share of one cell with a bootstrap interval over prompts.

        Raises MechlabError for a row or column that was not swept.
        """
        for name, names in ((row, self.rows), (column, self.columns)):
            if name not in names:
                raise MechlabError("cell was not patched", name, near(name, names))
        effect = self.effects[self.rows.index(row), self.columns.index(column)]
        sums = torch.stack([effect, self.clean - self.corrupt], 1).double().numpy()
        return scores.score(f"{self.direction} {row}", sums, scores.mean, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: shares of the gap and means."""
        return {
            "what": self.what,
            "direction": self.direction,
            "metric": self.metric,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "recovered": np.round(self.recovered.double().numpy(), 6).tolist(),
            "clean": float(self.clean.mean()),
            "corrupt": float(self.corrupt.mean()),
            "n": len(self.clean),
        }

    def figure(self) -> Figure:
        """Heat map of the recovered shares; zero is white, and colours are even on both sides."""
        from plotly import graph_objects as go

        shares = self.recovered.double().numpy()
        high = float(np.abs(shares).max()) or 1.0
        heat = go.Heatmap(
            z=shares, x=list(self.columns), y=list(self.rows), zmin=-high, zmax=high, colorscale="RdBu",
            reversescale=True, colorbar={"title": "share of gap"},
            hovertemplate="%{y} at %{x}: %{z:.3f}<extra></extra>",
        )  # fmt: skip
        figure = go.Figure(heat)
        figure.update_layout(title=f"{self.direction}, {self.metric}")
        figure.update_yaxes(type="category", autorange="reversed", dtick=1)
        # Positions are names, though they look like numbers.
        figure.update_xaxes(type="category", title="position")
        return figure


@dataclass(frozen=True)
class _Cell:
    """Attributes: layer: first to run; index: which of ``Sweep.effects``; unit: what of the layer."""

    layer: int
    row: int
    column: int
    unit: int


def patch(
    subject: Subject,
    task: Task,
    what: str = "heads",
    *,
    by: str = "all",
    direction: str = "noising",
    metric: str | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Patch every layer's stream, attention, head, MLP, or query/key/value, at once or by position.

    Args:
        what: "layers" (the stream entering each layer), "attention" (a layer's heads together),
            "heads", "mlps", or "qkv" (the input of one head's query, key or value).
        by: "all" positions at once, every "position", or the task's "name"d positions.
        layers: only these; all when None.
        progress: called with (cells done, cells), counted once per batch of prompts.

    Raises MechlabError for unknown names, layers that the model lacks, and a metric whose mean is the
    same in both runs.
    """
    for given, known, kind in (
        (what, SWEEPS, "sweep"),
        (by, BY, "axis"),
        (direction, ("noising", "denoising"), "direction"),
    ):
        if given not in known:
            raise MechlabError(f"unknown {kind}", given, near(given, known))
    forward = DecomposedForward(subject.module)
    wrong = [layer for layer in layers or () if not 0 <= layer < forward.shape.n_layers]
    if wrong:
        raise MechlabError("model has no layer", wrong[0], f"layers are 0 … {forward.shape.n_layers - 1}")
    rows, places = _rows(forward.shape, what, layers)
    columns = {"all": ("all",), "name": tuple(task.positions)}.get(by) or tuple(
        str(place) for place in range(task.clean.shape[1])
    )
    cells = [
        _Cell(layer, row, column, unit)
        for row, (layer, unit) in enumerate(places)
        for column in range(len(columns))
    ]
    name, done, total = metric or default_metric(task), 0, len(cells) * -(-len(task) // batch_size)
    parts, clean, corrupt = [], [], []
    for pair in paired_runs(forward, task, metric_named(name), batch_size):
        base, other = (pair.clean, pair.corrupt) if direction == "noising" else (pair.corrupt, pair.clean)
        found = base.metric.new_empty(len(rows), len(columns), len(pair.task))
        for layer in sorted({cell.layer for cell in cells}):
            here = [cell for cell in cells if cell.layer == layer]
            size = _CELLS_OF_READERS if what == "qkv" and len(columns) == 1 else _CELLS
            for first in range(0, len(here), size):
                some = here[first : first + size]
                where = [_positions(pair.task, columns[cell.column], by) for cell in some]
                values = _patched(forward, pair, base, other, what, some, where)
                for cell, value in zip(some, values, strict=True):
                    found[cell.row, cell.column] = value
                done += len(some)
                if progress:
                    progress(done, total)
        sign = 1 if direction == "noising" else -1
        parts.append(sign * (base.metric - found))
        clean.append(pair.clean.metric)
        corrupt.append(pair.corrupt.metric)
    sweep = Sweep(
        what, direction, name, rows, columns,
        torch.cat(parts, 2).cpu(), torch.cat(clean).cpu(), torch.cat(corrupt).cpu(),
    )  # fmt: skip
    if float((sweep.clean - sweep.corrupt).mean()) == 0:
        raise MechlabError(f"mean {name} is the same in both runs", task.name, "choose another metric")
    return sweep


def _rows(
    shape: Shape, what: str, layers: Sequence[int] | None
) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Names of what is patched, with the layer and the number within the layer of each."""
    wanted = range(shape.n_layers) if layers is None else layers
    if what == "qkv":
        readers, per_layer = Graph(shape).readers, shape.readers_per_layer
        places = [(layer, unit) for layer in wanted for unit in range(per_layer - 1)]
        return tuple(readers[layer * per_layer + unit] for layer, unit in places), places
    units = range(shape.n_heads) if what == "heads" else range(1)
    places = [(layer, unit) for layer in wanted for unit in units]
    form = {"layers": "resid_pre.{}", "attention": "a{}", "heads": "a{}.h{}", "mlps": "m{}"}[what]
    return tuple(form.format(*place) for place in places), places


def _positions(task: Task, column: str, by: str) -> Int[Tensor, "batch place"]:
    """Which positions of each prompt a cell patches."""
    n, pos = task.clean.shape
    if by == "all":
        return torch.arange(pos, device=task.clean.device).expand(n, -1)
    if by == "name":
        named = task.positions[column]
        return named.view(n, -1)
    return torch.full((n, 1), int(column), device=task.clean.device)


@torch.no_grad()
def _patched(
    forward: DecomposedForward,
    pair: PairedRun,
    base: End,
    other: End,
    what: str,
    cells: list[_Cell],
    where: list[Int[Tensor, "batch place"]],
) -> Float[Tensor, "cell batch"]:
    """The metric of the base run with each cell in turn taken from the other run; one layer's cells."""
    n, layer, ends = len(pair.task), cells[0].layer, pair.task.positions["end"]
    prompts = torch.arange(n, device=pair.task.clean.device)[:, None]
    kind = "mlp" if what == "mlps" else "attention"
    x = base.streams[layer].repeat(len(cells), 1, 1)

    def put(target: Tensor, number: int, source: Tensor) -> None:
        target[number * n : (number + 1) * n][prompts, where[number]] = source[prompts, where[number]]

    def write(stage: Stage, outputs: Tensor) -> Tensor:
        if stage.kind != kind or stage.layer != layer:
            return outputs
        outputs = outputs.clone()
        for number, cell in enumerate(cells):
            for unit in range(len(outputs)) if what == "attention" else (cell.unit,):
                put(outputs[unit], number, other.sources[stage.writes.start + unit])
        return outputs

    def read(stage: Stage, stream: Tensor) -> Tensor | Split:
        if stage.kind != "attention" or stage.layer != layer:
            return stream
        columns = sorted({cell.unit for cell in cells})
        own = stream.repeat(len(columns), 1, 1, 1)
        for number, cell in enumerate(cells):
            put(own[columns.index(cell.unit)], number, other.streams[layer])
        return Split(stream, own, tuple(columns))

    if what == "layers":
        for number in range(len(cells)):
            put(x, number, other.streams[layer])
    run = forward.run(
        x=x,
        start=layer,
        positions=ends.repeat(len(cells), *[1] * (ends.ndim - 1)),
        read=read if what == "qkv" else None,
        write=write if what in ("attention", "heads", "mlps") else None,
        apart=(layer,),
    )
    assert run.logits is not None
    logits = run.logits.view(len(cells), n, *run.logits.shape[1:])
    return torch.stack([pair.metric(each) for each in logits])
