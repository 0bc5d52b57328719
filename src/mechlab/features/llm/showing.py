"""Text as language models are shown it: characters whole, marks around tokens, one line a window."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from mechlab.features.text import Text

OPEN, CLOSE = "<<", ">>"


def plain(text: str) -> str:
    """Text on one line and without marks of its own: line breaks as ⏎, "<<" and ">>" as « and »."""
    text = text.replace(OPEN, "«").replace(CLOSE, "»")
    return text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\r", "⏎")


def window(text: Text, start: int, stop: int, marks: Bool[np.ndarray, "token"] | None = None) -> str:
    """Rows ``start`` to ``stop`` as one line, << >> around marked tokens (a space before stays outside).

    Tokens that are parts of one character are shown, and marked, together.
    """
    said = []
    for piece in text.vocabulary.pieces(text.tokens[start:stop]):
        shown = plain(piece.text)
        if marks is not None and marks[piece.start : piece.stop].any():
            bare = shown.lstrip(" ") or shown
            shown = f"{shown[: len(shown) - len(bare)]}{OPEN}{bare}{CLOSE}"
        said.append(shown)
    return "".join(said)


def placed(text: Text, start: int) -> str:
    """Where a window begins, for features that depend on the position."""
    return f"from position {int(text.position[start])}"


def parts(tokens: Int[np.ndarray, "token"], text: Text) -> list[tuple[str, int, int]]:
    """Tokens as (text, start, stop), parts of one character joined."""
    return [(plain(piece.text), piece.start, piece.stop) for piece in text.vocabulary.pieces(tokens)]
