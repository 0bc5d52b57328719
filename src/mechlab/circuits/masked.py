"""The masked forward: the model with any set of edges replaced, many circuits at a time.

Edges of a circuit carry what flows in the circuit's own run; every other edge carries another value
of its source (its output on the corrupt prompts, zero, a mean, …), put into that reader's own copy of
the stream before its norm:

    x_r = stream − Σ_{s: edge (s, r) not in the circuit} (s_now − s_other)

Everything exact is built on this: patching, path patching, circuit search, knock-outs, faithfulness.

What is saved, none of it at the price of exactness:

* Before the first reader with a replaced edge the circuit's run is the base run: circuits start at
  that reader's layer, from the base run's cached stream. Circuits that start together run as one batch.
* Readers without a replaced edge share one stream, which is normalised once.
* Heads are kept apart only in layers where a later reader has one of them replaced.
* Only the positions that the metric reads are unembedded; edges into the logits cost no layer at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.circuits.graph import Graph
from mechlab.circuits.runs import End, PairedRun
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Split, Stage

# Elements of one stream per reader that a batch of circuits may hold: 256 MB of float32.
_ELEMENTS = 1 << 26
# Entries of masks that are looked at together.
_ENTRIES = 1 << 26


@dataclass(frozen=True)
class _Plan:
    """What circuits that run together need: the first stage to run, and per stage who reads what.

    Attributes:
        start: first layer to run; n_layers for the logits alone.
        known: sources whose base values enter the run, ``0 … known-1``.
        cut: stage (by its first reader) → the readers within it that have a replaced edge.
        apart: layers whose heads are replaced somewhere later.
        late: stages (by their first reader) where an edge from a source that runs anew is replaced.
    """

    start: int
    known: int
    cut: dict[int, tuple[int, ...]]
    apart: frozenset[int]
    late: frozenset[int]


class Masked:
    """A batch of prompts ready for circuits to be run on it.

    Args:
        base: the run that circuits start from: what present edges carry before anything is replaced.
        other: what replaced edges carry; may be an expanded view.
        positions: where logits are read.
    """

    def __init__(
        self,
        forward: DecomposedForward,
        base: End,
        other: Float[Tensor, "source batch pos d_model"],
        positions: Int[Tensor, "batch *read"],
    ) -> None:
        self.forward, self.base, self.other, self.positions = forward, base, other, positions
        self.real = Graph(forward.shape).real
        self._gap = (base.sources - other).flatten(1)

    @torch.no_grad()
    def logits(
        self, masks: Bool[Tensor, "circuit n_sources n_readers *pos"]
    ) -> Float[Tensor, "circuit batch *read d_vocab"]:
        """Logits of every circuit: True keeps an edge, False replaces what it carries.

        With a position axis, edges are kept or replaced at every position of their own. Raises
        MechlabError for masks of another shape than the model's, here and below.
        """
        found = self.base.logits.new_empty(len(masks), *self.base.logits.shape)
        for rows, logits in self.runs(masks):
            found[rows] = logits
        return found

    @torch.no_grad()
    def metric(
        self, masks: Bool[Tensor, "circuit n_sources n_readers *pos"], pair: PairedRun
    ) -> Float[Tensor, "circuit batch"]:
        """The metric of every circuit; logits of many circuits are never held together."""
        found = pair.clean.metric.new_empty(len(masks), len(pair.task))
        for rows, logits in self.runs(masks):
            found[rows] = torch.stack([pair.metric(each) for each in logits])
        return found

    @torch.no_grad()
    def runs(
        self, masks: Bool[Tensor, "circuit n_sources n_readers *pos"]
    ) -> Iterator[tuple[list[int], Float[Tensor, "row batch *read d_vocab"]]]:
        """Which circuits, and their logits: those that run together, one batch after another."""
        self._require(masks.shape[1:])
        size = max(1, _ENTRIES // max(masks[:1].numel(), 1))
        for first in range(0, len(masks), size):
            some = masks[first : first + size].cpu()
            outside = ~some & (self.real if some.ndim == 3 else self.real[..., None])
            cut = outside if outside.ndim == 3 else outside.any(-1)
            for rows in self._groups(cut):
                plan, among = self._plan(cut[rows]), [first + row for row in rows]
                if plan is None:
                    yield among, self.base.logits[None].expand(len(rows), *self.base.logits.shape)
                else:
                    gone = outside[rows].to(self._gap.device, self._gap.dtype)
                    yield among, self._run(gone, plan).view(len(rows), *self.base.logits.shape)

    def soft(self, mask: Float[Tensor, "n_sources n_readers *pos"]) -> Float[Tensor, "batch *read d_vocab"]:
        """Logits of one circuit with edges present in part, differentiable in ``mask`` (0 to 1)."""
        self._require(mask.shape)
        real = self.real.to(mask)
        outside = (1 - mask) * (real if mask.ndim == 2 else real[..., None])
        plan = self._plan(self.real[None])
        assert plan is not None
        return self._run(outside.to(self._gap.dtype)[None], plan)

    def _require(self, shape: torch.Size) -> None:
        positions = (), tuple(self.base.sources.shape[2:3])
        if shape[:2] != self.real.shape or tuple(shape[2:]) not in positions:
            wanted = "×".join(map(str, (*self.real.shape, "positions or none")))
            raise MechlabError("mask does not fit model and prompts", tuple(shape), f"it must be {wanted}")

    def _groups(self, cut: Bool[Tensor, "circuit n_sources n_readers"]) -> Iterator[list[int]]:
        """Circuits that start at one layer, as many at a time as memory allows."""
        stages = [stage for stage in self.forward.shape.stages if stage.kind != "embed"]
        touched = torch.stack([cut[:, :, stage.readers].any(2).any(1) for stage in stages], 1)
        layer_of = torch.tensor([*(stage.layer for stage in stages), self.forward.shape.n_layers + 1])
        first = torch.where(touched.any(1), touched.float().argmax(1), len(stages))
        starts = layer_of[first].tolist()
        for start in sorted(set(starts)):
            rows = [row for row, layer in enumerate(starts) if layer == start]
            plan = self._plan(cut[rows])
            size = (
                len(rows) if plan is None else max(1, _ELEMENTS // (self._gap.shape[1] * self._width(plan)))
            )
            yield from (rows[at : at + size] for at in range(0, len(rows), size))

    def _width(self, plan: _Plan) -> int:
        """Streams that a circuit holds at once: those of the widest stage, and sources that run anew."""
        new = self.forward.shape.n_sources - plan.known if plan.late else 0
        return 8 + max(map(len, plan.cut.values())) + new

    def _plan(self, cut: Bool[Tensor, "circuit n_sources n_readers"]) -> _Plan | None:
        """None where nothing is replaced."""
        anywhere = cut.any(0)
        columns = {
            stage.readers.start: tuple(anywhere[:, stage.readers].any(0).nonzero().flatten().tolist())
            for stage in self.forward.shape.stages
            if stage.kind != "embed"
        }
        stages = [s for s in self.forward.shape.stages if s.kind != "embed" and columns[s.readers.start]]
        if not stages:
            return None
        start = stages[0].layer
        # The stage that enters the layer: an MLP's own stage may come after the heads of its layer.
        known = next(s.upstream for s in self.forward.shape.stages if s.layer == start and s.kind != "embed")
        sources = anywhere.any(1)
        apart = frozenset(
            stage.layer
            for stage in self.forward.shape.stages
            if stage.kind == "attention" and stage.layer >= start and bool(sources[stage.writes].any())
        )
        late = frozenset(s.readers.start for s in stages if bool(anywhere[known:, s.readers].any()))
        return _Plan(start, known, columns, apart, late)

    def _run(self, outside: Float[Tensor, "circuit n_sources n_readers *pos"], plan: _Plan) -> Tensor:
        """Logits ``[circuit·batch, *read, d_vocab]``, rows by circuit and then prompt."""
        n, (batch, pos, d_model) = len(outside), self.base.streams[0].shape
        graph = outside.requires_grad or self._gap.requires_grad
        late = _Late(self.forward, plan, n, self._gap, graph=graph)

        def write(stage: Stage, outputs: Tensor) -> Tensor:
            if stage.kind != "embed":
                new = outputs.view(-1, n, batch, pos, d_model) - self.other[stage.writes][:, None]
                late.add(stage, new.transpose(0, 1).flatten(2))
            return outputs

        def read(stage: Stage, stream: Tensor) -> Tensor | Split:
            columns = plan.cut[stage.readers.start]
            if not columns:
                return stream
            gone = outside[:, : stage.upstream, stage.readers][:, :, list(columns)]
            early = gone[:, : plan.known]
            gap = self._gap[: plan.known]
            if not graph:
                rows = early.flatten(2).amax(2).amax(0).nonzero().flatten()
                if 2 * len(rows) < plan.known:
                    early, gap = early[:, rows], gap[rows]
            streams = stream.reshape(n, 1, -1)
            if early.shape[1]:
                streams = _less(streams, early, gap[None], batch, pos)
            if stage.upstream > plan.known and late.wanted(stage):
                streams = _less(streams, gone[:, plan.known :], late.until(stage), batch, pos)
            streams = streams.expand(n, len(columns), -1).view(n, len(columns), batch, pos, d_model)
            streams = streams.transpose(0, 1).flatten(1, 2)
            every = len(columns) == stage.readers.stop - stage.readers.start
            return streams if every else Split(stream, streams, columns)

        x, positions = self.base.streams[plan.start], self.positions
        if n > 1:
            x = x.repeat(n, 1, 1)
            positions = positions.repeat(n, *[1] * (positions.ndim - 1))
        run = self.forward.run(
            x=x, start=plan.start, positions=positions, read=read, write=write, apart=plan.apart
        )
        assert run.logits is not None
        return run.logits


class _Late:
    """Outputs of the sources that a run makes anew, minus what replaced edges carry."""

    def __init__(self, forward: DecomposedForward, plan: _Plan, n: int, gap: Tensor, *, graph: bool) -> None:
        self._plan, self._graph = plan, graph
        self._parts: list[Tensor] = []
        if not graph:
            # One array filled in place: later stages read ever longer prefixes of it. Layers that
            # are not kept apart stay zero; nothing reads them but a product with zero.
            new = forward.shape.n_sources - plan.known if plan.late else 0
            self._all = gap.new_zeros(n, new, gap.shape[1])

    def wanted(self, stage: Stage) -> bool:
        """Whether a reader of the stage has an edge from such a source replaced."""
        return self._graph or stage.readers.start in self._plan.late

    def add(self, stage: Stage, new: Float[Tensor, "circuit source value"]) -> None:
        """Outputs of a stage; under gradient nothing is written over."""
        if self._graph:
            self._parts.append(new)
        elif self._all.shape[1]:
            known = self._plan.known
            self._all[:, stage.writes.start - known : stage.writes.stop - known] = new

    def until(self, stage: Stage) -> Float[Tensor, "circuit source value"]:
        """All that the stage's readers can read."""
        new = stage.upstream - self._plan.known
        return torch.cat(self._parts, 1)[:, :new] if self._graph else self._all[:, :new]


def _less(
    streams: Float[Tensor, "circuit #reader value"],
    gone: Float[Tensor, "circuit source reader *pos"],
    gap: Float[Tensor, "#circuit source value"],
    batch: int,
    pos: int,
) -> Float[Tensor, "circuit reader value"]:
    """Streams without what replaced edges carried: ``streams − Σ_source gone · gap``."""
    if gone.ndim == 3:
        weights = gone.transpose(1, 2)
        return torch.baddbmm(streams, weights, gap.expand(len(gone), -1, -1), alpha=-1)
    each = gap.view(*gap.shape[:2], batch, pos, -1)
    if len(gap) == 1:  # all circuits' own: no copy for each of them
        return streams - torch.einsum("ksrp,sbpd->krbpd", gone, each[0]).flatten(2)
    return streams - torch.einsum("ksrp,ksbpd->krbpd", gone, each).flatten(2)
