"""Whether --out can be written, asked before the work; and writing it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mechlab.errors import MechlabError
from mechlab.files import disk_errors, write_atomic


def require_directory(path: Path) -> None:
    """MechlabError unless files can be made in this directory, which may be missing; leaves nothing there."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    with _explained(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        finally:
            for each in missing:
                with contextlib.suppress(OSError):
                    each.rmdir()


def require_file(path: Path, endings: Sequence[str]) -> None:
    """MechlabError unless a file can be made here, and its name ends in one of ``endings``.

    A picture made of dots, or a PDF, also needs a browser that draws it.
    """
    if path.suffix not in endings:
        choice = " or ".join(filter(None, (", ".join(endings[:-1]), endings[-1])))
        raise MechlabError("no known ending of a file", path, f"use {choice}")
    if path.is_dir():
        raise MechlabError("output file is a directory", path, "choose another --out")
    if path.suffix in (".png", ".pdf"):
        from mechlab.dashboards.figures import find_browser

        find_browser()
    require_directory(path.parent)


def write_file(path: Path, text: str) -> None:
    """A file, whole or not at all. MechlabError when there is no room or no leave to write."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        with disk_errors(path):
            yield
    except OSError as error:
        raise MechlabError("cannot write here", path, error.strerror or "choose another --out") from error
