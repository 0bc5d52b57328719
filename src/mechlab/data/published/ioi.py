"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" → Mary.

Source: Wang et al. (2022), *Interpretability in the wild: a circuit for indirect object identification
in GPT-2 small*. As there, the indirect object comes first (ABBA) or second (BABA) in each template, and
the corrupt prompt is "ABC": IO, S1 and S2 become three other, different names, so that no name repeats.
``ioi_flip`` corrupts one word instead: S2 becomes IO, and the answer changes to S.

Every line below has 15 words and marks before the answer, so most templates have one length in tokens.
"""

# Word lists read best as running text.
# ruff: noqa: SIM905
from __future__ import annotations

from random import Random

from mechlab.data.draft import Draft, cut
from mechlab.data.fable.lexicon import NAMES
from mechlab.data.published.words import dealt

LINES = (
    "When {A} and {B} got to the {place}, {S2} handed a {object} to",
    "While {A} and {B} sat in the {place}, {S2} gave a {object} to",
    "After {A} and {B} met at the {place}, {S2} passed a {object} to",
    "Once {A} and {B} came to the {place}, {S2} sold a {object} to",
    "Today {A} and {B} worked at the {place}. {S2} brought a {object} to",
    "Yesterday {A} and {B} drove to the {place}. {S2} sent a {object} to",
    "Before {A} and {B} left for the {place}, {S2} threw a {object} to",
    "Because {A} and {B} lived near the {place}, {S2} lent a {object} to",
    "Since {A} and {B} walked to the {place}, {S2} showed a {object} to",
    "Later {A} and {B} played in the {place}. {S2} offered a {object} to",
    "Suddenly {A} and {B} ran from the {place}. {S2} left a {object} to",
    "Finally {A} and {B} returned to the {place}. {S2} carried a {object} to",
    "Although {A} and {B} slept at the {place}, {S2} mailed a {object} to",
    "Often {A} and {B} talked in the {place}. {S2} promised a {object} to",
    "Again {A} and {B} waited outside the {place}. {S2} returned a {object} to",
    "Somehow {A} and {B} found the old {place}. {S2} presented a {object} to",
)
PLACES = tuple(
    "garden school station park house hospital church farm beach market library museum village office".split()
)
OBJECTS = tuple(
    "lamp coat key box ball hat map letter bell coin cup picture ticket phone camera watch".split()
)
NAMED = ("IO", "S1", "S2")


def ioi_abc(rng: Random, split: str) -> Draft:
    """Three other names in the corrupt prompt; ``wrong`` is the subject's name."""
    words, group, others = _drawn(rng, split)
    return _draft(words, dict(zip(NAMED, others, strict=True)), group)


def ioi_flip(rng: Random, split: str) -> Draft:
    """The second subject becomes the indirect object in the corrupt prompt."""
    words, group, _ = _drawn(rng, split)
    return _draft(words, {"S2": words["IO"]}, group)


def _drawn(rng: Random, split: str) -> tuple[dict[str, str], int, list[str]]:
    io, subject, *others = rng.sample(dealt(NAMES, split), 5)
    words = {
        "IO": io,
        "S1": subject,
        "S2": subject,
        "place": rng.choice(PLACES),
        "object": rng.choice(OBJECTS),
    }
    return words, rng.randrange(2 * len(LINES)), others


def _draft(words: dict[str, str], changes: dict[str, str], group: int) -> Draft:
    order = ("IO", "S1") if group < len(LINES) else ("S1", "IO")
    line = LINES[group % len(LINES)].replace("{A}", f"{{{order[0]}}}").replace("{B}", f"{{{order[1]}}}")
    clean, places = cut(line, words)
    corrupt, _ = cut(line, {**words, **changes})
    return Draft(
        clean,
        corrupt,
        answer=f" {words['IO']}",
        wrong=f" {words['S1']}",
        places={name: places[name] for name in NAMED},
        group=group,
        single=NAMED,
    )
