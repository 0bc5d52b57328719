"""A prompt pair as text, before any tokenizer has seen it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SLOT = re.compile(r"( ?\{\w+\})")


@dataclass(frozen=True)
class Draft:
    """One clean and one corrupt prompt, cut into as many pieces at the same places.

    Attributes:
        clean, corrupt: the pieces, which joined are the prompts; a piece keeps the space before it.
        answer, wrong: what may follow the clean prompt, as it is written there (" Mary", "32").
        places: name → number of the piece that ends with the named word.
        group: number of the template, from 0, the same in every draw and split; None where it has none.
        single: names in ``places`` whose piece must be one token, in both prompts.
        right_set, wrong_set: where an answer is a set, its members as they are written.
    """

    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    answer: str
    wrong: str
    places: dict[str, int]
    group: int | None
    single: tuple[str, ...] = ()
    right_set: tuple[str, ...] = field(default=(), repr=False)
    wrong_set: tuple[str, ...] = field(default=(), repr=False)


def cut(line: str, words: dict[str, str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """A template line with its ``{slots}`` filled, in pieces; and the piece that holds each slot.

    Every slot is a piece of its own, together with one space before it.
    """
    pieces: list[str] = []
    places: dict[str, int] = {}
    for piece in filter(None, _SLOT.split(line)):
        if _SLOT.fullmatch(piece):
            slot = piece.strip(" {}")
            places[slot] = len(pieces)
            piece = piece.replace(f"{{{slot}}}", words[slot])
        pieces.append(piece)
    return tuple(pieces), places
