"""From the shards of a text to the files of its index, some features at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from jaxtyping import Float, Int

from mechlab.features.shards import COLUMNS, Shard
from mechlab.features.statistics import STATISTICS_FILE, Statistics, joined, summary_of
from mechlab_kernels.entries import merge
from mechlab_kernels.portions import blocks

_BLOCK = 2**21  # entries merged at a time
_INT32 = np.iinfo(np.int32)
Sums = dict[str, dict[str, str]]


def merge_shards(shards: Sequence[Shard], n_features: int, work: Path) -> tuple[Sums, dict[str, int]]:
    """Write the index's arrays and statistics to ``work``: their checksums, and how much there is.

    Args:
        shards: one at least, in the order of the text.

    In memory are a block of entries, or one feature's where those are more, and one shard's text.
    """
    rows, sums = sum(shard.rows for shard in shards), Sums()
    total = np.zeros(n_features, np.int64)
    for shard in shards:
        total += np.diff(shard.read("indptr"))
    indptr = np.concatenate([[0], np.cumsum(total)])
    count = int(indptr[-1])
    starts = [0] * len(shards)
    # Also of no features at all.
    parts = [summary_of(np.zeros(1, np.int64), np.zeros(0, np.float32), rows)]
    with (
        _array(work / "row.npy", np.dtype(np.int32), count, sums) as row_file,
        _array(work / "value.npy", np.dtype(np.float32), count, sums) as value_file,
    ):
        for first, last in blocks(indptr, _BLOCK):
            part, row, value, starts = _merged(shards, first, last, starts)
            row_file.write(row.data)
            value_file.write(value.data)
            parts.append(summary_of(part, value, rows))
    with _array(work / "indptr.npy", indptr.dtype, len(indptr), sums) as file:
        file.write(indptr.data)
    for name in COLUMNS:
        _write_column(shards, name, work / f"{name}.npy", sums)
    _write_statistics(joined(parts), work / STATISTICS_FILE, sums)
    return sums, {"rows": rows, "entries": count, "live": int((total > 0).sum())}


def within(array: Int[np.ndarray, "_"], low: int, high: int) -> bool:
    """Whether all numbers, one at least, lie from ``low`` to ``high``."""
    return low <= int(array.min()) and int(array.max()) <= high


def _merged(
    shards: Sequence[Shard], first: int, last: int, starts: list[int]
) -> tuple[
    Int[np.ndarray, "feature_plus_1"], Int[np.ndarray, "entry"], Float[np.ndarray, "entry"], list[int]
]:
    """Entries of features ``first`` to ``last``; and where each shard goes on."""
    rows, values, places, ends, at = [], [], [], [], 0
    for shard, start in zip(shards, starts, strict=True):
        indptr = shard.read("indptr", first, last + 1)
        stop = int(indptr[-1])
        rows.append(shard.read("row", start, stop))
        values.append(shard.read("value", start, stop))
        places.append(indptr - start + at)
        ends.append(stop)
        at += stop - start
    return *merge(np.stack(places), np.concatenate(rows), np.concatenate(values)), ends


def _write_column(shards: Sequence[Shard], name: str, path: Path, sums: Sums) -> None:
    columns = (shard.read(name) for shard in shards if shard.rows)
    small = all(within(column, _INT32.min, _INT32.max) for column in columns)
    kind = np.dtype(np.int32 if small else np.int64)
    with _array(path, kind, sum(shard.rows for shard in shards), sums) as file:
        for shard in shards:
            file.write(shard.read(name).astype(kind).data)


def _write_statistics(statistics: Statistics, path: Path, sums: Sums) -> None:
    content = statistics.to_bytes()
    path.write_bytes(content)
    sums[path.name] = {"xxh3_128": xxhash.xxh3_128_hexdigest(content)}


class _Hashed:
    """A file being written, and the checksum of what was."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sum = file, xxhash.xxh3_128()

    def write(self, data: bytes | memoryview) -> int:
        self._sum.update(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._sum.hexdigest()


@contextmanager
def _array(path: Path, kind: np.dtype[Any], length: int, sums: Sums) -> Iterator[_Hashed]:
    """A .npy file of one dimension, to be filled in order; its checksum goes to ``sums``."""
    with path.open("wb") as file:
        hashed = _Hashed(file)
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(hashed, header)
        yield hashed
    sums[path.name] = {"xxh3_128": hashed.hexdigest()}
