"""Fresh texts that satisfy a rule, made from fragments of a corpus, beside the fragments as they were.

A fragment is changed as little as the rule asks: at one of its tokens a clause is made true (words
put there or around it, quotation marks opened before it, an earlier copy of it made, …), and the
rule itself is then run on the result; what does not fire at that token is thrown away.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from mechlab.errors import MechlabError
from mechlab.features.rules import (
    Clause,
    Concept,
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
from mechlab.features.text import Text, text_of
from mechlab.features.windows import divide

_MARKS = {"quotes": (('"', "“"), ('"', "”")), "brackets": (("(",), (")",))}
_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class RuleTexts:
    """Texts on which a rule fires, and texts on which it does not.

    Attributes:
        positive, negative: one passage for each example.
        fires: row of ``positive`` in each of its passages at which the rule fires.
        silent: row of ``negative`` in each of its passages at which it is silent: the same place
            before the change, where that was silent.
    """

    positive: Text
    negative: Text
    fires: Int[np.ndarray, "example"]
    silent: Int[np.ndarray, "example"]


def rule_texts(
    rule: Rule,
    text: Text,
    count: int,
    generator: np.random.Generator,
    *,
    width: int = 24,
    concepts: Mapping[str, Collection[str]] | None = None,
) -> RuleTexts:
    """``count`` texts on each side; clauses take turns.

    Args:
        text: the corpus that fragments come from.
        width: tokens of a fragment; longer where a rule speaks of later positions.
        concepts: lists of words that the rule may name.

    Raises MechlabError when the corpus has no fragment so long, or too few texts could be made to
    satisfy the rule.
    """
    width = max(width, *(_needed(clause) for clause in rule.clauses))
    starts = divide(text, width).start
    if not len(starts):
        raise MechlabError("no passage is as long as a fragment", f"{width} tokens", "use longer contexts")
    planter = _Planter(text, width, concepts or {}, generator)
    kept: list[tuple[Int[np.ndarray, "pos"], int, Int[np.ndarray, "pos"], int]] = []
    for _ in range(_ROUNDS):
        drawn = generator.choice(starts, 2 * count)
        before = text.tokens[drawn[:, None] + np.arange(width)].astype(np.int64)
        quiet = ~_fires(rule, before, text, concepts)
        after, place = before.copy(), np.zeros(len(drawn), np.int64)
        for row in range(len(drawn)):
            place[row] = planter.plant(after[row], rule.clauses[(len(kept) + row) % len(rule.clauses)])
        fires = _fires(rule, after, text, concepts)
        for row in np.flatnonzero((place >= 0) & quiet.any(1)).tolist():
            at = int(place[row])
            if fires[row, at]:
                free = np.flatnonzero(quiet[row])
                beside = at if quiet[row, at] else int(generator.choice(free))
                kept.append((after[row], at, before[row], beside))
        if len(kept) >= count:
            break
    if len(kept) < count:
        raise MechlabError(
            "too few texts satisfy the rule", f"{len(kept)} of {count}", "use a longer corpus or fewer texts"
        )
    changed, fires_at, plain, silent_at = zip(*kept[:count], strict=True)
    first = np.arange(count) * width
    return RuleTexts(
        text_of(list(changed), text.vocabulary),
        text_of(list(plain), text.vocabulary),
        first + np.array(fires_at),
        first + np.array(silent_at),
    )


class _Planter:
    """Makes clauses true at a place of a fragment.

    Args:
        text: the corpus, whose words are drawn as often as it has them.
    """

    def __init__(
        self,
        text: Text,
        width: int,
        concepts: Mapping[str, Collection[str]],
        generator: np.random.Generator,
    ) -> None:
        self._width, self._generator, self._concepts = width, generator, concepts
        self._vocabulary = text.vocabulary
        # Words that the corpus lacks can be put in too, but seldom.
        self._weight = np.bincount(text.tokens, minlength=len(text.vocabulary)) + 0.01
        self._meant: dict[Token | Within | Spelling | Concept, Bool[np.ndarray, "token"]] = {}

    def plant(self, tokens: Int[np.ndarray, "pos"], clause: Clause) -> int:
        """Change ``tokens`` so that the clause should hold at a place; the place, or -1 if it cannot."""
        at = self._place(clause)
        if at < 0:
            return -1
        fixed = {at}
        for atom in clause.atoms:
            if isinstance(atom, Inside) and not atom.negated and not self._enclose(tokens, at, atom.what):
                return -1
        offsets = {0} | {each.offset for each in clause.atoms if isinstance(each, Token)}
        for offset in sorted(offsets):
            allowed = self._allowed(clause, offset)
            if allowed is None or not 0 <= at + offset < self._width:
                continue
            if not allowed.any():
                return -1
            tokens[at + offset] = self._draw(allowed)
            fixed.add(at + offset)
        for atom in clause.atoms:
            if getattr(atom, "negated", False):
                continue
            if isinstance(atom, Within):
                free = [p for p in range(max(0, at - atom.reach), at) if p not in fixed]
                if not free:
                    return -1
                tokens[self._one(free)] = self._draw(self._ids(atom))
            elif isinstance(atom, Repeats | Induction):
                reach = 1 if isinstance(atom, Induction) else 0
                free = [p for p in range(reach, at - reach) if not {p, p - reach} & fixed]
                if not free:
                    return -1
                copy = self._one(free)
                tokens[copy - reach : copy + 1] = tokens[at - reach : at + 1]
        return at

    def _place(self, clause: Clause) -> int:
        low, high = 0, self._width - 1
        for atom in clause.atoms:
            if isinstance(atom, Position) and not atom.negated:
                low = max(low, atom.first - 1)  # positions count from 1, place from 0
                high = min(high, self._width if atom.last is None else atom.last - 1)
            elif isinstance(atom, Token) and not atom.negated:
                low, high = max(low, -atom.offset), min(high, self._width - 1 - atom.offset)
            elif not getattr(atom, "negated", False):
                low = max(low, {Within: 2, Inside: 2, Repeats: 2, Induction: 4}.get(type(atom), 0))
        return int(self._generator.integers(low, high + 1)) if low <= high else -1

    def _enclose(self, tokens: Int[np.ndarray, "pos"], at: int, what: str) -> bool:
        """Put an opening mark shortly before a place, and the closing one after it."""
        opening, closing = (self._spelt(marks) for marks in _MARKS[what])
        if not len(opening):
            return False
        before = at - int(self._generator.integers(1, min(at, 4) + 1))
        tokens[before] = self._generator.choice(opening)
        after = at + int(self._generator.integers(1, 4))
        if after < self._width and len(closing):
            tokens[after] = self._generator.choice(closing)
        return True

    def _spelt(self, marks: tuple[str, ...]) -> Int[np.ndarray, "token"]:
        return np.array(
            [i for i, said in enumerate(self._vocabulary.texts) if said.strip() in marks], np.int64
        )

    def _allowed(self, clause: Clause, offset: int) -> Bool[np.ndarray, "token"] | None:
        """Tokens that may stand at an offset; None when nothing is said about it."""
        allowed = None
        for atom in clause.atoms:
            if isinstance(atom, Token | Spelling | Concept) and getattr(atom, "offset", 0) == offset:
                meant = self._ids(atom)
                one = ~meant if atom.negated else meant
                allowed = one if allowed is None else allowed & one
        return allowed

    def _ids(self, atom: Token | Within | Spelling | Concept) -> Bool[np.ndarray, "token"]:
        """True at the tokens that an atom names."""
        if atom not in self._meant:
            if isinstance(atom, Spelling):
                found = np.array([atom.test(said) for said in self._vocabulary.texts], bool)
            else:
                words = self._concepts[atom.name] if isinstance(atom, Concept) else atom.words
                found = np.zeros(len(self._vocabulary), bool)
                found[self._vocabulary.ids(words)] = True
            self._meant[atom] = found
        return self._meant[atom]

    def _draw(self, allowed: Bool[np.ndarray, "token"]) -> int:
        """One of the tokens, as often as the corpus has them."""
        weight = self._weight * allowed
        return int(self._generator.choice(len(weight), p=weight / weight.sum()))

    def _one(self, places: list[int]) -> int:
        return int(self._generator.choice(places))


def _fires(
    rule: Rule,
    tokens: Int[np.ndarray, "text pos"],
    text: Text,
    concepts: Mapping[str, Collection[str]] | None,
) -> Bool[np.ndarray, "text pos"]:
    matcher = Matcher(text_of(list(tokens), text.vocabulary), concepts)
    return (matcher.predict(rule) > 0).reshape(tokens.shape)


def _needed(clause: Clause) -> int:
    """Tokens that a fragment must have for the clause to hold somewhere."""
    return max([1, *(each.first + 1 for each in clause.atoms if isinstance(each, Position))])
