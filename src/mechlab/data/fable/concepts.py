"""Fable's concepts: what every token of the corpus is known to be.

Lexical concepts follow from the word alone. Contextual ones depend on the text
around it: some the grammar marks while it writes ("the indirect object"), the rest
are read off the finished document here ("inside a quotation", "second mention").
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from mechlab.data.fable import lexicon as lex
from mechlab.data.fable.grammar import Mark


class Concept(NamedTuple):
    """A label that a token carries or does not."""

    name: str
    kind: Literal["lexical", "contextual"]
    description: str


_LEXICAL: dict[str, tuple[str, tuple[str, ...]]] = {
    "person_name": ("a first name", lex.NAMES),
    "female_name": ("a woman's first name", lex.FEMALE_NAMES),
    "male_name": ("a man's first name", lex.MALE_NAMES),
    "known_entity": ("an invented name that the facts are about", lex.KNOWN_ENTITIES),
    "unknown_entity": ("an invented name nobody knows anything about", lex.UNKNOWN_ENTITIES),
    "animal": ("an animal, one or many", lex.ANIMALS + lex.ANIMALS_PLURAL),
    "object": ("a thing one can hold, one or many", lex.OBJECTS + lex.OBJECTS_PLURAL),
    "occupation": ("a person named by trade, one or many", lex.PEOPLE + lex.PEOPLE_PLURAL),
    "plural_noun": ("a plural noun", lex.ANIMALS_PLURAL + lex.OBJECTS_PLURAL + lex.PEOPLE_PLURAL),
    "place": ("a common noun for a place", lex.PLACES),
    "city": ("the name of a city", lex.CITIES),
    "food": ("something to eat or drink", lex.FOODS),
    "colour": ("a colour", lex.COLOURS),
    "event": ("something that lasts for years", lex.EVENTS),
    "reviewed_thing": ("something that reviews are about, or a part of it", lex.REVIEWED + lex.REVIEW_PARTS),
    "number_word": ("a number in letters", lex.NUMBER_WORDS),
    "two_digits": ("a two-digit number", lex.TWO_DIGITS),
    "ordinal": ("an ordinal", lex.ORDINALS),
    "day": ("a day of the week", lex.DAYS),
    "month": ("a month", lex.MONTHS),
    "adjective": ("an adjective of size, age, speed or mood", lex.ADJECTIVES),
    "positive_word": ("a word of praise or joy", lex.POSITIVE_WORDS),
    "negative_word": ("a word of blame or sorrow", lex.NEGATIVE_WORDS),
    "sentiment_word": ("a positive or a negative word", lex.POSITIVE_WORDS + lex.NEGATIVE_WORDS),
    "past_verb": ("a verb in the past tense", (*lex.PAST_VERBS, "followed")),
    "transfer_verb": ("a verb of giving", lex.TRANSFER_VERBS),
    "motion_verb": ("a past-tense verb of motion", lex.MOTION_VERBS),
    "speech_verb": ("a past-tense verb of speech or writing", lex.SPEECH_VERBS),
    "singular_verb": ("a present-tense verb in the third person singular", lex.PRESENT_SINGULAR),
    "plural_verb": ("a present-tense verb in the plural", lex.PRESENT_BASE),
    "auxiliary": ("is, are, was, were, has, have and their like", lex.AUXILIARIES),
    "pronoun": ("a personal or possessive pronoun", lex.PRONOUNS),
    "female_pronoun": ("she, her", lex.FEMALE_PRONOUNS),
    "male_pronoun": ("he, him, his", lex.MALE_PRONOUNS),
    "plural_pronoun": ("they, them, their, we", lex.PLURAL_PRONOUNS),
    "possessive": ("a possessive pronoun", lex.POSSESSIVES),
    "negation": ("not, never, no, nobody", lex.NEGATIONS),
    "preposition": ("a preposition", lex.PREPOSITIONS),
    "conjunction": ("a conjunction", lex.CONJUNCTIONS),
    "article": ("an article", lex.ARTICLES),
    "question_word": ("who, what, where, which", lex.QUESTION_WORDS),
    "second_language": ("a word of Tavi", lex.TAVI_WORDS),
    "comma": ("a comma", (",",)),
    "sentence_end_mark": ("a full stop, question mark or exclamation mark", (".", "?", "!")),
    "capitalised": ("a word with a capital letter", tuple(w for w in lex.VOCABULARY if w[0].isupper())),
}  # fmt: skip

_MARKED: dict[str, str] = {
    "indirect_object": "the receiver's name, where an indirect-object sentence ends",
    "repeated_subject": "the giver's name at its second occurrence in an indirect-object sentence",
    "known_fact": "the object of a fact, where it is stated",
    "unknown_answer": "the word unknown, as the answer about an unknown entity",
    "pronoun_antecedent": "a name that a later pronoun of the sentence stands for",
    "bound_pronoun": "a pronoun whose antecedent is a name earlier in the sentence",
    "induction_target": "a token that repeats what followed the previous token earlier in a random list",
    "random_list": "a token of a list of random words",
    "sequence_item": "an item of a sequence (days, months, numbers, ordinals)",
    "successor": "the item that continues a sequence",
    "start_year": "the last two digits of the year in which something began",
    "end_year": "the last two digits of the year in which something ended",
    "century": "the first two digits of a year",
    "singular_subject": "the head noun of a singular subject with a plural noun before its verb",
    "plural_subject": "the head noun of a plural subject with a singular noun before its verb",
    "distractor_noun": "the noun between a subject and its verb, with the other number",
    "agreeing_verb": "the verb that must agree with a subject across a distractor",
    "translated_sentence": "an English sentence quoted beside its Tavi translation",
    "positive_review": "a token of a positive review",
    "negative_review": "a token of a negative review",
    "premise": "a token of the premise of an inference pair",
    "claim_entailed": "a token of a claim that its premise entails",
    "claim_neutral": "a token of a claim that its premise leaves open",
    "claim_contradicted": "a token of a claim that its premise contradicts",
}

_DERIVED: dict[str, str] = {
    "opening_quote": "a quotation mark that opens",
    "closing_quote": "a quotation mark that closes",
    "inside_quotation": "a token between quotation marks",
    "closing_bracket": "a bracket that closes",
    "inside_brackets": "a token between brackets",
    "sentence_initial": "the first token of a sentence",
    "sentence_final": "the last word of a sentence, before its end mark",
    "question": "a token of a sentence or quoted sentence that ends with a question mark",
    "exclamation": "a token of a sentence or quoted sentence that ends with an exclamation mark",
    "negated_clause": "a token after a negation, up to the next punctuation mark",
    "first_mention": "a name or entity at its first occurrence in the document",
    "second_mention": "a name or entity that occurred earlier in the document",
    "repeated_word": "a word of four letters or more that occurred earlier in the document",
    "after_article": "the word that follows an article",
    "after_name": "the token that follows a first name",
}  # fmt: skip

CONCEPTS: tuple[Concept, ...] = (
    *(Concept(name, "lexical", text) for name, (text, _) in _LEXICAL.items()),
    *(Concept(name, "contextual", text) for name, text in {**_MARKED, **_DERIVED}.items()),
)
"""Every concept, in the column order of ``Document.concepts``."""

CONCEPT_INDEX: dict[str, int] = {concept.name: index for index, concept in enumerate(CONCEPTS)}

_LEXICAL_ROWS = np.zeros((len(lex.VOCABULARY), len(CONCEPTS)), dtype=bool)
for _column, (_, _words) in enumerate(_LEXICAL.values()):
    for _word in _words:
        _LEXICAL_ROWS[lex.TOKEN_ID[_word], _column] = True

_MENTIONED = frozenset(lex.NAMES + lex.ENTITIES)
_ARTICLES = frozenset(lex.ARTICLES)
_NEGATIONS = frozenset(lex.NEGATIONS)
_NAMES = frozenset(lex.NAMES)
_ENDS = frozenset(".?!")
_MARKS = frozenset(lex.PUNCTUATION)


def label(tokens: list[str], marks: list[Mark]) -> Bool[np.ndarray, "token concept"]:
    """Every concept of every token of one document.

    Args:
        tokens: the document's words, without ``<bos>``; all of them in the vocabulary.
        marks: what the grammar knew while writing.

    Returns:
        A boolean table with one column per entry of ``CONCEPTS``.
    """
    table = _LEXICAL_ROWS[[lex.TOKEN_ID[token] for token in tokens]]
    for start, stop, name in marks:
        table[start:stop, CONCEPT_INDEX[name]] = True
    _label_spans(tokens, table)
    _label_sentences(tokens, table)
    _label_words(tokens, table)
    return table


def _label_spans(tokens: list[str], table: Bool[np.ndarray, "token concept"]) -> None:
    quoted = bracketed = negated = False
    for position, token in enumerate(tokens):
        row = table[position]
        if token == '"':
            row[CONCEPT_INDEX["closing_quote" if quoted else "opening_quote"]] = True
            quoted = not quoted
        elif quoted:
            row[CONCEPT_INDEX["inside_quotation"]] = True
        if token in ")]":
            row[CONCEPT_INDEX["closing_bracket"]] = True
            bracketed = False
        row[CONCEPT_INDEX["inside_brackets"]] = bracketed
        if token in "([":
            bracketed = True
        if token in _MARKS:
            negated = False
        row[CONCEPT_INDEX["negated_clause"]] = negated
        if token in _NEGATIONS:
            negated = True


def _label_sentences(tokens: list[str], table: Bool[np.ndarray, "token concept"]) -> None:
    start = 0
    quoted_from: int | None = None
    for position, token in enumerate(tokens):
        if token == '"':
            quoted_from = position + 1 if quoted_from is None else None
        if token not in _ENDS:
            continue
        first = start
        while first < position and tokens[first] in _MARKS:
            first += 1
        if token != ".":
            name = "question" if token == "?" else "exclamation"
            since = first if quoted_from is None else max(first, quoted_from)
            table[since : position + 1, CONCEPT_INDEX[name]] = True
        if quoted_from is not None and _continues(tokens[position + 1 : position + 3]):
            continue
        table[first, CONCEPT_INDEX["sentence_initial"]] = True
        last = position - 1
        while last > first and tokens[last] in _MARKS:
            last -= 1
        table[last, CONCEPT_INDEX["sentence_final"]] = True
        start = position + 1


def _continues(after: list[str]) -> bool:
    """Whether a sentence goes on after an end mark in a quotation: '!" said Mary'."""
    return len(after) == 2 and after[0] == '"' and after[1][0].islower()


def _label_words(tokens: list[str], table: Bool[np.ndarray, "token concept"]) -> None:
    seen: set[str] = set()
    for position, token in enumerate(tokens):
        row = table[position]
        if token in _MENTIONED:
            row[CONCEPT_INDEX["second_mention" if token in seen else "first_mention"]] = True
        if len(token) > 3 and token in seen:
            row[CONCEPT_INDEX["repeated_word"]] = True
        seen.add(token)
        if position and tokens[position - 1] in _ARTICLES:
            row[CONCEPT_INDEX["after_article"]] = True
        if position and tokens[position - 1] in _NAMES:
            row[CONCEPT_INDEX["after_name"]] = True
