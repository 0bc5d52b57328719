"""Words of the published tasks, dealt out to the splits."""

# Word lists read best as running text.
from __future__ import annotations

# In this order every third word goes to a split.
_SPLITS = ("train", "validation", "test")


def dealt(words: tuple[str, ...], split: str) -> tuple[str, ...]:
    """The words of one split; no other split has any of them."""
    return words[_SPLITS.index(split) :: len(_SPLITS)]
