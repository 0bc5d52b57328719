"""INTERACT without a language model: a scripted stand-in for teacher, students and quiz writer.

The stand-in understands documents that are lists of facts, "The COLOUR of NAME is VALUE.": the teacher
tells two facts an answer, a weak teacher one, a student picks the option that it was told and guesses
otherwise. So the curves show that the machinery works, and nothing about any real model.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np

from mechlab.features.investigate.documents import DIFFICULTIES, OPTIONS, Document
from mechlab.features.investigate.interact_prompts import LEARN, LESSON, SIT, TEACH

NAMES = ("scripted", "scripted-weak")
"""Models that the scripted server plays: the teacher and student, and the weak teacher."""
NOTICE = (
    "A scripted model stands in for teacher, student and quiz writer: "
    "these figures say nothing about any real model."
)
_FACT = re.compile(r"The (\w+) of (\w+) is (\w+)\.")
_THINGS = ["Avora", "Bersin", "Coltam", "Dunwick", "Elmore", "Farrow", "Gilden", "Hestor"]
_WHAT = (
    *("colour", "age", "river", "trade", "song", "market"),
    *("bridge", "harvest", "founder", "tower", "feast", "emblem"),
)
_VALUES = (
    *("amber", "basalt", "cedar", "dusk", "elder", "flint"),
    *("grove", "harbour", "iris", "juniper", "kestrel", "larch"),
)


def example_documents(count: int = 4, *, seed: int = 0) -> list[Document]:
    """Invented towns, twelve facts each."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        name = _THINGS[number % len(_THINGS)]
        values = generator.permutation(np.array(_VALUES)).tolist()
        facts = [f"The {what} of {name} is {value}." for what, value in zip(_WHAT, values, strict=True)]
        found.append(Document(name, " ".join(facts), "guide to a town"))
    return found


def scripted(body: dict[str, Any]) -> str:
    """What the stand-in says to a request of the OpenAI protocol."""
    system, user = (str(message["content"]) for message in body["messages"])
    if system == LEARN:
        return f"What else should I know, beyond the {len(_FACT.findall(user))} facts I have?"
    if system == TEACH:
        document, _, talk = user.partition("\n\nStudent:")
        told = set(_FACT.findall(talk))
        rest = [fact for fact in _FACT.findall(document) if fact not in told]
        rest = rest if not told else _mixed(rest, user)
        count = 1 if body["model"] == NAMES[1] else 2
        return " ".join(map(_sentence, rest[:count])) or "You know everything."
    if system == LESSON:
        return " ".join(map(_sentence, _FACT.findall(user)[:4]))
    return _answers(user) if system == SIT else _quiz(user)


def _sentence(fact: tuple[str, str, str]) -> str:
    return "The {} of {} is {}.".format(*fact)


def _mixed(facts: list[tuple[str, str, str]], key: str) -> list[tuple[str, str, str]]:
    return sorted(facts, key=lambda fact: hashlib.sha256(f"{fact}{key}".encode()).digest())


def _quiz(user: str) -> str:
    facts = _FACT.findall(user)
    asked = user.partition("Do not ask again:")[2]
    facts.sort(key=lambda fact: f"the {fact[0]} of {fact[1]}?" in asked)
    questions = []
    for number, (what, name, value) in enumerate(facts[: 3 * len(DIFFICULTIES)]):
        others = [other for _, _, other in facts if other != value]
        wrong = [others[(number + step) % len(others)] for step in range(OPTIONS - 1)]
        questions.append(
            {
                "difficulty": DIFFICULTIES[number % len(DIFFICULTIES)],
                "question": f"What is the {what} of {name}?",
                "options": [value, *wrong],
                "answer": 0,
            }
        )
    return json.dumps({"questions": questions})


def _answers(user: str) -> str:
    given, _, paper = user.partition("QUIZ\n")
    told = {(what, name): value for what, name, value in _FACT.findall(given)}
    answers = []
    for each in json.loads(paper):
        what, name = re.findall(r"the (\w+) of (\w+)\?", each["question"])[0]
        value = told.get((what, name))
        # A guess, the same one every time, and rarely the first option.
        guess = hashlib.sha256(each["question"].encode()).digest()[0] % (OPTIONS - 1) + 1
        answers.append(each["options"].index(value) if value in each["options"] else guess)
    return json.dumps({"answers": answers})
