"""Progress: plain lines in a log, a live bar on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from mechlab.cli.progress import Reporter, _clock


def test_log_lines_have_rate_eta_and_figures(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as out, Reporter(out) as report:
        report("train", 0, 0, {})
        report("train", 1, 10, {"loss": 0.5, "step": 1.0})
        report._logged = -1e9
        report("train", 5, 10, {"loss": 0.25})
        report("train", 10, 10, {"loss": 0.125})
    log = (tmp_path / "log").read_text()
    first, *rest = log.splitlines()
    assert first == "mechlab: train"
    assert re.search(r"5/10 .*/s .*ETA \d+:\d\d .*loss 0\.25", rest[-2])
    assert re.search(r"10/10 .*loss 0\.125", rest[-1])
    assert "step" not in log


def test_a_log_is_not_flooded(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as out, Reporter(out) as report:
        for i in range(1000):
            report("harvest", i, 1_000_000, {})
    assert len((tmp_path / "log").read_text().splitlines()) <= 2


def test_a_line_of_its_own(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as out, Reporter(out) as report:
        report.say("no connection to http://[::1]:9/v1")
        assert (tmp_path / "log").read_text() == "mechlab: no connection to http://[::1]:9/v1\n"


def test_clock() -> None:
    assert [_clock(s) for s in (5.0, 65.0, 3700.0)] == ["0:05", "1:05", "1:01:40"]


def test_a_real_terminal_gets_a_bar() -> None:
    code = (
        "from mechlab.cli.progress import Reporter\n"
        "with Reporter() as r:\n"
        "    for i in range(3): r('train', i + 1, 3, {'loss': 0.5})\n"
        "    r.say('trying again at http://[::1]:9/v1')\n"
    )
    master, slave = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", code], stderr=slave, env={**os.environ, "TERM": "xterm"})
    child.wait()
    os.close(slave)
    shown = os.read(master, 65536).decode()
    assert "━" in shown
    assert "3/3" in shown
    assert "mechlab: trying again at http://[::1]:9/v1\r\n" in shown
