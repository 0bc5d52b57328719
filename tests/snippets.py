"""The code blocks of a page, run in order as a reader would.

- Blocks of Python share one namespace.
- In a block without a language, lines after ``$`` are commands; one whose output begins with
  "mechlab: " has to exit with 2 and say that.
- ``<!-- file: NAME -->`` before a block: the block is that file.
- ``<!-- not run: REASON -->`` before a block: it is left out.

``python snippets.py PAGE`` runs those of a page in the current directory.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_COMMAND = re.compile(r"^\$ ((?:[^\n]*\\\n)*[^\n]*)\n?((?:(?!\$ )[^\n]*\n?)*)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block: its language ("" for none), its text, the line it begins on, the note before it."""

    language: str
    text: str
    line: int
    note: str = ""

    @property
    def runs(self) -> bool:
        return not self.note.startswith("not run: ") and (
            self.language == "python" or (self.language == "" and bool(_COMMAND.search(self.text)))
        )


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page of Markdown, in order."""
    content = page.read_text(encoding="utf-8")
    return [
        Block(
            found["language"].strip(),
            found["text"],
            content.count("\n", 0, found.start("text")) + 1,
            found["note"] or "",
        )
        for found in _BLOCK.finditer(content)
    ]


def run_page(page: Path) -> None:
    """Run every block that runs; whatever goes wrong is raised, with the page and the line."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.note.startswith("file: "):
            Path(block.note.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
        elif block.runs and block.language == "python":
            # Lines are counted from the page's first.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
        elif block.runs:
            for command, output in _COMMAND.findall(block.text):
                _run(f"{page.name}:{block.line}", command, output)


def _run(where: str, command: str, output: str) -> None:
    print(f"{where}: {command}", flush=True)
    wrong = output.startswith("mechlab: ")
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, timeout=900)
    if done.returncode != (2 if wrong else 0):
        raise AssertionError(f"{where}: exit {done.returncode}: {command}\n{done.stderr}")
    if wrong and done.stderr.strip() != output.strip():
        raise AssertionError(f"{where}: said {done.stderr.strip()!r}")


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
