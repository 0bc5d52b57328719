"""Docstrings are plain text: this turns them into what Sphinx reads, so that nobody has to know it.

They have paragraphs, lists, ``code``, *titles*, sections such as "Args:", and indented blocks, which are
tables or code and are kept as they stand. All other marks, as in |x| or x_, mean themselves.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_SECTIONS = {"Args:", "Attributes:", "Returns:", "Raises:", "Yields:"}
# Kept: code, emphasis, the mark of an item.
_KEPT = re.compile(
    r"(``.+?``|(?<![\w*])\*[^\s*](?:[^*]*[^\s*])?\*(?![\w*])|^ *[*-] )", re.DOTALL | re.MULTILINE
)
_ITEM = re.compile(r"^ *[*-] ", re.MULTILINE)
_MARKS = re.compile(r"([*|`\\]|(?<=\w)_(?!\w))")


def _plain(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    blocks, section = re.split(r"\n(?:[ ]*\n)+", "\n".join(lines).strip("\n")), False
    for number, block in enumerate(blocks):
        if not block.startswith(" "):
            section = block.split("\n")[0] in _SECTIONS
        if block.startswith("    ") and not section:
            blocks[number] = f"::\n\n{block}"
            continue
        if _ITEM.match(block):  # a list inside a list starts after an empty line
            block = _ITEM.sub(r"\n\g<0>", block).lstrip("\n")
        parts = _KEPT.split(block)
        parts[::2] = [_MARKS.sub(r"\\\1", part) for part in parts[::2]]
        blocks[number] = "".join(parts)
    lines[:] = [*"\n\n".join(blocks).split("\n"), ""]


def _types(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    # What napoleon adds of an attribute's type: a star in a shape is no mark, a module's name no news.
    for number, line in enumerate(lines):
        if line.lstrip().startswith(":type"):
            lines[number] = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", line).replace("*", r"\*")


def _short(app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str, returns: str) -> Any:
    # Where a default cannot be written down Sphinx gives up on the types' names too: "~jaxtyping.Float".
    return (re.sub(r"~(?:\w+\.)+", "", signature), returns) if signature and "~" in signature else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-signature", _short)
    app.connect("autodoc-process-docstring", _plain, priority=100)  # before napoleon reads it
    app.connect("autodoc-process-docstring", _types, priority=900)
    return {"parallel_read_safe": True}
