"""Directives of the reference: ``public-names``, a table of what ``import mechlab as ml`` offers, and
``modules``, a section for each module that is named, made of its docstrings.

A public name that no page documents is a link that goes nowhere, which the build refuses.
"""

from __future__ import annotations

import inspect
from typing import ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import mechlab


class PublicNames(SphinxDirective):
    """Name, home and first line of each, in the order of the alphabet."""

    def run(self) -> list[nodes.Node]:
        rows = ["| name | what it is |", "|---|---|"]
        for name in sorted(mechlab.__all__, key=str.lower):
            thing = getattr(mechlab, name)
            if inspect.ismodule(thing):  # the room that can be called
                from mechlab.activations.capture import activations as thing
            first = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()).replace("|", r"\|")
            rows.append(f"| {{py:obj}}`ml.{name} <{thing.__module__}.{thing.__qualname__}>` | {first} |")
        return self.parse_text_to_nodes("\n".join(rows))


class Modules(SphinxDirective):
    """A section for each module named in the content, a line each."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        sections = [
            f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"
            for name in filter(None, map(str.strip, self.content))
        ]
        return self.parse_text_to_nodes("\n".join(sections), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("public-names", PublicNames)
    app.add_directive("modules", Modules)
    return {"parallel_read_safe": True}
