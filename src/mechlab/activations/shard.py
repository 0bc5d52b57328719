"""One shard of a store while it is made: buffers filled by a forward's hooks, written by another thread.

An activation is copied once, from the model's tensor into the shard's buffer, in the storage
format. On a CUDA device the copy goes to pinned memory and nothing waits for it until the shard
is written.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mechlab.activations.statistics import Accumulator
from mechlab.activations.storage import FORMATS, SCALE, dequantise, quantise, write_tensors
from mechlab.data.stream import Contexts
from mechlab.errors import MechlabError
from mechlab.models.sites import Site

COLUMNS = {"tokens": torch.int32, "document": torch.int64, "context": torch.int32, "position": torch.int32}
STATISTICS = ".statistics"
CONTEXTS = "context_tokens"


@dataclass(frozen=True)
class Rows:
    """The positions of a batch that become rows, in order.

    Attributes:
        context: number of the context within the batch ``[row]``.
        position: position within the context ``[row]``.
        span: the positions, when they are one run and the same in every context.
        index: ``context * width + position`` on the model's device ``[row]``.
    """

    context: Int[Tensor, "row"]
    position: Int[Tensor, "row"]
    span: slice | None
    index: Int[Tensor, "row"]

    @classmethod
    def of(cls, chosen: Bool[Tensor, "context pos"], device: torch.device, limit: int | None = None) -> Rows:
        """The first ``limit`` of the ``chosen`` positions."""
        context, position = (part[:limit] for part in chosen.nonzero(as_tuple=True))
        span = None
        per_context, rest = divmod(len(context), len(chosen))
        if per_context and rest == 0:
            first = int(position[0])
            block = position.view(-1, per_context)
            if bool((block == torch.arange(first, first + per_context)).all()):
                span = slice(first, first + per_context)
        index = (context * chosen.shape[1] + position).to(device, non_blocking=True)
        return cls(context, position, span, index)

    def __len__(self) -> int:
        return len(self.context)

    def take(
        self, value: Float[Tensor, "context pos dim"], out: Float[Tensor, "row dim"] | None = None
    ) -> Float[Tensor, "row dim"]:
        """The rows of ``value``, copied (into ``out``, of the same dtype and device, when given)."""
        if out is None:
            out = value.new_empty(len(self), value.shape[-1])
        if self.span is not None:
            chosen = value[:, self.span]
            out.view(chosen.shape).copy_(chosen)
        elif value.is_contiguous():
            torch.index_select(value.view(-1, value.shape[-1]), 0, self.index, out=out)
        else:  # part of a wider output: flattening it would copy the whole
            out.copy_(value[self.index // value.shape[1], self.index % value.shape[1]])
        return out


class Shard:
    """Room for one shard's rows. ``begin`` a batch, ``put`` each site's value, at last ``write``."""

    def __init__(self, sites: Sequence[Site], storage: str, rows: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._sites, self._storage, self._device, self._capacity = sites, storage, device, rows
        self._values: dict[str, Tensor] = {}
        for site in sites:
            self._values[site.name] = torch.empty(rows, site.dim, dtype=FORMATS[storage], pin_memory=pinned)
            if storage == "int8":
                self._values[site.name + SCALE] = torch.empty(rows, pin_memory=pinned)
        self._columns = {name: torch.empty(rows, dtype=kind) for name, kind in COLUMNS.items()}
        self.clear()

    def clear(self) -> None:
        """Forget the rows; the buffers stay."""
        self.rows = 0
        self._at = 0
        self._current: Rows | None = None
        self._contexts: list[Tensor] = []
        self._statistics = {
            site.name: Accumulator(site.dim, self._capacity, self._device, coarse=self._storage == "int8")
            for site in self._sites
        }

    def begin(self, batch: Contexts, rows: Rows, first: int) -> None:
        """Announce a batch whose contexts are numbered from ``first``; its sites' values come next."""
        self._at, self._current = self.rows, rows
        self.rows += len(rows)
        here = slice(self._at, self.rows)
        self._columns["tokens"][here] = batch.tokens[rows.context, rows.position].int()
        self._columns["document"][here] = batch.document[rows.context, rows.position]
        self._columns["context"][here] = (first + rows.context).int()
        self._columns["position"][here] = rows.position.int()
        self._contexts.append(torch.where(batch.mask, batch.tokens, -1).int())

    def put(self, name: str, value: Float[Tensor, "context pos dim"]) -> None:
        """Copy the current batch's rows of a site out of the running model."""
        rows = self._current
        assert rows is not None
        if len(rows) == 0:
            return
        if len(value) != len(self._contexts[-1]):  # positions are embedded once for all contexts
            value = value.expand(len(self._contexts[-1]), *value.shape[1:])
        out = self._values[name][self._at : self.rows]
        if value.dtype == out.dtype and value.device == out.device:
            self._statistics[name].add(self._at, rows.take(value, out), None)
            return
        x = rows.take(value)
        if self._storage == "int8":
            small, scale = quantise(x)
            self._values[name + SCALE][self._at : self.rows].copy_(scale, non_blocking=True)
            kept = dequantise(small, scale)
        else:
            small = x.to(out.dtype)
            kept = small
        out.copy_(small, non_blocking=True)
        self._statistics[name].add(self._at, x, None if small.dtype == x.dtype else kept)

    def write(self, path: Path, ready: torch.cuda.Event | None = None) -> dict[str, Any]:
        """Write the rows to ``path`` and return what the store's journal says of them.

        ``ready`` is waited for first: it marks the end of the copies to pinned memory. Raises
        MechlabError when an activation, or what the storage format makes of it, is not finite.
        """
        if ready is not None:
            ready.synchronize()
        tensors: dict[str, Shaped[Tensor, "..."]] = {
            name: value[: self.rows] for name, value in {**self._columns, **self._values}.items()
        }
        tensors[CONTEXTS] = _rectangle(self._contexts)
        scalars = {}
        for site in self._sites:
            self._check(site.name)
            partial = self._statistics[site.name].partial(
                self.rows, functools.partial(self._stored, site.name)
            )
            tensors[site.name + STATISTICS] = partial.moments
            scalars[site.name] = partial.scalars()
        digest = write_tensors(path, tensors)
        return {
            "name": path.name,
            "rows": self.rows,
            "contexts": len(tensors[CONTEXTS]),
            "bytes": path.stat().st_size,
            "xxh3_128": digest,
            "statistics": scalars,
        }

    def _stored(self, site: str, rows: Int[Tensor, "some"]) -> Float[Tensor, "some dim"]:
        return self._values[site][rows]

    def _check(self, site: str) -> None:
        finite = np.isfinite(self._statistics[site].square[: self.rows].cpu().numpy())
        problem, remedy = "are NaN or infinite", "check the model's weights, or load it with --dtype float32"
        if finite.all():
            stored = self._values[site][: self.rows]
            if self._storage != "float16" or bool(stored.isfinite().all()):
                return
            finite = stored.isfinite().all(-1).numpy()
            problem, remedy = "are too large for float16", "store them as bfloat16 or float32"
        at = int(np.flatnonzero(~finite)[0])
        document, position = (int(self._columns[name][at]) for name in ("document", "position"))
        raise MechlabError(
            f"activations at {site} {problem}", f"document {document}, position {position}", remedy
        )


def _rectangle(parts: list[Int[Tensor, "_ _"]]) -> Int[Tensor, "context pos"]:
    """Stack batches of contexts of different widths; -1 fills up."""
    width = max((part.shape[1] for part in parts), default=0)
    whole = np.full((sum(map(len, parts)), width), -1, np.int32)
    at = 0
    for part in parts:
        whole[at : at + len(part), : part.shape[1]] = part.numpy()
        at += len(part)
    return torch.from_numpy(whole)
