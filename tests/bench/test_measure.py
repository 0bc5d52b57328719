"""Interleaved rounds, peaks and the machine's figures."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest
import torch

from mechlab.bench.measure import (
    Rounds,
    Variant,
    copy_bandwidth,
    disk_bandwidth,
    environment,
    evict,
    interleaved,
    matmul_peak,
    read_peak,
    start_peak,
)

CPU = torch.device("cpu")


def test_every_variant_runs_once_a_round_in_changing_order() -> None:
    calls: list[str] = []
    prepared: list[str] = []

    def variant(name: str) -> Variant:
        def step() -> float:
            assert prepared[-1] == name
            calls.append(name)
            return 1.0

        return Variant(step, lambda: prepared.append(name))

    seen: list[tuple[str, int, int]] = []
    rounds = interleaved(
        {name: variant(name) for name in "abc"}, repeats=5, device=CPU, stage="s",
        progress=lambda stage, done, total, _: seen.append((stage, done, total)),
    )  # fmt: skip
    orders = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(orders) == 6  # one more than counts
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert {order[0] for order in orders} == {"a", "b", "c"}
    assert len(set(orders)) > 3
    assert {len(rates) for rates in rounds.rates.values()} == {5}
    assert seen[-1] == ("s", 5, 5)


def test_rate_is_amount_over_time_and_the_first_round_does_not_count() -> None:
    calls = []

    def step() -> float:
        calls.append(0)
        time.sleep(0.2 if len(calls) == 1 else 0.01)
        return 100.0

    rounds = interleaved({"only": Variant(step)}, repeats=3, device=CPU)
    assert min(rounds.rates["only"]) > 100 / 0.2  # the slow call is not there
    assert max(rounds.rates["only"]) <= 100 / 0.01


def test_ratios_are_taken_within_rounds() -> None:
    # The machine halves its speed in the second round: ratios do not notice.
    rounds = Rounds({"a": [10.0, 5.0, 12.0], "b": [20.0, 10.0, 20.0]}, {"a": None, "b": None})
    assert rounds.ratios("a", "b") == [0.5, 0.5, 0.6]
    assert rounds.ratio("a", "b") == 0.5
    assert rounds.rate("a") == 10.0


def test_peak_sees_memory_that_was_given_back() -> None:
    size = 1 << 28
    gc.collect()
    held = start_peak(CPU)
    if held is None:
        pytest.skip("peak memory cannot be reset here")
    _ = torch.ones(size // 4).sum()
    peak = read_peak(CPU)
    assert peak is not None
    assert 0.9 * size < peak - held < 1.5 * size
    again = start_peak(CPU)
    later = read_peak(CPU)
    assert again is not None
    assert later is not None
    assert later - again < 0.2 * size  # the reset forgot it


def test_machine_figures(tmp_path: Path) -> None:
    about = environment(CPU)
    assert about["threads"] == torch.get_num_threads()
    assert about["torch"] == torch.__version__
    assert about["gpu"] is None
    assert matmul_peak(CPU, repeats=1) > 1e8
    assert copy_bandwidth(CPU, repeats=1) > 1e7
    assert disk_bandwidth(tmp_path, n_bytes=1 << 23) > 0
    assert list(tmp_path.iterdir()) == []


def test_an_evicted_file_reads_the_same(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "file").write_bytes(content)
    evict(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
