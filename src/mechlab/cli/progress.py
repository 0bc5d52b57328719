"""Showing long work: a live bar on a terminal, plain lines in a log. All of it on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_LOG_EVERY = 5.0


class Reporter:
    """Receives ``(stage, done, total, figures)`` and shows rate, time to go and the figures.

    A total of 0 announces a stage whose length is not known yet.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._logged = 0.0

    def __enter__(self) -> Reporter:
        if self._live:
            self._bars = Progress(
                TextColumn("{task.description:<18}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            if kind is None:
                self._finish()
            self._bars.stop()

    def _finish(self) -> None:
        """Close the bars of stages that never said how long they are."""
        assert self._bars is not None
        for task in self._bars.tasks:
            if task.total is None:
                self._bars.update(task.id, total=1, completed=1)
                self._bars.stop_task(task.id)

    def say(self, line: str) -> None:
        """One line, above the bars on a terminal."""
        if self._bars is not None:
            self._bars.console.print(f"mechlab: {line}", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"mechlab: {line}", file=self._stream, flush=True)

    def __call__(self, stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        now = time.monotonic()
        start, first = self._started.setdefault(stage, (now, done))
        note = _note(done, total, done - first, now - start, figures)
        if self._bars is not None:
            if stage not in self._tasks:
                self._finish()  # stages follow one another
                self._tasks[stage] = self._bars.add_task(stage, total=total or None, note="")
            self._bars.update(self._tasks[stage], completed=done, total=total or None, note=note)
            if 0 < total <= done:
                self._bars.stop_task(self._tasks[stage])
        elif total == 0 or done >= total or now - self._logged >= _LOG_EVERY:
            self._logged = now
            print(f"mechlab: {stage} {note}".rstrip(), file=self._stream, flush=True)


def _note(done: int, total: int, moved: int, seconds: float, figures: dict[str, float]) -> str:
    if total == 0:
        return ""
    parts = [f"{done:,}/{total:,}"]
    if moved > 0 and seconds > 0:
        rate = moved / seconds
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if done < total:
            parts.append(f"ETA {_clock((total - done) / rate)}")
    parts += [f"{name} {value:.4g}" for name, value in figures.items() if name != "step"]
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
