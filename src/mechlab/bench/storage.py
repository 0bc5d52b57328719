"""Reading a store back, and the memory that making one takes."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mechlab.activations.batches import BUFFER, shuffled
from mechlab.activations.harvest import harvest
from mechlab.activations.store import Store, open_store
from mechlab.bench.harvest import Load, goal, store_rows
from mechlab.bench.measure import Progress, Variant, evict, interleaved, read_peak
from mechlab.data.corpus import open_corpus
from mechlab.models.subject import load_model

# Stored without running a block.
_SITE = "hook_embed"


def compare_reading(
    load: Load, work: Path, *, repeats: int, buffer: int = BUFFER, progress: Progress | None = None
) -> dict[str, Any]:
    """Bytes a second of shuffled batches from a store, and of a sequential read of the same rows.

    Both copy every row out of the memory map into new batches. Warm: the files' pages are in memory
    and mapped; cold: they were dropped before each step (``posix_fadvise``) and the store is opened
    anew. One site of the model, as many rows as ``load`` has.

    Returns:
        plain values: bytes, and for "warm" and "cold" both rates and the goal.
    """
    path, dim = work / "reading", load.subject.site(_SITE).dim
    store_rows(load, [_SITE], path)
    opened: list[Store] = []

    def prepare(*, cold: bool) -> None:
        if cold:
            opened.clear()
            gc.collect()  # pages that are still mapped stay in memory
            for file in path.glob("*.safetensors"):
                evict(file)
        if not opened:
            opened.append(open_store(path))

    def sequential() -> float:
        total = 0
        for shard in opened[0].shards:
            for start in range(0, shard.rows, load.batch_rows):
                rows = shard.values(_SITE, start, min(start + load.batch_rows, shard.rows))
                total += rows.clone().nbytes
        return float(total)

    def mixed() -> float:
        with shuffled(opened[0], batch_size=load.batch_rows, buffer=buffer) as batches:
            return float(sum(each[_SITE].nbytes for each in batches))

    def variant(step: Callable[[], float], *, cold: bool) -> Variant:
        return Variant(step, lambda: prepare(cold=cold))

    rounds = interleaved(
        {
            "sequential, warm": variant(sequential, cold=False),
            "shuffled, warm": variant(mixed, cold=False),
            "sequential, cold": variant(sequential, cold=True),
            "shuffled, cold": variant(mixed, cold=True),
        },
        repeats=repeats,
        device=torch.device("cpu"),
        stage="reading",
        progress=progress,
    )
    opened.clear()
    shutil.rmtree(path)
    pairs = {state: (f"shuffled, {state}", f"sequential, {state}") for state in ("warm", "cold")}
    return {
        "rows": load.rows,
        "dim": dim,
        "buffer_rows": buffer,
        "bytes_per_s": {name: rounds.rate(name) for name in rounds.rates},
        "peak_bytes": rounds.peaks,
        "goals": [
            goal(f"rows of {dim}: {' / '.join(pair)}", rounds.ratio(*pair), 0.8) for pair in pairs.values()
        ],
    }


def compare_memory(work: Path, *, rows: int, device: str = "auto") -> dict[str, Any]:
    """Peak memory of harvests of ``rows`` and of ten times as many rows, each in a process of its own.

    The whole command's work, tokenising included, on the bundled model and corpus.

    Returns:
        plain values: both peaks in bytes (None where it cannot be measured) and the goal, that
        the larger harvest takes at most a tenth more.
    """
    peaks = []
    for n in (rows, 10 * rows):
        words = [sys.executable, "-m", "mechlab.bench.storage", str(work / "memory"), str(n), device]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        peaks.append(json.loads(done.stdout.splitlines()[-1]))
        shutil.rmtree(work / "memory")
    found: dict[str, Any] = {"rows": [rows, 10 * rows], "peak_bytes": peaks, "goals": []}
    if None not in peaks:
        name = f"peak at {rows:,} rows / at {10 * rows:,}"
        found["goals"].append(goal(name, peaks[0] / peaks[1], 1 / 1.1))
    return found


def _harvest_and_report(out: str, rows: str, device: str) -> None:
    subject = load_model(device=device)
    harvest(subject, open_corpus(), _SITE, out, tokens=int(rows))
    # Resident memory also on a machine with a card: that is where shards are gathered.
    print(json.dumps(read_peak(torch.device("cpu"))))


if __name__ == "__main__":
    _harvest_and_report(*sys.argv[1:])
