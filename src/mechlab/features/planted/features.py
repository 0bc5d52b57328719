"""Planted features: rules drawn at random from what a text holds, and features that obey them.

Every kind comes with a rule that is plausible but wrong: its parent (the word without its
condition), a part of it (half the words), or its sibling. A kind of feature that no rule explains,
noise, is planted too. Kinds after features.md's ladder and the puzzles of Bills et al. (2023),
*Language models can explain neurons in language models*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechlab.errors import MechlabError, near
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.rules import (
    Atom,
    Clause,
    Induction,
    Inside,
    Matcher,
    Position,
    Repeats,
    Rule,
    Spelling,
    Token,
    Within,
)
from mechlab.features.text import Text

NOISE = "noise"
# Share of rows on which a noise feature is active.
_RARE = 0.005
# A planted feature is active in so many documents at least, and on at most this share of the rows.
_DOCUMENTS, _DENSEST = 60, 0.25
# A wrong rule that says the same is not wrong.
_ALIKE = 0.9
_TRIES = 400


@dataclass(frozen=True)
class Planted:
    """A feature whose explanation is known.

    Attributes:
        kind: which family of rules it is from.
        rule: what it obeys; None for noise.
        wrong: a plausible rule that is not it; None for noise.
    """

    kind: str
    rule: Rule | None
    wrong: Rule | None


def plant_rules(
    text: Text, *, per_kind: int = 5, kinds: Sequence[str] | None = None, seed: int = 0
) -> tuple[Planted, ...]:
    """Random rules of every kind that are active often enough in a text, and not too often.

    Raises MechlabError for an unknown kind, and for a text in which a kind cannot be planted.
    """
    for kind in kinds or ():
        if kind not in KINDS:
            raise MechlabError("unknown kind of planted feature", kind, near(kind, KINDS))
    drawer = _Drawer(text, seed)
    return tuple(drawer.draw(kind) for kind in kinds or KINDS for _ in range(per_kind))


def plant(
    text: Text,
    rules: Sequence[Planted],
    *,
    spread: float = 0.5,
    dropped: float = 0.0,
    seed: int = 0,
    matcher: Matcher | None = None,
) -> FeatureIndex:
    """The index of features that obey these rules on a text.

    Args:
        rules: feature number → planted rule.
        spread: activations are uniform in 2 * (1 ± spread).
        dropped: share of the activations that are left out: a noisy feature.
    """
    matcher = matcher or Matcher(text)
    features: dict[int, Float[np.ndarray, "row"]] = {}
    for number, planted in enumerate(rules):
        generator = np.random.default_rng([seed, number])
        active = np.zeros(len(text), bool)
        if planted.rule is None:
            active[:] = generator.random(len(text)) < _RARE
        else:
            active[matcher.rows(planted.rule)[0]] = True
        strength = 2 * generator.uniform(1 - spread, 1 + spread, len(text))
        features[number] = np.where(active & (generator.random(len(text)) >= dropped), strength, 0.0)
    return index_of(text, features, kind="planted")


class _Drawer:
    """Draws words and rules that suit a text."""

    def __init__(self, text: Text, seed: int) -> None:
        self.text, self.matcher = text, Matcher(text)
        self.generator = np.random.default_rng(seed)
        texts = text.vocabulary.texts
        counts: dict[str, int] = {}
        for token, count in enumerate(np.bincount(text.tokens, minlength=len(texts)).tolist()):
            counts[texts[token]] = counts.get(texts[token], 0) + count
        usable = {word: n for word, n in counts.items() if _is_word(word)}
        self.words = [word for word, n in usable.items() if 2e-4 <= n / len(text) <= 2e-2]
        if len(self.words) < 20:
            raise MechlabError(
                "text has too few words to plant features in", len(self.words), "use a longer text"
            )
        self.counts = counts
        self.rules: set[Rule] = set()

    def draw(self, kind: str) -> Planted:
        if kind == NOISE:
            return Planted(NOISE, None, None)
        for _ in range(_TRIES):
            made = KINDS[kind](self)
            if made is not None and self.suits(*made):
                self.rules.add(made[0])
                return Planted(kind, *made)
        raise MechlabError("kind of feature cannot be planted in this text", kind, "use a longer text")

    def drawn(self, rule: Rule) -> bool:
        return rule in self.rules

    def suits(self, rule: Rule, wrong: Rule) -> bool:
        if self.drawn(rule):
            return False
        rows, others = self.matcher.rows(rule)[0], self.matcher.rows(wrong)[0]
        documents = len(np.unique(self.text.document[rows]))
        often = documents >= _DOCUMENTS and len(rows) <= _DENSEST * len(self.text)
        return often and len(others) > 0 and agreement(others, rows) <= _ALIKE

    def some(self, count: int) -> tuple[str, ...]:
        return tuple(self.generator.choice(np.array(self.words, object), count, replace=False).tolist())

    def neighbours(self, word: str, offset: int) -> list[str]:
        """Texts that stand ``offset`` places from a word, commonest first."""
        rows = self.matcher.rows(_rule(Token((word,))))[0] + offset
        rows = rows[(rows >= 0) & (rows < len(self.text))]
        rows = rows[
            self.text.passage[rows] == self.text.passage[np.clip(rows - offset, 0, len(self.text) - 1)]
        ]
        found: dict[str, int] = {}
        for token, count in zip(*np.unique(self.text.tokens[rows], return_counts=True), strict=True):
            name = self.text.vocabulary.texts[int(token)]
            found[name] = found.get(name, 0) + int(count)
        return sorted(found, key=lambda name: (-found[name], name))

    def half(self, words: Sequence[str]) -> tuple[str, ...]:
        """Half of the words, and for the rest of them others."""
        kept = tuple(words[::2])
        others = [word for word in self.some(min(len(words), len(self.words) // 2)) if word not in words]
        return (*kept, *others[: len(words) - len(kept)])


Made = tuple[Rule, Rule] | None


def _rule(*atoms: Atom) -> Rule:
    return Rule((Clause(atoms, 2.0),))


def _either(*clauses: tuple[Atom, ...]) -> Rule:
    return Rule(tuple(Clause(atoms, 2.0) for atoms in clauses))


def _token(draw: _Drawer) -> Made:
    (word,) = draw.some(1)
    before = draw.neighbours(word, -1)
    if not before:
        return None
    return _rule(Token((word,))), _rule(Token(tuple(before[::2]), offset=-1), Token((word,)))


def _set(draw: _Drawer) -> Made:
    words = draw.some(int(draw.generator.integers(3, 13)))
    return _rule(Token(words)), _rule(Token(draw.half(words)))


def _affix(draw: _Drawer) -> Made:
    (word,) = draw.some(1)
    bare = word.strip()
    size = int(draw.generator.integers(2, 4))
    if len(bare) <= size:
        return None
    end = bool(draw.generator.integers(2))
    spelling = (
        Spelling("ends", bare[-size:]) if end else Spelling("starts", word[: len(word) - len(bare) + size])
    )
    matching = [each for each in draw.words if _spelt(each, spelling)]
    if len(matching) < 2:
        return None
    return _rule(spelling), _rule(Token(draw.half(matching)))


def _bigram(draw: _Drawer) -> Made:
    (word,) = draw.some(1)
    before = [each for each in draw.neighbours(word, -1)[:4] if _is_word(each)]
    if not before:
        return None
    first = before[int(draw.generator.integers(len(before)))]
    return _rule(Token((first,), offset=-1), Token((word,))), _rule(Token((word,)))


def _within(draw: _Drawer) -> Made:
    words, reach = draw.some(int(draw.generator.integers(1, 3))), int(draw.generator.integers(3, 8))
    return _rule(Within(words, reach)), _rule(Within(words, max(1, reach // 3)))


def _position(draw: _Drawer) -> Made:
    first = int(draw.text.position.min())
    last = first + int(draw.generator.integers(2, 12))
    return _rule(Position(first, last)), _rule(Position(first, first + (last - first) // 3))


def _quotes(draw: _Drawer) -> Made:
    what = ("quotes", "brackets")[int(draw.generator.integers(2))]
    opening = tuple(
        each for each in draw.counts if each.strip() in ('"', "“", "(", "[") and draw.counts[each]
    )
    first = draw.some(1)[0].strip()[0]
    begins = Spelling("contains", first)
    # Every text has few kinds of brackets: a second one of a kind asks for a letter, too.
    if draw.drawn(_rule(Inside(what))):
        return _rule(Inside(what), begins), _rule(begins)
    return (_rule(Inside(what)), _rule(Inside(what), Within(opening, 3))) if opening else None


def _repetition(draw: _Drawer) -> Made:
    (word,) = draw.some(1)
    begins = Spelling("starts", word[: len(word) - len(word.strip()) + 1])
    return _rule(Repeats(), begins), _rule(begins)


def _induction(draw: _Drawer) -> Made:
    letter = "abcdefghilmnoprstuw"[int(draw.generator.integers(19))]
    return _rule(Induction(), Spelling("contains", letter)), _rule(Repeats(), Spelling("contains", letter))


def _negation(draw: _Drawer) -> Made:
    (word,) = draw.some(1)
    before = draw.neighbours(word, -1)
    if len(before) < 3:
        return None
    unless = Token((before[0],), offset=-1, negated=True)
    return _rule(Token((word,)), unless), _rule(Token((word,)))


def _compositional(draw: _Drawer) -> Made:
    words = draw.some(int(draw.generator.integers(3, 9)))
    condition: tuple[Atom, ...] = (Inside("quotes"), Within(draw.some(2), 8))
    return _rule(Token(words), condition[int(draw.generator.integers(2))]), _rule(Token(words))


def _polysemantic(draw: _Drawer) -> Made:
    words, (marker,) = draw.some(int(draw.generator.integers(1, 4))), draw.some(1)
    after = draw.neighbours(marker, 1)[:3]
    first, second = (Token(words),), (Token((marker,), offset=-1), Token(tuple(after)))
    return _either(first, second), _either(first)


KINDS: dict[str, Callable[[_Drawer], Made]] = {
    "token": _token,
    "set": _set,
    "affix": _affix,
    "bigram": _bigram,
    "within": _within,
    "position": _position,
    "quotes": _quotes,
    "repetition": _repetition,
    "induction": _induction,
    "negation": _negation,
    "compositional": _compositional,
    "polysemantic": _polysemantic,
    NOISE: lambda _: None,
}
"""Kind → draws a rule of it and one that is plausible but wrong."""


def _is_word(text: str) -> bool:
    return text.strip().isalpha()


def _spelt(text: str, spelling: Spelling) -> bool:
    return text.endswith(spelling.text) if spelling.kind == "ends" else text.startswith(spelling.text)


def agreement(predicted: Int[np.ndarray, "predicted_row"], true: Int[np.ndarray, "true_row"]) -> float:
    """F1 of two sets of rows; 1 when both are empty."""
    both = len(np.intersect1d(predicted, true, assume_unique=True))
    total = len(predicted) + len(true)
    return 2 * both / total if total else 1.0
