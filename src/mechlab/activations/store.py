"""Activation stores: one row per token on disk, read through memory maps.

A store is an artifact of kind "activations". Each shard is a safetensors file with, per row,
``tokens``, ``document``, ``context`` and ``position`` (position 0 is BOS where the model has one)
and, for every site, the activations ``[row, dim]``; also ``context_tokens`` ``[context, pos]``,
the whole contexts (-1 beyond their end), and ``<site>.statistics``. ``shards.jsonl`` has a line
per shard: rows, checksum, and its place in the stream. The manifest's facts hold norms and
statistics of every site.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechlab.activations.shard import COLUMNS, CONTEXTS, STATISTICS
from mechlab.activations.statistics import Partial, merge
from mechlab.activations.storage import SCALE, dequantise, will_need
from mechlab.artifacts import Artifact, open_artifact
from mechlab.errors import MechlabError
from mechlab.files import is_whole

KIND = "activations"
SHARDS = "shards.jsonl"
JOURNAL = "journal-{}.jsonl"


@dataclass(frozen=True)
class ShardView:
    """One shard, mapped into memory: nothing is read before it is looked at.

    Attributes:
        path: the file.
        entry: its line in ``shards.jsonl``.
    """

    path: Path
    entry: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.entry["rows"])

    def column(self, name: str) -> Int[Tensor, "row"]:
        """One of "tokens", "document", "context", "position"."""
        return self._tensor(name)

    def contexts(self) -> Int[Tensor, "context pos"]:
        """Tokens of the shard's contexts; -1 beyond their end."""
        return self._tensor(CONTEXTS)

    def raw(self, site: str) -> Tensor:
        """Stored values of a site as they are on disk (``[row, dim]``)."""
        return self._tensor(site)

    def values(self, site: str, start: int = 0, stop: int | None = None) -> Float[Tensor, "row dim"]:
        """Activations of rows ``start`` to ``stop``; mapped, unless they are stored in eight bits."""
        rows = slice(start, stop)
        values = self._tensor(site)[rows]
        return values if values.is_floating_point() else dequantise(values, self._tensor(site + SCALE)[rows])

    def read_ahead(self, sites: Sequence[str], row: int, count: int) -> None:
        """Tell the system that ``count`` rows from ``row`` on are wanted soon; returns at once."""
        for site in sites:
            will_need(self._tensor(site)[row : row + count])

    def partial(self, site: str) -> Partial:
        """Statistics of a site over the shard."""
        return Partial(moments=self._tensor(site + STATISTICS), **self.entry["statistics"][site])

    def _tensor(self, name: str) -> Tensor:
        if name not in self._open:
            self._open[name] = self._file.get_tensor(name)
        return self._open[name]

    @functools.cached_property
    def _open(self) -> dict[str, Tensor]:
        return {}

    @functools.cached_property
    def _file(self) -> Any:
        try:
            return safe_open(str(self.path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise MechlabError(
                "shard cannot be read",
                self.path,
                f"mechlab activations verify {self.path.parent} --repair makes it again",
            ) from error


@dataclass(frozen=True)
class Store:
    """A finished activation store."""

    artifact: Artifact

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the stored sites."""
        return tuple(self.artifact.manifest.config["sites"])

    @property
    def n_rows(self) -> int:
        """Number of stored tokens."""
        return int(self.artifact.manifest.facts["rows"])

    @functools.cached_property
    def shards(self) -> tuple[ShardView, ...]:
        """The shards in stream order."""
        path = self.artifact.file(SHARDS)
        # It says where everything is; a shard's own bytes are left to ``verify``.
        if not is_whole(path, self.artifact.manifest.files[SHARDS]):
            raise MechlabError("list of shards is lost", path, f"delete {path.parent} and harvest again")
        lines = path.read_text().splitlines()
        return tuple(ShardView(self.artifact.file(e["name"]), e) for e in map(json.loads, lines))

    def statistics(self, site: str) -> dict[str, Any]:
        """Norms and moments of a site over all rows; the keys of ``statistics.merge``."""
        self.check_sites([site])
        found: dict[str, Any] = self.artifact.manifest.facts["statistics"][site]
        return found

    def column(self, name: str) -> Int[Tensor, "row"]:
        """One of "tokens", "document", "context", "position" for every row, in stream order."""
        if name not in COLUMNS:
            raise MechlabError("store has no column", name, f"use {', '.join(COLUMNS)}")
        return torch.cat([shard.column(name) for shard in self.shards])

    def activations(self, site: str) -> Float[Tensor, "row dim"]:
        """Activations of every row at ``site``, in stream order, in memory."""
        self.check_sites([site])
        return torch.cat([shard.values(site) for shard in self.shards])

    def check_sites(self, sites: Sequence[str]) -> None:
        """MechlabError unless the store holds all of ``sites``."""
        for site in sites:
            if site not in self.sites:
                raise MechlabError("store does not hold the site", site, f"it holds {', '.join(self.sites)}")


def open_store(path: Path | str) -> Store:
    """Open the store at ``path``; MechlabError when there is none or it is damaged."""
    try:
        artifact = open_artifact(path, KIND)
    except MechlabError as error:
        if "cut short" not in error.what:
            raise
        raise MechlabError(
            error.what, error.value, f"mechlab activations verify {path} --repair makes it again"
        ) from None
    if SHARDS not in artifact.manifest.files or "model" not in artifact.manifest.facts:
        raise MechlabError("store was made by an older version", path, "harvest again with --overwrite")
    return Store(artifact)


def read_journals(work: Path) -> list[dict[str, Any]]:
    """Lines of all journals of an unfinished harvest, by shard; what a kill tore apart is left out."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(work.glob(JOURNAL.format("*"))):
        for entry in _whole_lines(path):
            before = found.get(entry["number"], entry)
            # A damaged shard that another rank made again is in two journals.
            if before == entry or is_whole(work / entry["name"], entry):
                found[entry["number"]] = entry
    return [found[number] for number in sorted(found)]


def merged_statistics(directory: Path, entries: Sequence[dict[str, Any]], site: str) -> dict[str, Any]:
    """Statistics of a site over the shards that ``entries`` describe."""
    return merge([ShardView(directory / entry["name"], entry).partial(site) for entry in entries])


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "number" in entry:
            yield entry
