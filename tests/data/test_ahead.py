"""Work done ahead: same items, bounded lead, errors in place, and no thread left behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from mechlab.data.ahead import ahead


def wait_until(condition: object, seconds: float = 5.0) -> bool:
    assert callable(condition)
    end = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > end:
            return False
        time.sleep(0.002)
    return True


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    # Threads that other tests left to die may end meanwhile: only new ones count.
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_same_items_in_the_same_order(count: int, depth: int) -> None:
    assert list(ahead(range(count), depth)) == list(range(count))
    assert list(ahead([None] * count, depth)) == [None] * count


@pytest.mark.parametrize("depth", [1, 3])
def test_the_lead_is_used_and_bounded(depth: int) -> None:
    started: list[int] = []

    def slow() -> Iterator[int]:
        for i in range(20):
            started.append(i)
            yield i

    stream = ahead(slow(), depth)
    assert started == []
    for i in range(5):
        assert next(stream) == i
        # The item in the reader's hands and `depth` behind it.
        assert wait_until(lambda i=i: len(started) == i + 1 + depth)
        time.sleep(0.01)
        assert len(started) == i + 1 + depth
    stream.close()


def test_it_runs_beside_its_reader() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for i in range(3):
            threads.add(threading.get_ident())
            yield i

    assert list(ahead(items())) == [0, 1, 2]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), StopIteration()])
def test_an_error_comes_after_the_items_before_it(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    seen: list[int] = []
    # A generator that raises StopIteration raises RuntimeError, here as anywhere.
    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    with pytest.raises(expected):
        for item in ahead(items()):
            seen.append(item)
    assert seen == [1, 2]


def test_an_iterable_that_cannot_start() -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise OSError("no such thing")

    with pytest.raises(OSError, match="no such thing"):
        list(ahead(Broken()))


@pytest.mark.parametrize("how", ["close", "drop", "exception", "cycle"])
def test_stopping_early_ends_the_thread_and_closes_the_source(how: str) -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            i = 0
            while True:
                yield (i := i + 1)
        finally:
            closed.set()

    before = set(threading.enumerate())
    stream = ahead(endless(), 2)
    assert next(stream) == 1
    time.sleep(0.02)  # the thread now waits for its reader
    assert len(set(threading.enumerate()) - before) == 1
    began = time.perf_counter()
    if how == "close":
        stream.close()
    elif how == "drop":
        del stream
    elif how == "cycle":
        cycle = [stream]
        cycle.append(cycle)  # type: ignore[arg-type]
        del cycle, stream
        gc.collect()
    else:
        with pytest.raises(ValueError, match="reader"):
            stream.throw(ValueError("reader"))
    assert closed.is_set()
    assert set(threading.enumerate()) <= before
    assert time.perf_counter() - began < 30  # a hang, not a slow machine


def test_closing_in_the_middle_of_an_item_waits_for_that_item_only() -> None:
    finished: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            if i:
                time.sleep(0.05)
            finished.append(i)
            yield i

    stream = ahead(items(), 5)
    next(stream)
    stream.close()
    assert len(finished) <= 2


def test_one_that_was_never_started_runs_nothing() -> None:
    def items() -> Iterator[int]:
        raise AssertionError("was run")
        yield 1

    stream = ahead(items())
    stream.close()
    assert list(stream) == []


def test_nested() -> None:
    stream = ahead(ahead(range(1000)), 3)
    assert next(stream) == 0
    stream.close()
    assert list(ahead(ahead(range(100)))) == list(range(100))
