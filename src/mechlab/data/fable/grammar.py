"""Templates: the one mechanism by which Fable turns a pattern and a random source into labelled tokens.

A template is a line of English with slots. ``{place}`` is filled from the pool of
that name (a trailing digit keeps two slots apart), any other slot is given by the
caller. ``{slot:mark+mark}`` also labels that token with contextual concepts, and
``{=word:mark}`` labels a literal word. A slot whose name begins with a capital is a
named position of the task prompts ("S1", "IO"); the slot ``answer`` is where a task
prompt ends and the model's prediction is read.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, TypeVar

from mechlab.data.fable import lexicon as lex

T = TypeVar("T")

_PIECE = re.compile(r"\{[^}]*\}|\w+|[^\w\s]")
WORD = re.compile(r"\w+|[^\w\s]")
_TIGHT_BEFORE = frozenset(".,!?:;)]")
_TIGHT_AFTER = frozenset("([")

Mark = tuple[int, int, str]
"""Tokens ``start`` to ``stop`` (exclusive) carry the named contextual concept."""

POOLS: dict[str, tuple[str, ...]] = {
    "name": lex.NAMES, "female": lex.FEMALE_NAMES, "male": lex.MALE_NAMES, "place": lex.PLACES,
    "object": lex.OBJECTS, "objects": lex.OBJECTS_PLURAL, "animal": lex.ANIMALS,
    "animals": lex.ANIMALS_PLURAL, "person": lex.PEOPLE, "people": lex.PEOPLE_PLURAL, "event": lex.EVENTS,
    "colour": lex.COLOURS, "adj": (*lex.ADJECTIVES, *lex.COLOURS), "day": lex.DAYS, "month": lex.MONTHS,
    "number": lex.NUMBER_WORDS[1:12], "ordinal": lex.ORDINALS, "food": lex.FOODS, "city": lex.CITIES,
    "give": lex.TRANSFER_VERBS, "good": lex.POSITIVE_ADJECTIVES, "bad": lex.NEGATIVE_ADJECTIVES,
    "likes": lex.POSITIVE_VERBS, "hates": lex.NEGATIVE_VERBS, "does": lex.PRESENT_SINGULAR,
    "do": lex.PRESENT_BASE, "entity": lex.ENTITIES, "say": lex.SPEECH_VERBS, "reviewed": lex.REVIEWED,
    "part": lex.REVIEW_PARTS, "tavi_place": lex.TAVI_PLACES,
}  # fmt: skip


class Segment(NamedTuple):
    """A finished stretch of text, a sentence or a few: its tokens and the marks on them."""

    tokens: list[str]
    marks: list[Mark]


@dataclass(frozen=True)
class Template:
    """A compiled template line; see the module's docstring for the syntax."""

    source: str
    pieces: tuple[str, ...]
    slots: dict[str, int]
    """Slot name -> the token position of its first use; every slot holds exactly one token."""
    places: tuple[tuple[str, int], ...] = field(repr=False)
    """Every (slot name, token position)."""
    marks: tuple[Mark, ...]
    auto: tuple[tuple[str, tuple[str, ...]], ...] = field(repr=False)

    def fill(self, rng: Random, given: dict[str, str]) -> dict[str, str]:
        """Every slot's word: those in ``given``, the rest drawn from their pools without repeats."""
        slots = dict(given)
        used = set(given.values())
        for name, pool in self.auto:
            if name not in slots:
                word = pool[int(rng.random() * len(pool))]
                while word in used:
                    word = pool[int(rng.random() * len(pool))]
                slots[name] = word
                used.add(word)
        return slots

    def tokens(self, slots: dict[str, str]) -> list[str]:
        """The template's tokens with ``slots`` put in."""
        tokens = list(self.pieces)
        for name, position in self.places:
            tokens[position] = slots[name]
        return tokens


class Example(NamedTuple):
    """One use of a behaviour: a filled template and what a corrupt prompt changes in it.

    ``answer`` is right after the clean prompt, ``wrong`` is the contrast (right after the
    corrupt prompt wherever the behaviour allows it).
    """

    template: Template
    slots: dict[str, str]
    changes: dict[str, str]
    wrong: str

    @property
    def answer(self) -> str:
        """The word of the ``answer`` slot."""
        return self.slots["answer"]

    def segment(self) -> Segment:
        """The whole sentence, with marks, as the corpus shows it."""
        return Segment(self.template.tokens(self.slots), list(self.template.marks))

    def prompt(self, corrupt: bool = False) -> list[str]:
        """The tokens before the answer; ``corrupt`` puts the changes in."""
        slots = {**self.slots, **self.changes} if corrupt else self.slots
        return self.template.tokens(slots)[: self.template.slots["answer"]]


def template(source: str) -> Template:
    """Compile one template line."""
    pieces: list[str] = []
    slots: dict[str, int] = {}
    places: list[tuple[str, int]] = []
    marks: list[Mark] = []
    auto: list[tuple[str, tuple[str, ...]]] = []
    for position, piece in enumerate(_PIECE.findall(source)):
        if not piece.startswith("{"):
            pieces.append(piece)
            continue
        name, _, labels = piece[1:-1].partition(":")
        marks += [(position, position + 1, label) for label in labels.split("+") if label]
        if name.startswith("="):
            pieces.append(name[1:])
            continue
        pieces.append("")
        places.append((name, position))
        if name in slots:
            continue
        slots[name] = position
        pool = POOLS.get(name.rstrip("0123456789"))
        if pool is not None:
            auto.append((name, pool))
    return Template(source, tuple(pieces), slots, tuple(places), tuple(marks), tuple(auto))


def templates(block: str) -> tuple[Template, ...]:
    """Compile a block of template lines, one per line, blank lines ignored."""
    return tuple(template(line.strip()) for line in block.splitlines() if line.strip())


def render(tokens: list[str] | tuple[str, ...]) -> str:
    """Tokens as natural text: no space before closing punctuation or inside quotes and brackets.

    The rendering of a prefix is a prefix of the rendering, and splitting the text into words and
    single punctuation marks gives the tokens back.
    """
    parts: list[str] = []
    tight, quoted = True, False
    for token in tokens:
        closing = token in _TIGHT_BEFORE or (token == '"' and quoted)
        if not tight and not closing:
            parts.append(" ")
        parts.append(token)
        tight = token in _TIGHT_AFTER or (token == '"' and not quoted)
        if token == '"':
            quoted = not quoted
    return "".join(parts)


def split_words(text: str) -> list[str]:
    """Fable's pre-tokenisation: runs of word characters, and punctuation marks one by one."""
    return WORD.findall(text)


def share(*key: str) -> str:
    """Which share of the combinations ``key`` belongs to: "train" (85 %), "validation" (5 %), "test" (10 %).

    Documents of every split are written with training combinations only, so a prompt built on a
    test combination can never be met in training.
    """
    bucket = zlib.crc32("|".join(key).encode()) % 20
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def choice(rng: Random, pool: tuple[T, ...]) -> T:
    """A uniform draw, faster than ``Random.choice``."""
    return pool[int(rng.random() * len(pool))]
