"""Fable: a seeded corpus of short stories from a grammar whose every token is labelled.

``documents("train")`` yields texts with ids, concept labels and behaviours at known
rates; ``FACTS`` is the table of what its entities are; ``BEHAVIOURS`` are the samplers
that task prompts and corpus share.
"""

from mechlab.data.fable.behaviours_syntax import BEHAVIOURS
from mechlab.data.fable.concepts import CONCEPT_INDEX, CONCEPTS, Concept
from mechlab.data.fable.corpus import (
    KINDS,
    MAX_TOKENS,
    RATES,
    SPLITS,
    Document,
    document,
    documents,
    labelled,
    split_size,
    token_rows,
)
from mechlab.data.fable.facts import FACTS, RELATIONS, UNKNOWN, Fact, fact_object
from mechlab.data.fable.grammar import Example, render, split_words
from mechlab.data.fable.lexicon import TOKEN_ID, VOCABULARY
from mechlab.data.fable.tokenizer import build_tokenizer

__all__ = [
    "BEHAVIOURS",
    "CONCEPTS",
    "CONCEPT_INDEX",
    "FACTS",
    "KINDS",
    "MAX_TOKENS",
    "RATES",
    "RELATIONS",
    "SPLITS",
    "TOKEN_ID",
    "UNKNOWN",
    "VOCABULARY",
    "Concept",
    "Document",
    "Example",
    "Fact",
    "build_tokenizer",
    "document",
    "documents",
    "fact_object",
    "labelled",
    "render",
    "split_size",
    "split_words",
    "token_rows",
]
