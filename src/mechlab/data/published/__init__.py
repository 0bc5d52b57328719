"""The tasks of published circuits, for models with sub-word tokenizers.

The designs are the papers' (what is asked, what is corrupted, where answers are read); templates and
word lists are written here. Words are dealt out to the three splits, so that a held-out prompt holds
names that no selection prompt holds. Every word that a circuit is said to read must be one token.

``canonical`` holds the circuits that the papers found.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from mechlab.data.draft import Draft
from mechlab.data.published.docstring import docstring
from mechlab.data.published.greater_than import greater_than
from mechlab.data.published.ioi import ioi_abc, ioi_flip

PUBLISHED: dict[str, Callable[[Random, str], Draft]] = {
    "published_ioi": ioi_abc,
    "published_ioi_flip": ioi_flip,
    "published_greater_than": greater_than,
    "published_docstring": docstring,
}
