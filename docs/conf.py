"""Sphinx settings of these pages. ``make docs`` builds them; no step asks the network for anything."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "mechlab"
author = "The mechlab authors"
version = release = installed("mechlab")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_help",
    "mathml",
    "plain_docstrings",
    "reference",
]
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = "mechlab"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# Notebooks are shown with the outputs that they were committed with; a picture goes before a script.
nb_execution_mode = "off"
nb_mime_priority_overrides = [
    ("html", "image/svg+xml", 1),
    ("html", "image/png", 2),
    ("html", "text/html", 10),
]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_rtype = False
# Types of other libraries are named, not linked: that would ask the network.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*"), ("py:data", ".*"), ("py:exc", ".*")]
# Two classes of one name in different rooms; figures that notebooks keep as a picture too.
suppress_warnings = ["ref.python", "mystnb.unknown_mime_type"]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
