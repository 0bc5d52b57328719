"""Text as language models are shown it: characters whole, marks around tokens, one line a window."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Bool, Int

from mechlab.features.text import Text

OPEN, CLOSE = "<<", ">>"
_MARKLIKE = re.compile("<{2,}|>{2,}")
_BESIDE = re.compile("<{2,}|>{2,}|^[<>]+|[<>]+$")
_UNLIKE = str.maketrans("<>", "‹›")


def plain(text: str, *, beside: bool = False) -> str:
    """Text on one line and without marks of its own: line breaks as ⏎, "<<" and ">>" as ‹‹ and ››.

    Args:
        beside: whether marks stand next to it, to which a single "<" or ">" would seem to belong.
    """
    likely = _BESIDE if beside else _MARKLIKE
    text = likely.sub(lambda found: found.group().translate(_UNLIKE), text)
    return text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\r", "⏎")


def window(text: Text, start: int, stop: int, marks: Bool[np.ndarray, "token"] | None = None) -> str:
    """Rows ``start`` to ``stop`` as one line, << >> around marked tokens (a space before stays outside).

    Tokens that are parts of one character are shown, and marked, together. Every << and >> is a mark,
    even where the text has them, in whatever tokens.
    """
    said = [""]  # by turns between marks and within
    for piece in text.vocabulary.pieces(text.tokens[start:stop]):
        if marks is None or not marks[piece.start : piece.stop].any():
            said[-1] += piece.text
            continue
        bare = piece.text.lstrip(" ") or piece.text
        said[-1] += piece.text[: len(piece.text) - len(bare)]
        said += [bare, ""]
    shown = [plain(each, beside=len(said) > 1) for each in said]
    return "".join(f"{OPEN}{each}{CLOSE}" if place % 2 else each for place, each in enumerate(shown))


def placed(text: Text, start: int) -> str:
    """Where a window begins, for features that depend on the position."""
    return f"from position {int(text.position[start])}"


def parts(tokens: Int[np.ndarray, "token"], text: Text) -> list[tuple[str, int, int]]:
    """Tokens as (text, start, stop), parts of one character joined."""
    return [(plain(piece.text), piece.start, piece.stop) for piece in text.vocabulary.pieces(tokens)]
