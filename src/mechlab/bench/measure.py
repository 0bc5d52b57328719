"""Measuring: interleaved timing, peak memory, the machine and its own limits.

Variants are timed in rounds, every variant once a round, so that a machine that slows down
slows them all; a comparison is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Progress = Callable[[str, int, int, dict[str, float]], None]
_PACKAGES = ("torch", "transformers", "sae-lens", "transformer-lens", "datasets")
_DISK_BYTES = 1 << 28


def _nothing() -> None:
    return


@dataclass(frozen=True)
class Variant:
    """One way to do the work.

    Attributes:
        step: does a portion of the work and returns its amount (tokens or bytes).
        prepare: called before every step, outside the timing.
    """

    step: Callable[[], float]
    prepare: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Rounds:
    """What interleaved rounds measured.

    Attributes:
        rates: variant → amount a second, one figure a round.
        peaks: variant → most memory of the process during its first step beyond what it held
            before, in bytes; None where it cannot be measured.
    """

    rates: dict[str, list[float]]
    peaks: dict[str, int | None]

    def rate(self, name: str) -> float:
        """Median amount a second."""
        return statistics.median(self.rates[name])

    def ratios(self, name: str, base: str) -> list[float]:
        """Rate of ``name`` over that of ``base`` within each round."""
        return [a / b for a, b in zip(self.rates[name], self.rates[base], strict=True)]

    def ratio(self, name: str, base: str) -> float:
        """Median of ``ratios``."""
        return statistics.median(self.ratios(name, base))


def interleaved(
    variants: Mapping[str, Variant],
    *,
    repeats: int,
    device: torch.device,
    stage: str = "",
    progress: Progress | None = None,
) -> Rounds:
    """Time every variant once a round, in an order that is rotated and turned round between rounds.

    The first round warms up and is not timed; memory is measured in it.

    Args:
        repeats: rounds that count.
        device: waited for before the clock is started and stopped.
        stage: named in ``progress(stage, done, total, figures)``.
    """
    rates: dict[str, list[float]] = {name: [] for name in variants}
    peaks: dict[str, int | None] = dict.fromkeys(variants)
    names = list(variants)
    for number in range(repeats + 1):
        order = names[number % len(names) :] + names[: number % len(names)]
        gc.collect()
        for name in order if number % 2 else reversed(order):
            variants[name].prepare()
            if number == 0:
                held = start_peak(device)
                variants[name].step()
                synchronise(device)
                peak = read_peak(device)
                peaks[name] = None if held is None or peak is None else max(0, peak - held)
                continue
            synchronise(device)
            started = time.perf_counter()
            amount = variants[name].step()
            synchronise(device)
            rates[name].append(amount / (time.perf_counter() - started))
        if progress:
            progress(stage, number, repeats, {})
    return Rounds(rates, peaks)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_peak(device: torch.device) -> int | None:
    """Forget the peak so far; returns the bytes held now, None where peaks cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        # Memory that was freed but never given back would be used again without being seen.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # "5" resets the high-water mark of resident memory (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def read_peak(device: torch.device) -> int | None:
    """Most bytes held since ``start_peak``: on the card, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")]
    return found[0] if found else None


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that a figure was measured on."""
    try:
        info = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        info = []
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        # Above a few tenths somebody else was using the machine.
        "load": os.getloadavg()[0],
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def matmul_peak(device: torch.device, repeats: int = 5) -> float:
    """FLOP/s of the fastest of a few float32 matrix products, at the precision torch is set to."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = torch.rand(2, size, size, device=device)
    out = torch.empty_like(left)
    return 2 * size**3 / _fastest(lambda: torch.mm(left, right, out=out), device, repeats)


def copy_bandwidth(device: torch.device, repeats: int = 5) -> float:
    """Bytes a second that the fastest of a few copies reads and writes."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device, repeats)


def disk_bandwidth(folder: Path, n_bytes: int = _DISK_BYTES) -> float:
    """Bytes a second written to a new file in ``folder`` and synced; the file is removed."""
    path = folder / "bandwidth"
    content = os.urandom(1 << 22)
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(n_bytes // len(content)):
            file.write(content)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return n_bytes // len(content) * len(content) / seconds


def evict(path: Path) -> None:
    """Drop a file's pages from memory, so that the next read comes from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _fastest(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
