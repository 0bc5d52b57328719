"""The directive ``commands``: every command with its own ``--help``, asked for when pages are built."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mechlab.cli.main import COMMANDS, main

_WIDTH = "96"


@functools.cache
def help_of(command: str) -> str:
    """What ``mechlab COMMAND --help`` prints, without colours, as wide as a page."""
    said, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDTH
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue()).strip()


class Commands(SphinxDirective):
    """A section for each command: its name, and what it says of itself."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        sections: list[nodes.Node] = []
        for command in COMMANDS:
            title = f"mechlab {command}"
            section = nodes.section(ids=[nodes.make_id(title)], names=[title])
            block = nodes.literal_block("", help_of(command), language="text", classes=["help"])
            section += [nodes.title(title, title), block]
            self.state.document.note_explicit_target(section)
            sections.append(section)
        return sections


def _ask_all(app: Sphinx) -> None:
    # Before autodoc, which adds annotations to classes of pydantic that tyro then cannot resolve.
    for command in COMMANDS:
        help_of(command)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", _ask_all)
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": False}
