"""Rules about tokens: a grammar with sentences that parse back, matching, and search."""

from mechlab.features.rules.atoms import (
    Atom,
    Concept,
    Induction,
    Inside,
    Position,
    Repeats,
    Spelling,
    Token,
    Within,
)
from mechlab.features.rules.grammar import Clause, Rule, parse_rule
from mechlab.features.rules.matching import Matcher
from mechlab.features.rules.search import explain_rules

__all__ = [
    "Atom",
    "Clause",
    "Concept",
    "Induction",
    "Inside",
    "Matcher",
    "Position",
    "Repeats",
    "Rule",
    "Spelling",
    "Token",
    "Within",
    "explain_rules",
    "parse_rule",
]
