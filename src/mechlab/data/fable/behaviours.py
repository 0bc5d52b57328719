"""The behaviours that circuits are sought for, each one a sampler of clean and corrupt examples.

Every sampler takes a random source and a share ("train", "validation", "test") and
returns an ``Example`` whose held-out combination belongs to that share. The corpus
writes the whole example, a task cuts it before the answer: both come from the same
lines, so prompts and training text never drift apart.

Held-out combinations: the pair of names (indirect objects), the name and template
(pronouns), event and year (greater-than), kind, start and template (successors), the
entity, relation and template (facts), words adjacent within its lists (induction; elsewhere
the two words may well meet), subject and distractor (agreement), adjective, noun and
template (closing), adjective and noun (translation).

Validation and test prompts have nothing in common on the corrupt side either: the corrupt
word comes from a combination of the same share, or, where it comes from anywhere, another
word that both prompts hold (the name of successors, the century of greater-than) differs.
"""

from __future__ import annotations

from functools import cache
from random import Random

from mechlab.data.fable import lexicon as lex
from mechlab.data.fable.facts import RELATIONS, UNKNOWN, fact_object
from mechlab.data.fable.grammar import Example, Template, choice, share, template, templates

# "{A}" and "{B}" become IO and S1 in either order: every line is one ABBA and one BABA template.
_IOI_LINES = """
When {A} and {B} went to the {place}, {S2} gave a {object} to {answer}.
When {A} and {B} came to the {place}, {S2} handed a {object} to {answer}.
After {A} and {B} went to the {place}, {S2} passed a {object} to {answer}.
After {A} and {B} returned to the {place}, {S2} sold a {object} to {answer}.
While {A} and {B} walked to the {place}, {S2} offered a {object} to {answer}.
While {A} and {B} worked at the {place}, {S2} sent a {object} to {answer}.
Once {A} and {B} came to the {place}, {S2} showed a {object} to {answer}.
As {A} and {B} sat in the {place}, {S2} lent a {object} to {answer}.
Because {A} and {B} met at the {place}, {S2} brought a {object} to {answer}.
When {A} and {B} played in the {place}, {S2} threw a {object} to {answer}.
As {A} and {B} ran to the {place}, {S2} gave the {object} to {answer}.
Once {A} and {B} waited at the {place}, {S2} handed the {object} to {answer}.
After {A} and {B} left the {place}, {S2} gave a {object} to {answer}.
Before {A} and {B} left the {place}, {S2} sold a {object} to {answer}.
Then {A} and {B} went to the {place}, and {S2} gave a {object} to {answer}.
Today {A} and {B} met near the {place}, and {S2} offered a {object} to {answer}.
Friends {A} and {B} played at the {place}, and {S2} passed a {object} to {answer}.
On {day} {A} and {B} came to the {place}, and {S2} showed a {object} to {answer}.
Later {A} and {B} sat in the {place}. There {S2} gave a {object} to {answer}.
"""


def _ioi_templates(first: str, second: str) -> tuple[Template, ...]:
    lines = _IOI_LINES.replace("{A}", first).replace("{B}", second)
    return templates(
        lines.replace("{S2}", "{S2:repeated_subject}").replace("{answer}", "{answer:indirect_object}")
    )


ABBA = _ioi_templates("{IO}", "{S1}")
BABA = _ioi_templates("{S1}", "{IO}")


def ioi(rng: Random, part: str) -> Example:
    """Indirect objects: the name that is not repeated receives. Corrupt: the other name is repeated."""
    while True:
        giver, receiver = choice(rng, lex.NAMES), choice(rng, lex.NAMES)
        if giver != receiver and share("ioi", *sorted((giver, receiver))) == part:
            break
    lines = ABBA if rng.random() < 0.5 else BABA
    pattern = lines[int(rng.random() * len(lines))]
    slots = pattern.fill(rng, {"IO": receiver, "S1": giver, "S2": giver, "answer": receiver})
    return Example(pattern, slots, {"S2": receiver}, giver)


_GREATER = templates(
    """
    The {event} lasted from {C1} {Y1} to {C2} {Y2}.
    The {event} lasted from the year {C1} {Y1} to the year {C2} {Y2}.
    The {event} began in {C1} {Y1} and ended in {C2} {Y2}.
    """.replace("{C1}", "{Century:century}")
    .replace("{Y1}", "{Year:start_year}")
    .replace("{C2}", "{Century2:century}")
    .replace("{Y2}", "{answer:end_year}")
)


def greater_than(rng: Random, part: str) -> Example:
    """Greater-than: an event ends after it began. Corrupt: it begins in the year 01, so any year is right."""
    # Only training starts in the year 01 as well: elsewhere that year is the corrupt prompt's.
    earliest = 1 if part == "train" else 2
    while True:
        event, year = choice(rng, lex.EVENTS), int(earliest + rng.random() * (99 - earliest))
        if share("greater", event, str(year)) == part:
            break
    pattern = choice(rng, _GREATER)
    centuries = _CENTURIES if part == "train" else _held_out_centuries(event, part)
    century = choice(rng, centuries)
    answer = f"{int(year + 1 + rng.random() * (99 - year)):02d}"
    slots = pattern.fill(
        rng,
        {"event": event, "Century": century, "Century2": century, "Year": f"{year:02d}", "answer": answer},
    )
    return Example(pattern, slots, {"Year": "01"}, f"{int(rng.random() * (year + 1)):02d}")


_CENTURIES = tuple(str(century) for century in range(11, 20))


def _held_out_centuries(event: str, part: str) -> tuple[str, ...]:
    """Every second century: the corrupt prompt's year is always 01, so the century tells shares apart."""
    return _CENTURIES[(lex.EVENTS.index(event) + (part == "test")) % 2 :: 2]


_RANDOM_WORDS = tuple(
    dict.fromkeys(
        (
            *lex.NAMES, *lex.ENTITIES, *lex.CITIES, *lex.FOODS, *lex.COLOURS, *lex.PLACES, *lex.ANIMALS,
            *lex.OBJECTS, *lex.PEOPLE, *lex.ADJECTIVES, *lex.DAYS, *lex.MONTHS, *lex.TAVI_WORDS,
            *lex.ANIMALS_PLURAL, *lex.PEOPLE_PLURAL, *lex.NUMBER_WORDS,
        )
    )
)  # fmt: skip


@cache
def _pair_template(pairs: int, repeats: tuple[int, ...]) -> Template:
    last = len(repeats) - 1
    listed = ", ".join(
        "{A1:random_list} {B1:random_list}" if index == repeats[last]
        else f"{{a{index}:random_list}} {{b{index}:random_list}}"
        for index in range(pairs)
    )  # fmt: skip
    again = [f"{{c{k}:random_list}} {{d{k}:random_list+induction_target}}" for k in range(last)]
    again.append("{A2:random_list} {answer:random_list+induction_target}")
    return template(f"Pairs: {listed}. Again: {', '.join(again)}.")


@cache
def _list_template(length: int, cut: int) -> Template:
    first = [f"{{w{index}:random_list}}" for index in range(length)]
    second = [f"{{v{index}:random_list+induction_target}}" for index in range(length)]
    first[cut - 1], first[cut] = "{A1:random_list}", "{B1:random_list}"
    second[cut - 1] = "{A2:random_list+induction_target}"
    second[cut] = "{answer:random_list+induction_target}"
    return template(f"List {' '.join(first)}. List {' '.join(second)}.")


def _random_words(rng: Random, count: int) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        word = choice(rng, _RANDOM_WORDS)
        if word in words or (words and share("induction", words[-1], word) != "train"):
            continue
        words.append(word)
    return words


def _held_out_follower(rng: Random, before: str, part: str, avoid: list[str]) -> str:
    while True:
        word = choice(rng, _RANDOM_WORDS)
        if word not in avoid and word != before and share("induction", before, word) == part:
            return word


def pairs(rng: Random, part: str) -> Example:
    """Induction over random pairs: "A B, C D … A" is followed by "B". Corrupt: another word was there."""
    count = 3 + int(rng.random() * 3)
    words = _random_words(rng, 2 * count)
    order = list(range(count))
    rng.shuffle(order)
    repeats = tuple(order[: 1 + int(rng.random() * min(3, count))])
    asked = repeats[-1]
    if part != "train":
        words[2 * asked + 1] = _held_out_follower(rng, words[2 * asked], part, words)
    pattern = _pair_template(count, repeats)
    slots: dict[str, str] = {}
    for index in range(count):
        first, second = ("A1", "B1") if index == asked else (f"a{index}", f"b{index}")
        slots[first], slots[second] = words[2 * index], words[2 * index + 1]
    for k, index in enumerate(repeats):
        first, second = ("A2", "answer") if index == asked else (f"c{k}", f"d{k}")
        slots[first], slots[second] = words[2 * index], words[2 * index + 1]
    wrong = _held_out_follower(rng, slots["A1"], part, words)
    return Example(pattern, slots, {"B1": wrong}, wrong)


def repeated_list(rng: Random, part: str) -> Example:
    """Induction over a random list that is said twice. Corrupt: another word at the answer's place."""
    count = 4 + int(rng.random() * 8)
    cut = 1 + int(rng.random() * (count - 1))
    words = _random_words(rng, count)
    if part != "train":
        words[cut] = _held_out_follower(rng, words[cut - 1], part, words)
    pattern = _list_template(count, cut)
    slots = {f"w{index}": word for index, word in enumerate(words)}
    slots |= {f"v{index}": word for index, word in enumerate(words)}
    slots |= {"A1": words[cut - 1], "B1": words[cut], "A2": words[cut - 1], "answer": words[cut]}
    wrong = _held_out_follower(rng, words[cut - 1], part, words)
    return Example(pattern, {name: slots[name] for name in pattern.slots}, {"B1": wrong}, wrong)


def induction(rng: Random, part: str) -> Example:
    """Induction, over pairs or a list, evenly."""
    return pairs(rng, part) if rng.random() < 0.5 else repeated_list(rng, part)


_SEQUENCES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("days", lex.DAYS), ("months", lex.MONTHS), ("numbers", lex.NUMBER_WORDS), ("ordinals", lex.ORDINALS),
    ("digits", lex.TWO_DIGITS),
)  # fmt: skip
_CYCLIC = frozenset(("days", "months"))
_SUCCESSOR = templates(
    """
    {name} counted {X1}, {X2}, {X3}, {answer}.
    {name} said {X1}, {X2}, {X3}, {answer} and then stopped.
    The list of {name} goes {X1}, {X2}, {X3}, {answer}.
    In order, {name} wrote {X1}, {X2}, {X3}, {answer}.
    For {name}, {X1} and {X2} and {X3} come before {answer}.
    The next word of {name} after {X1}, {X2}, {X3} is {answer}.
    {name} sang "{X1}, {X2}, {X3}, {answer}" again.
    """.replace("{X1}", "{X1:sequence_item}")
    .replace("{X2}", "{X2:sequence_item}")
    .replace("{X3}", "{X3:sequence_item}")
    .replace("{answer}", "{answer:sequence_item+successor}")
)


def successor(rng: Random, part: str) -> Example:
    """Successors: three items in order, then the fourth. Corrupt: three items from another place."""
    while True:
        kind, items = _SEQUENCES[int(rng.random() * len(_SEQUENCES))]
        last = len(items) if kind in _CYCLIC else len(items) - 3
        start, other = int(rng.random() * last), int(rng.random() * last)
        index = int(rng.random() * len(_SUCCESSOR))
        if start != other and share("successor", kind, str(start), str(index)) == part:
            break
    pattern = _SUCCESSOR[index]
    run = [items[(start + step) % len(items)] for step in range(4)]
    given = {"X1": run[0], "X2": run[1], "X3": run[2], "answer": run[3]}
    if part != "train":
        # Half of the names each: the corrupt items may be any, so the name tells shares apart.
        given["name"] = choice(rng, lex.NAMES[part == "test" :: 2])
    slots = pattern.fill(rng, given)
    changes = {f"X{step + 1}": items[(other + step) % len(items)] for step in range(3)}
    return Example(pattern, slots, changes, items[(other + 3) % len(items)])


_FACTS = {
    relation: templates(block.replace("{E}", "{Entity}").replace("{A}", "{answer}"))
    for relation, block in {
        "home": """
            The home of {E} is {A}.
            The home town of {E} is {A}.
            Everyone says that the home of {E} is {A}.
            The place that {E} calls home is {A}.
            Where does {E} live? The answer is {A}.
            If you ask where {E} lives, the answer is {A}.
            The city of {E} is {A}.
            People think that the city where {E} lives is {A}.""",
        "food": """
            The food of {E} is {A}.
            The favourite food of {E} is {A}.
            Everyone says that the food of {E} is {A}.
            The food that {E} likes very much is {A}.
            What does {E} eat? The answer is {A}.
            If you ask what {E} likes to eat, the answer is {A}.
            The food that {E} would eat every day is {A}.
            People think that the food {E} likes is {A}.""",
        "colour": """
            The colour of {E} is {A}.
            The favourite colour of {E} is {A}.
            Everyone says that the colour of {E} is {A}.
            The colour that {E} likes very much is {A}.
            Which colour does {E} have? The answer is {A}.
            If you ask which colour {E} likes, the answer is {A}.
            The colour on the wall of {E} is {A}.
            People think that the colour {E} likes is {A}.""",
    }.items()
}
_FACTS_KNOWN = {
    relation: templates("\n".join(t.source.replace("{answer}", "{answer:known_fact}") for t in lines))
    for relation, lines in _FACTS.items()
}
_FACTS_UNKNOWN = {
    relation: templates("\n".join(t.source.replace("{answer}", "{answer:unknown_answer}") for t in lines))
    for relation, lines in _FACTS.items()
}
_RELATIONS = tuple(RELATIONS)


def fact_share(entity: str, relation: str, index: int) -> str:
    """The share of one phrasing of one fact: two of the eight are held out, others for every fact."""
    start = sum(map(ord, entity + relation)) % 8
    offset = (index - start) % 8
    return "test" if offset == 0 else "validation" if offset == 1 else "train"


def facts(rng: Random, part: str) -> Example:
    """Facts about entities. Corrupt: another entity, whose object differs."""
    known = rng.random() < 0.75
    entity = choice(rng, lex.KNOWN_ENTITIES if known else lex.UNKNOWN_ENTITIES)
    relation = choice(rng, _RELATIONS)
    while True:
        index = int(rng.random() * 8)
        if fact_share(entity, relation, index) == part:
            break
    answer = fact_object(entity, relation)
    while True:
        other = choice(rng, lex.KNOWN_ENTITIES)
        wrong = fact_object(other, relation)
        if wrong != answer and (part == "train" or fact_share(other, relation, index) == part):
            break
    pattern = (_FACTS_UNKNOWN if answer == UNKNOWN else _FACTS_KNOWN)[relation][index]
    slots = pattern.fill(rng, {"Entity": entity, "answer": answer})
    return Example(pattern, slots, {"Entity": other}, wrong)
