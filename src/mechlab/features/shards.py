"""Shards of an index that is being built: some rows of the text, and their entries by feature."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Int, Shaped

from mechlab.files import replacing

# What a shard holds, in order: entries by feature, then the columns of the text.
_TYPES: dict[str, np.dtype[Any]] = {
    "indptr": np.dtype(np.int64), "row": np.dtype(np.int32), "value": np.dtype(np.float32),
    "tokens": np.dtype(np.int32), "context": np.dtype(np.int64),
    "position": np.dtype(np.int32), "document": np.dtype(np.int64),
}  # fmt: skip
COLUMNS = ("tokens", "context", "position", "document")
_SIZES = np.dtype([("rows", np.int64), ("entries", np.int64), ("features", np.int64)])
_DIGEST = 16


@dataclass(frozen=True)
class Shard:
    """A shard on disk; its arrays are read as they are asked for.

    Attributes:
        rows, entries, features: how many it has; ``indptr`` has one more than features.
    """

    path: Path
    rows: int
    entries: int
    features: int

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Shaped[np.ndarray, "_"]:
        """Items ``start`` to ``stop`` of one array."""
        stop = self._length(name) if stop is None else stop
        before = list(_TYPES)[: list(_TYPES).index(name)]
        offset = (
            _SIZES.itemsize + _DIGEST + sum(_TYPES[each].itemsize * self._length(each) for each in before)
        )
        kind = _TYPES[name]
        found: np.ndarray = np.fromfile(self.path, kind, stop - start, offset=offset + kind.itemsize * start)
        return found

    def _length(self, name: str) -> int:
        if name in ("row", "value"):
            return self.entries
        return self.rows if name in COLUMNS else self.features + 1

    @property
    def _bytes(self) -> int:
        return _SIZES.itemsize + _DIGEST + sum(_TYPES[each].itemsize * self._length(each) for each in _TYPES)


def write_shard(
    path: Path,
    entries: Sequence[Shaped[np.ndarray, "_"]],
    columns: Sequence[Int[np.ndarray, "row"]],
) -> Shard:
    """Write (indptr, row, value) and the columns of the text; the file appears whole or not at all."""
    arrays = [
        np.ascontiguousarray(array, kind)
        for array, kind in zip((*entries, *columns), _TYPES.values(), strict=True)
    ]
    sizes = np.array([(len(arrays[3]), len(arrays[1]), len(arrays[0]) - 1)], _SIZES)
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(array.data)
    with replacing(path) as handle:
        handle.write(sizes.tobytes())
        handle.write(digest.digest())
        for array in arrays:
            handle.write(array.data)
    return Shard(path, *map(int, sizes[0]))


def open_shard(path: Path, features: int) -> Shard | None:
    """The shard at ``path``; None where there is none, or it is cut short or altered."""
    if not path.is_file():
        return None
    with path.open("rb") as handle:
        head = handle.read(_SIZES.itemsize)
        digest = handle.read(_DIGEST)
        if len(digest) < _DIGEST:
            return None
        shard = Shard(path, *map(int, np.frombuffer(head, _SIZES)[0]))
        # XXH3, as anything slower would be felt when hundreds of shards are opened again.
        whole = shard.features == features and shard._bytes == path.stat().st_size
        return shard if whole and hashlib.file_digest(handle, xxhash.xxh3_128).digest() == digest else None
