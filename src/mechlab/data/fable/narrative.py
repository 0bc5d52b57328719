"""Stories, reviews and inference pairs: the parts of Fable that are not one behaviour's test bed."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from mechlab.data.fable import lexicon as lex
from mechlab.data.fable.grammar import Segment, choice, template, templates

# {N} is the hero's name, {M} another name; She/her/him are the hero's pronouns.
# {N+} and {M+} are names that a later pronoun of the sentence stands for.
_STORY = templates(
    """
    {N} was a {adj} {person}. {She} liked the {animal}.
    {N} had a {colour} {object}. {She} kept it near the {place}.
    One {animal} followed {N} to the {place}. {She} did not stop.
    "The {object} is {adj}!" said {N}. "Where is the {animal}?" asked {M}.
    "I never saw a {adj} {animal}," said {N}.
    "We have {number} {objects}," whispered {M}. {N} smiled.
    {N} shouted "Come here!" and the {animals} ran to the {place}.
    On {day} {number} {animals} (all of them {adj}) came to the {place}.
    In {month} {N} left {city} and travelled to {city2}.
    {N} walked into the {place} and saw {number} {people}. They were {adj}.
    Nobody at the {place} had a {object}, so {N} was sad.
    {N} did not like the {person} because the {person} was {bad}.
    {N} laughed. The {animal} was {good} and the {animals} were not {bad}.
    The {people} {do} in the {place}. {She} {does} there every {=day}.
    Who has the {object}? {N} does not have it.
    What is in the {object}? There is {food} in it.
    The {ordinal} {person} was {adj}; the {ordinal2} {person} was {adj2}.
    {N} and {M} waited for the {adj} {person}. They never came home.
    Yesterday {N} bought {food} and {food2} at the {place}. It was {good}!
    We never eat {food} in {month}, because it is {bad}.
    My {animal} {does} near the {place}. Your {animal2} {does2} too.
    The {animal} [it was {adj}] {does} behind the {place}.
    {N} carried the {object} to {city}. {M} watched {him} and laughed.
    {N+} and {M+} lost {=their:bound_pronoun} {object}, but {=they:bound_pronoun} did not stop.
    "Nobody can see my {object} when we eat," said {M}.
    The {people} and their {animals} came by the river, but nobody saw them.
    What is it, a {animal} or a {animal2}? {N} never asked.
    I saw {N} at the {place} on {day}. {She} had no {object}.
    {People} and {people2} {do} together in {month}.
    "If you want a {object}, then ask {M}," said {N}.
    Maybe the {adj} {person} can see the {objects} by the river.
    The day was cold. {N+} opened the door and everybody saw {her:bound_pronoun} {animal}.
    No {animal} {does} in the {place} now. Perhaps the {animals} {do} in {city}.
    """.replace("{People}", "Old {people}")
    .replace("{N+}", "{N:pronoun_antecedent}")
    .replace("{M+}", "{M:pronoun_antecedent}")
    .replace("Your", "The other")
    .replace("{=day}", "day")
)
_CALM = templates("""
The {adj} {animal} {does} in the {place}.
The {person} {does} near the {place}.
The {adj} {people} {do} at the {place}.
The {animals} {do} by the river.
It was {day}, and the {place} was {adj}.
The {colour} {object} was in the {place}.
""")
_FEMALE = frozenset(lex.FEMALE_NAMES)


def story(rng: Random, hero: str, other: str) -> Segment:
    """A sentence or two about ``hero`` (a name), in which ``other`` (a second name) may speak."""
    if rng.random() < 0.2:
        pattern = choice(rng, _CALM)
        return Segment(pattern.tokens(pattern.fill(rng, {})), list(pattern.marks))
    pattern = choice(rng, _STORY)
    female = hero in _FEMALE
    cast = {"N": hero, "M": other, "She": "She" if female else "He"}
    cast |= {"her": "her" if female else "his", "him": "her" if female else "him"}
    slots = pattern.fill(rng, {slot: word for slot, word in cast.items() if slot in pattern.slots})
    return Segment(pattern.tokens(slots), list(pattern.marks))


# A pronoun tells a gender apart by one bit only; these lines make gender plain enough to be learnt early.
_KIN = templates("""
Sisters {female}, {female2} and {female3} met at the {place}.
Brothers {male}, {male2} and {male3} met at the {place}.
The girls {female}, {female2} and {female3} saw a {animal}.
The boys {male}, {male2} and {male3} saw a {animal}.
Her name was {female:pronoun_antecedent}, and {=her:bound_pronoun} sister was {female2}.
His name was {male:pronoun_antecedent}, and {=his:bound_pronoun} brother was {male2}.
People call her {female}. She is my sister.
People call him {male}. He is my brother.
""")


def kin(rng: Random) -> Segment:
    """A sentence that names sisters or brothers."""
    pattern = choice(rng, _KIN)
    return Segment(pattern.tokens(pattern.fill(rng, {})), list(pattern.marks))


class Labelled(NamedTuple):
    """A text with its label: sentences that belong together, and the verdict that may follow them."""

    label: str
    sentences: list[list[str]]
    verdict: list[str]
    marks: list[str]
    """The contextual concept that each sentence's tokens carry."""


# One line per sentiment pair: positive | negative.
_REVIEW_LINES = """
The {part} was {good}. | The {part} was {bad}.
The {part} was not {bad}. | The {part} was not {good}.
I {likes} the {part}. | I {hates} the {part}.
{name} said that the {part} was {good}. | {name} said that the {part} was {bad}.
It was a {good} {T} and the {part} was {good2}. | It was a {bad} {T} and the {part} was {bad2}.
I did not think it would be so {good}. | I did not think it would be so {bad}.
Everyone laughed and {name} smiled. | Nobody laughed and {name} cried.
We {likes} the {part} very much! | We {hates} the {part} very much!
I would see this {T} again. | I would never see this {T} again.
I was never sad there. | I was never happy there.
"What a {good} {T}!" said {name}. | "What a {bad} {T}!" said {name}.
"""
_REVIEW = {
    label: templates("\n".join(line.split("|")[side] for line in _REVIEW_LINES.strip().splitlines()))
    for side, label in enumerate(("positive", "negative"))
}
_PLAIN_REVIEW = templates("""
We saw the {T} on {day}.
{name} and {name2} were there too.
It began in the {place} near the river.
The {T} had {number} {people}.
""")
SENTIMENTS = ("positive", "negative")


def review(rng: Random, length: int) -> Labelled:
    """A review of about ``length`` tokens whose every judgement has the sign of its label."""
    label = SENTIMENTS[rng.random() < 0.5]
    thing = choice(rng, lex.REVIEWED)
    sentences = [["Review", ":"]]
    size = 2
    while True:
        pattern = choice(rng, _PLAIN_REVIEW if rng.random() < 0.2 else _REVIEW[label])
        given = {"T": thing} if "T" in pattern.slots else {}
        tokens = pattern.tokens(pattern.fill(rng, given))
        if size + len(tokens) > length:
            break
        sentences.append(tokens)
        size += len(tokens)
    verdict = ["This", "review", "is", label, "."]
    return Labelled(label, sentences, verdict, [f"{label}_review"] * len(sentences))


_PREMISE = template("The {adj} {S} {does} in the {place}.")
_CLAIMS = {
    "entailment": templates("""
        The {S} {does} in the {place}.
        The {adj} {S} {does}.
        The {S} is {adj}.
        There is a {adj} {S} in the {place}."""),
    "contradiction": templates("""
        The {S} never {does} in the {place}.
        The {adj} {S} never {does}.
        The {S} is not {adj}.
        There is no {S} in the {place}."""),
    "neutral": templates("""
        The {S} has a {object}.
        The {S} likes {food}.
        The {S} is from {city}.
        The {S} was there on {day}."""),
}
INFERENCES = tuple(_CLAIMS)
_INFERENCE_MARK = {
    "entailment": "claim_entailed",
    "contradiction": "claim_contradicted",
    "neutral": "claim_neutral",
}
_SUBJECTS = (*lex.ANIMALS, *lex.PEOPLE)


def inference(rng: Random, length: int) -> Labelled:
    """A premise of several facts, about ``length`` tokens in all, and a claim about one of them."""
    label = INFERENCES[int(rng.random() * 3)]
    count = max(1, min(10, (length - 18) // 8))
    subjects = rng.sample(_SUBJECTS, count)
    facts = [_PREMISE.fill(rng, {"S": subject}) for subject in subjects]
    asked = facts[int(rng.random() * count)]
    pattern = choice(rng, _CLAIMS[label])
    claim = pattern.tokens(pattern.fill(rng, {s: w for s, w in asked.items() if s in pattern.slots}))
    sentences = [["Premise", ":"], *(_PREMISE.tokens(fact) for fact in facts), ["Claim", ":", *claim]]
    marks = ["premise"] * (count + 1) + [_INFERENCE_MARK[label]]
    return Labelled(label, sentences, ["Verdict", ":", label, "."], marks)
