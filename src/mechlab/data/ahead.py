"""Work done ahead: an iterable that runs in a thread of its own, a few items before its reader."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, made in a daemon thread.

    Args:
        items: what to run; a generator is closed when the reader stops early.
        depth: the most items, finished or in the making, that the thread is before the reader
            (at least 1).

    The thread starts with the first item asked for. An exception of ``items`` is raised after
    the items made before it. Closing or dropping the generator stops the thread once the item
    in the making is done, and waits for that.
    """
    made: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    permits = threading.Semaphore(depth)
    stopping = threading.Event()
    worker = threading.Thread(
        target=_work, args=(items, made, permits, stopping), name="mechlab-ahead", daemon=True
    )
    worker.start()
    try:
        while not isinstance(item := made.get(), _End):
            permits.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopping.set()
        permits.release()
        # The garbage collector may drop this generator from inside the very thread.
        if worker is not threading.current_thread():
            worker.join()


@dataclass
class _End:
    """The last thing in the queue, with the exception that ended the items, if one did."""

    error: BaseException | None


def _work(
    items: Iterable[T],
    made: queue.SimpleQueue[T | _End],
    permits: threading.Semaphore,
    stopping: threading.Event,
) -> None:
    error = None
    try:
        source = iter(items)
        try:
            while permits.acquire() and not stopping.is_set():
                try:
                    item = next(source)
                except StopIteration:
                    break
                made.put(item)
        finally:
            if isinstance(source, Generator):
                source.close()
    except BaseException as caught:
        error = caught
    made.put(_End(error))
