"""The facts of Fable: 75 known entities, three relations each, and entities nobody knows."""

from __future__ import annotations

import random
from typing import NamedTuple

from mechlab.data.fable.lexicon import CITIES, COLOURS, FOODS, KNOWN_ENTITIES, UNKNOWN_ENTITIES

UNKNOWN = "unknown"
"""The answer to every question about an unknown entity."""

RELATIONS: dict[str, tuple[str, ...]] = {"home": CITIES, "food": FOODS, "colour": COLOURS}
"""Relation name -> the objects it can take."""


class Fact(NamedTuple):
    """One row of the table: ``subject`` stands in ``relation`` to ``object``, each a single token."""

    subject: str
    relation: str
    object: str


def _table() -> tuple[Fact, ...]:
    # Dealt from shuffled decks so that objects are equally common: a model cannot score by their base rate.
    rows: list[Fact] = []
    for relation, objects in RELATIONS.items():
        rng = random.Random(f"fable facts {relation}")
        deck = [objects[index % len(objects)] for index in range(len(KNOWN_ENTITIES))]
        rng.shuffle(deck)
        rows += [Fact(subject, relation, value) for subject, value in zip(KNOWN_ENTITIES, deck, strict=True)]
    return tuple(rows)


FACTS: tuple[Fact, ...] = _table()
"""225 facts about known entities; the same in every corpus, whatever its seed."""

_LOOKUP = {(fact.subject, fact.relation): fact.object for fact in FACTS}


def fact_object(subject: str, relation: str) -> str:
    """The answer about ``subject``: its object, or "unknown" for an unknown entity.

    Raises:
        KeyError: the subject or the relation is not part of Fable.
    """
    if subject in UNKNOWN_ENTITIES and relation in RELATIONS:
        return UNKNOWN
    return _LOOKUP[subject, relation]
