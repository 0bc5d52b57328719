"""The documentation is built without a warning and without the network, and every code block on it runs."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from snippets import blocks_of

pytestmark = [pytest.mark.docs, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parent.parent
SNIPPETS = Path(__file__).parent / "snippets.py"
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if any(block.runs for block in blocks_of(page))
]
# Sphinx in a process that cannot connect to anything.
_OFFLINE = """
import socket, sys
def refuse(*_):
    raise OSError("the documentation must build without the network")
socket.socket.connect = socket.socket.connect_ex = refuse
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""


class _Asks(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        wanted = {"script": "src", "img": "src", "iframe": "src", "link": "href"}.get(tag)
        if wanted and given.get("rel") not in ("canonical", "next", "prev", "index", "search"):
            self.addresses.append(given.get(wanted) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="needs the docs extra: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-c", _OFFLINE, "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run(
        [*command, str(ROOT / "docs"), str(out)], capture_output=True, text=True, timeout=1800
    )
    assert built.returncode == 0, built.stderr[-5000:]
    assert built.stderr == ""
    return out


def test_pages_ask_for_nothing_but_files_beside_them(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        asks = _Asks()
        asks.feed(page.read_text(encoding="utf-8"))
        away = [each for each in asks.addresses if re.match(r"(?i)(\w+:)?//", each)]
        assert away == [], page


def test_reference_has_every_public_name_and_command(site: Path) -> None:
    import mechlab
    from mechlab.cli.main import COMMANDS

    reference = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert {name for name in mechlab.__all__ if f">ml.{name}<" not in reference} == set()
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert {name for name in COMMANDS if f"usage: mechlab {name} [-h]" not in commands} == set()


def test_shapes_of_arrays_are_readable(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "api" / "foundations.html").read_text(encoding="utf-8"))
    assert "sums: Float[ndarray, 'unit column']," in page


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that pages are about, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    house = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "demo"
    house.parent.mkdir(exist_ok=True)
    with open(f"{house}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "mechlab", "run", "--out", str(house)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    return house


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_code_block_runs(page: Path, demo: Path, shared: Path, tmp_path: Path) -> None:
    work = tmp_path / "mechlab"
    (work / "runs").mkdir(parents=True)
    (work / "runs" / "demo").symlink_to(demo)
    (tmp_path / "shared").symlink_to(shared)
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(SNIPPETS), str(page)],
        cwd=work,
        env={**os.environ, "PATH": paths, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3500,
    )
    assert done.returncode == 0, done.stdout[-5000:]
