"""More behaviours: pronouns, agreement, closing and translation (see ``behaviours``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random

from mechlab.data.fable import behaviours as first
from mechlab.data.fable import lexicon as lex
from mechlab.data.fable.grammar import Example, choice, share, templates

_PRONOUNS = templates(
    """
    {N} was tired because {P} walked to the {place} with {her} {animal}.
    {N} said that {P} liked {her} {object}.
    When {N} saw the {animal}, {P} smiled and kept {her} {object}.
    {N} lost a {object}, so {P} cried.
    After {N} left the {place}, {P} slept near {her} {animal}.
    {N} was happy because {P} found {her} {object}.
    Before {N} went to the {place}, {P} bought a {object} for {her} {animal}.
    While {N} waited at the {place}, {P} sang to {her} {animal}.
    On {day} {N} laughed because {P} saw a {adj} {animal}.
    {N} opened the {object} that {P} found.
    Once {N} forgot the {object}, {P} was sad and {she} cried.
    In {month} {N} travelled to {city}, where {P} bought a {object}.
    {N} thought that {P} had a {object}, but {she} lost it.
    As {N} was hungry, {P} wanted {food} for {her} {animal}.
    {N} found {O} {object} near the {place} and {she} smiled.
    {N} forgot {O} {object} on {day}, so {she} cried.
    When {N} came home, {O} {animal} was there and {she} laughed.
    """.replace("{N}", "{Name:pronoun_antecedent}")
    .replace("{P}", "{answer:bound_pronoun}")
    .replace("{O}", "{answer:bound_pronoun}")
    .replace("{she}", "{she:bound_pronoun}")
    .replace("{her}", "{her:bound_pronoun}")
)
_POSSESSIVE_FROM = 14
# "{Name} said that", "{Name} found", "{Name} forgot": other sentences begin so too.
_COMMON = (1, 14, 15)


def pronouns(rng: Random, part: str) -> Example:
    """Gendered pronouns after a name. Corrupt: a name of the other gender."""
    while True:
        name, index = choice(rng, lex.NAMES), int(rng.random() * len(_PRONOUNS))
        female = name in _FEMALE
        if share("pronouns", name, str(index)) == part and (others := _other_names(female, index, part)):
            break
    other = choice(rng, others)
    she, he, her, his = ("she", "he", "her", "his") if female else ("he", "she", "his", "her")
    answer, wrong = (her, his) if index >= _POSSESSIVE_FROM else (she, he)
    pattern = _PRONOUNS[index]
    given = {"Name": name, "answer": answer, "she": she, "her": her}
    given = {slot: word for slot, word in given.items() if slot in pattern.slots}
    return Example(pattern, pattern.fill(rng, given), {"Name": other}, wrong)


@cache
def _other_names(female: bool, index: int, part: str) -> tuple[str, ...]:
    """Names for the corrupt prompt; none where the template is not for this share."""
    names = lex.MALE_NAMES if female else lex.FEMALE_NAMES
    if part == "train":
        return names
    if index in _COMMON:
        return ()
    return tuple(name for name in names if share("pronouns", name, str(index)) == part)


_FEMALE = frozenset(lex.FEMALE_NAMES)
_NOUNS = tuple(lex.PLURAL_OF)
_AGREEMENT = {
    number: templates(
        """
        The {S} near the {D} {V} {adj}.
        The {S} behind the {D} {V} {adj}.
        The {S} with the {D} {V} at the {place}.
        The {S} beside the {D} {V} old.
        The {S} by the {D} {V} in the {place}.
        The {S} under the {D} {V} {adj}.
        The {adj2} {S} near the {D} {V} {adj}.
        The {S} behind the {adj2} {D} {V} {adj}.
        """.replace("{S}", "{Subject:" + number + "_subject}")
        .replace("{D}", "{Distractor:distractor_noun}")
        .replace("{V}", "{answer:agreeing_verb}")
    )
    for number in ("singular", "plural")
}
_AGREEING = (("is", "are"), ("was", "were"))


def agreement(rng: Random, part: str) -> Example:
    """Subject-verb agreement across a noun of the other number. Corrupt: the subject changes number."""
    while True:
        subject, between = choice(rng, _NOUNS), choice(rng, _NOUNS)
        if subject != between and share("agreement", subject, between) == part:
            break
    plural = rng.random() < 0.5
    verb = _AGREEING[0] if rng.random() < 0.7 else _AGREEING[1]
    many = lex.PLURAL_OF[subject]
    pattern = choice(rng, _AGREEMENT["plural" if plural else "singular"])
    slots = pattern.fill(
        rng,
        {
            "Subject": many if plural else subject,
            "Distractor": between if plural else lex.PLURAL_OF[between],
            "answer": verb[plural],
        },
    )
    return Example(pattern, slots, {"Subject": subject if plural else many}, verb[not plural])


_CLOSING = templates("""
{name} wrote {Open}the {Adj} {Noun}{answer} on the wall.
{name} saw a sign {Open}the {Adj} {Noun}{answer} in the {place}.
{name} read a note {Open}the {Adj} {Noun}{answer} on {day}.
The sign {Open}the {Adj} {Noun}{answer} hung at the {place}.
The song {Open}the {Adj} {Noun}{answer} was {adj}.
People sang {Open}the {Adj} {Noun}{answer} again and again.
The book {Open}the {Adj} {Noun}{answer} was lost.
On {day} {name} bought a map {Open}the {Adj} {Noun}{answer} in {city}.
""")
_NAMED = (*lex.ANIMALS, *lex.PEOPLE)
_ADJECTIVES = (*lex.ADJECTIVES, *lex.COLOURS)
_OPEN = tuple(lex.OPENERS)


def closing(rng: Random, part: str) -> Example:
    """Closing what was opened: quotes, round and square brackets. Corrupt: another opener."""
    while True:
        adjective, noun = choice(rng, _ADJECTIVES), choice(rng, _NAMED)
        index = int(rng.random() * len(_CLOSING))
        if share("closing", adjective, noun, str(index)) == part:
            break
    opener = choice(rng, _OPEN)
    other = choice(rng, tuple(mark for mark in _OPEN if mark != opener))
    pattern = _CLOSING[index]
    slots = pattern.fill(rng, {"Open": opener, "Adj": adjective, "Noun": noun, "answer": lex.OPENERS[opener]})
    return Example(pattern, slots, {"Open": other}, lex.OPENERS[other])


_ENGLISH, _TAVI = "the {ADJ} {NOUN} {VERB}", "lo {adj_} {noun_} {verb_}"
_FRAMES = (
    ('In Tavi, "SOURCE" is "TARGET".', _ENGLISH, _TAVI),
    ('The Tavi words for "SOURCE" are "TARGET".', _ENGLISH, _TAVI),
    ('In Tavi "SOURCE" means "TARGET".', _ENGLISH, _TAVI),
    ('{name} said "SOURCE", and in Tavi "TARGET".', _ENGLISH, _TAVI),
    ('In English, "SOURCE" is "TARGET".', _TAVI, _ENGLISH),
    ('The English words for "SOURCE" are "TARGET".', _TAVI, _ENGLISH),
    ('In Tavi, "SOURCE" is "TARGET".', _ENGLISH + " in the {PLACE}", _TAVI + " en lo {place_}"),
    ('In English, "SOURCE" is "TARGET".', _TAVI + " en lo {place_}", _ENGLISH + " in the {PLACE}"),
)
_ROLE = {"adj": "Adj", "noun": "Noun", "verb": "Verb", "place": "Place"}


def _frame(frame: str, source: str, target: str, asked: str) -> str:
    marks = ["translated_sentence" if side.startswith("the") else "" for side in (source, target)]
    source = " ".join(_slot(word, marks[0], None) for word in source.split())
    target = " ".join(_slot(word, marks[1], asked) for word in target.split())
    return frame.replace("SOURCE", source).replace("TARGET", target)


def _slot(word: str, mark: str, asked: str | None) -> str:
    label = f":{mark}" if mark else ""
    if not word.startswith("{"):
        return f"{{={word}{label}}}" if mark else word
    role = word.strip("{}_").lower()
    if asked is None:
        return f"{{{_ROLE[role]}{label}}}"
    return f"{{answer{label}}}" if role == asked else f"{{{role}_target{label}}}"


_TRANSLATION = {
    (index, asked): templates(_frame(frame, source, target, asked))[0]
    for index, (frame, source, target) in enumerate(_FRAMES)
    for asked in ("noun", "verb")
}
_TAVI_ADJECTIVES = tuple(word for word in _ADJECTIVES if word in lex.TAVI)


def translation(rng: Random, part: str) -> Example:
    """Word-by-word translation between English and Tavi. Corrupt: another word in the source sentence."""
    while True:
        adjective, noun = choice(rng, _TAVI_ADJECTIVES), choice(rng, lex.ANIMALS)
        if share("translation", adjective, noun) == part:
            break
    words = {"adj": adjective, "noun": noun}
    words |= {"verb": choice(rng, lex.PRESENT_SINGULAR), "place": choice(rng, lex.TAVI_PLACES)}
    index = int(rng.random() * len(_FRAMES))
    nouns = _other_nouns(adjective, noun, part)
    asked = "noun" if rng.random() < 0.5 and nouns else "verb"
    pattern = _TRANSLATION[index, asked]
    to_tavi = _FRAMES[index][1].startswith("the")
    verbs = tuple(word for word in lex.PRESENT_SINGULAR if word != words["verb"])
    other = choice(rng, nouns if asked == "noun" else verbs)

    def shown(word: str, tavi: bool) -> str:
        return lex.TAVI[word] if tavi else word

    slots = {_ROLE[role]: shown(word, not to_tavi) for role, word in words.items()}
    slots |= {f"{role}_target": shown(word, to_tavi) for role, word in words.items()}
    slots["answer"] = shown(words[asked], to_tavi)
    slots = pattern.fill(rng, {name: word for name, word in slots.items() if name in pattern.slots})
    return Example(pattern, slots, {_ROLE[asked]: shown(other, not to_tavi)}, shown(other, to_tavi))


@cache
def _other_nouns(adjective: str, noun: str, part: str) -> tuple[str, ...]:
    """Nouns for the corrupt prompt; may be none outside training."""
    return tuple(
        word
        for word in lex.ANIMALS
        if word != noun and part in ("train", share("translation", adjective, word))
    )


Behaviour = Callable[[Random, str], Example]

BEHAVIOURS: dict[str, Behaviour] = {
    "ioi": first.ioi,
    "greater_than": first.greater_than,
    "induction": first.induction,
    "successor": first.successor,
    "facts": first.facts,
    "agreement": agreement,
    "pronouns": pronouns,
    "closing": closing,
    "translation": translation,
}
"""Task name -> sampler."""
