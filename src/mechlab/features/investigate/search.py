"""Rules that explain what has been answered so far: the particles of a student's posterior.

Three sources: clauses built by a beam search from atoms that hold where the feature was active
(conjunctions, word sets, negations), further clauses for the active rows that are left, and small
changes of the rules that were believed before (a word more or less, an atom dropped, a reach or a
bound moved), so that belief moves on as answers come. Every rule is scored by prior times likelihood.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from mechlab.features.investigate.facts import Atoms, Facts, Hypothesis
from mechlab.features.investigate.posterior import (
    CLAUSE_COST,
    atom_cost,
    likelihoods,
    rule_cost,
    weights_of,
)
from mechlab.features.rules import Atom, Induction, Inside, Position, Repeats, Spelling, Token, Within

REACH = 8
_OFFSETS = (0, -1, 1, -2)
_BEAM, _LITERALS = 10, 90
_ROUNDS = 3
# Nats below the best rule at which one is no longer kept.
_FAR = 12.0


@dataclass(frozen=True)
class Particles:
    """Rules that may be true, the most probable first.

    Attributes:
        rules: distinct rules.
        scores: ln(prior times likelihood).
        weights: posterior, normalised over these rules.
        bits: the rows of the evidence on which each is active.
        errors: of the first rule.
    """

    rules: tuple[Hypothesis, ...]
    scores: Float[np.ndarray, "rule"]
    weights: Float[np.ndarray, "rule"]
    bits: tuple[int, ...]
    errors: int


@dataclass(frozen=True)
class _Part:
    """A conjunction under construction."""

    atoms: Atoms
    bits: int
    cost: float


def particles(
    facts: Facts,
    labels: int,
    before: Iterable[Hypothesis] = (),
    *,
    thorough: bool = True,
    keep: int = 40,
) -> Particles:
    """The most probable rules for passages on whose rows ``labels`` the feature was active.

    Args:
        before: rules believed so far, to start from.
        thorough: whether to look for conjunctions of three atoms too, which costs most of the time.
        keep: how many are kept.

    Without an active row there is nothing to explain, and the result is empty.
    """
    if not labels:
        return Particles((), np.zeros(0), np.zeros(0), (), 0)
    return _Search(facts, labels, 2 if thorough else 1).run(before, keep)


class _Search:
    def __init__(self, facts: Facts, labels: int, depth: int) -> None:
        self.facts, self.labels, self.depth = facts, labels, depth
        self.full = facts.full
        self.likely = likelihoods(facts.n)
        self.found: dict[Hypothesis, tuple[float, int]] = {}
        # Rows by the word at each offset, which every step looks through.
        self.near = {
            offset: [(word, facts.moved(rows, offset)) for word, rows in facts.words.items()]
            for offset in _OFFSETS
        }

    def run(self, before: Iterable[Hypothesis], keep: int) -> Particles:
        for rule in before:
            self.add(rule)
        self.cover()
        for _ in range(_ROUNDS):
            top = self.best(6)
            for rule in top:
                for other in self.changes(rule):
                    self.add(other)
            if self.best(6) == top:
                break
        rules = self.best(keep)
        scores = np.array([self.found[rule][0] for rule in rules])
        near = scores > scores[0] - _FAR
        rules, scores = rules[: int(near.sum())], scores[near]
        bits = tuple(self.found[rule][1] for rule in rules)
        return Particles(tuple(rules), scores, weights_of(scores), bits, (bits[0] ^ self.labels).bit_count())

    def add(self, rule: Hypothesis) -> float:
        rule = tuple(map(_ordered, rule))
        rule = tuple(sorted(dict.fromkeys(rule), key=repr)) if len(rule) > 1 else rule
        known = self.found.get(rule)
        if known is None:
            bits = self.facts.rule(rule)
            known = self.likely[(bits ^ self.labels).bit_count()] - rule_cost(rule), bits
            self.found[rule] = known
        return known[0]

    def best(self, count: int) -> list[Hypothesis]:
        # Ties are broken by wording, so that the order is the same on every machine.
        ordered = sorted(self.found.items(), key=lambda item: -item[1][0])[: count + 20]
        ordered.sort(key=lambda item: (-round(item[1][0], 9), repr(item[0])))
        return [rule for rule, _ in ordered[:count]]

    def cover(self) -> None:
        """Clauses one after the other, each for the active rows that the ones before leave."""
        clauses: list[_Part] = []
        covered = 0
        for _ in range(3):
            parts = self.clauses(covered)
            if not parts:
                return
            for part in parts[:25]:
                self.add((*(clause.atoms for clause in clauses), part.atoms))
            if clauses and parts[0].bits & self.labels & ~covered == 0:
                return
            gain = self.value(parts[0], covered) - self.likely[(covered ^ self.labels).bit_count()]
            if clauses and gain < CLAUSE_COST:
                return
            clauses.append(parts[0])
            covered |= parts[0].bits
            if not self.labels & ~covered:
                return

    def value(self, part: _Part, covered: int) -> float:
        return self.likely[((part.bits | covered) ^ self.labels).bit_count()] - part.cost

    def promise(self, part: _Part, covered: int) -> float:
        """What a conjunction may come to when more atoms take away most of its wrong rows."""
        bits = part.bits | covered
        wrong = (bits & ~self.labels).bit_count()
        missed = (self.labels & ~bits).bit_count()
        return self.likely[min(missed + wrong // 5, self.facts.n)] - part.cost

    def clauses(self, covered: int) -> list[_Part]:
        """Conjunctions by their value beside the rows covered already."""
        wanted = self.labels & ~covered
        literals = sorted(self.literals(wanted), key=lambda part: -self.promise(part, covered))[:_LITERALS]
        everything = {frozenset(part.atoms): part for part in literals}
        beam = literals
        for depth in range(self.depth):
            ranked = sorted(beam, key=lambda part: -self.promise(part, covered))[: _BEAM - 3 * depth]
            ranked += sorted(beam, key=lambda part: -self.value(part, covered))[: 4 - depth]
            grown: dict[frozenset[Atom], _Part] = {}
            for base in dict.fromkeys(ranked):
                for more in self.extensions(base, literals, wanted, covered):
                    grown.setdefault(frozenset(more.atoms), more)
            beam = list(grown.values())
            everything.update(grown)
        return sorted(everything.values(), key=lambda part: -self.value(part, covered))

    def extensions(self, base: _Part, literals: list[_Part], wanted: int, covered: int) -> Iterator[_Part]:
        """A conjunction with one atom more."""
        if base.bits & ~self.labels:
            for other in literals:
                bits = base.bits & other.bits
                if bits & wanted and bits != base.bits and other.atoms[0] not in base.atoms:
                    yield _joined(base, other, bits)
            yield from self.negations(base, wanted)
        kinds = {(type(atom), getattr(atom, "offset", 0)) for atom in base.atoms if not atom.negated}
        for offset in (0, -1):
            if (Token, offset) not in kinds:
                yield from self.grown(base, offset, wanted)

    def negations(self, base: _Part, wanted: int) -> Iterator[_Part]:
        """A conjunction that leaves out where it is wrong."""
        facts, wrong, right = self.facts, base.bits & ~self.labels, base.bits & wanted
        limit = right.bit_count() // 4
        found: list[tuple[int, Atom | tuple[str, int], int]] = []
        options: list[tuple[Atom, int]] = [
            (atom, facts.bits(atom))
            for atom in (Inside("quotes"), Inside("brackets"), Repeats(), Induction())
        ]
        for atom, bits in options:
            gone = (bits & wrong).bit_count()
            if gone and (bits & right).bit_count() <= limit:
                found.append((gone, atom, bits))
        for offset in (-1, 0, 1):
            for word, bits in self.near[offset]:
                gone = (bits & wrong).bit_count()
                if gone and (bits & right).bit_count() <= limit:
                    found.append((gone, (word, offset), bits))
        found.sort(key=lambda each: -each[0])
        for _, what, bits in found[:8]:
            atom = Token((what[0],), what[1]) if isinstance(what, tuple) else what
            plain = replace(atom, negated=True)
            yield _Part((*base.atoms, plain), base.bits & ~bits, base.cost + atom_cost(plain))

    def grown(self, base: _Part, offset: int, wanted: int) -> Iterator[_Part]:
        """A conjunction with the set of words that, at ``offset``, are mostly right under it."""
        words, bits = [], 0
        inside = base.bits
        for word, rows in self.near[offset]:
            here = rows & inside
            if not here:
                continue
            right = (here & wanted).bit_count()
            if right and right > (here & ~self.labels).bit_count():
                words.append(word)
                bits |= here
        if words and (bits != base.bits or len(base.atoms) == 0):
            atom = Token(tuple(sorted(words)), offset)
            yield _Part((*base.atoms, atom), bits, base.cost + atom_cost(atom))

    def literals(self, wanted: int) -> Iterator[_Part]:
        """Atoms that hold somewhere among the wanted rows."""
        facts = self.facts
        active = [(word, rows) for word, rows in facts.words.items() if rows & wanted]
        atoms: list[Atom] = [Inside("quotes"), Inside("brackets"), Repeats(), Induction()]
        atoms += spellings([word for word, _ in active])
        atoms += self.spans(wanted)
        for atom in atoms:
            bits = facts.bits(atom)
            if bits & wanted and bits != self.full:
                yield _Part((atom,), bits, atom_cost(atom))
        for offset in _OFFSETS:
            for word, bits in self.near[offset]:
                if bits & wanted:
                    atom = Token((word,), offset)
                    yield _Part((atom,), bits, atom_cost(atom))
        area = 0
        for distance in range(1, REACH + 1):
            area |= facts.moved(wanted, distance)
        for word, rows in facts.words.items():
            if rows & area:
                yield from self.reaches(word, rows, wanted)
        nothing = _Part((), self.full, 0.0)
        for offset in (0, -1):
            yield from self.grown(nothing, offset, wanted)

    def reaches(self, word: str, rows: int, wanted: int) -> Iterator[_Part]:
        bits, right = 0, 0
        for reach in range(1, REACH + 1):
            bits |= self.facts.moved(rows, -reach)
            now = (bits & wanted).bit_count()
            if reach > 1 and now and (now > right or reach == REACH):
                atom = Within((word,), reach)
                yield _Part((atom,), bits, atom_cost(atom))
            right = now

    def spans(self, wanted: int) -> Iterator[Position]:
        held = [position for position, bits in self.facts.positions.items() if bits & wanted]
        end = max(self.facts.positions)
        # Beside the span of all active rows the one where they are most in the majority, as some
        # answers may be wrong.
        spans = {(min(held), max(held)), *self.majority()}
        for first, last in sorted({*spans, *((1, last) for _, last in spans)}):
            if last < end:
                yield Position(first, last)
            if first > 1:
                yield Position(first)

    def majority(self) -> Iterator[tuple[int, int]]:
        """Positions with the largest surplus of active over silent rows, if there is any (Kadane 1977)."""
        best, total, first = 0, 0, 1
        found: tuple[int, int] | None = None
        for position in range(1, max(self.facts.positions) + 1):
            bits = self.facts.positions[position]
            right = (bits & self.labels).bit_count()
            total += 2 * right - bits.bit_count()
            if total <= 0:
                total, first = 0, position + 1
            elif total > best:
                best, found = total, (first, position)
        if found is not None:
            yield found

    def changes(self, rule: Hypothesis) -> Iterator[Hypothesis]:
        """Rules one small step away."""
        bits = self.found[rule][1]
        missed = self.labels & ~bits
        for number, atoms in enumerate(rule):
            others = (*rule[:number], *rule[number + 1 :])
            if others:
                yield others
            rest_bits = self.facts.rule(others) if others else 0
            for place, atom in enumerate(atoms):
                rest = (*atoms[:place], *atoms[place + 1 :])
                if rest:
                    yield (*others, rest)
                room = self.facts.clause(rest)
                for changed in self.variants(atom, room, missed, rest_bits):
                    yield (*others, (*rest, changed))

    def variants(self, atom: Atom, room: int, missed: int, elsewhere: int) -> Iterator[Atom]:
        """An atom changed a little; ``room`` are the rows where the rest of its clause holds."""
        if isinstance(atom, Token | Within):
            for word in atom.words:
                if len(atom.words) > 1:
                    yield replace(atom, words=tuple(each for each in atom.words if each != word))
            if not atom.negated:
                more = self.more_words(atom, room, missed)
                for word in more[:6]:
                    yield replace(atom, words=tuple(sorted((*atom.words, word))))
                if len(more) > 1:
                    yield replace(atom, words=tuple(sorted((*atom.words, *more))))
        if isinstance(atom, Token) and not atom.negated and atom.offset == 0:
            yield from spellings(list(atom.words))
        if isinstance(atom, Token) and not atom.negated and atom.offset < 0:
            for reach in (2, 4, REACH):
                yield Within(atom.words, reach)
        if isinstance(atom, Within):
            for reach in {max(1, atom.reach - 1), atom.reach + 1, 3, 5, REACH}:
                if reach != atom.reach and reach <= 2 * REACH:
                    yield replace(atom, reach=reach)
            yield Token(atom.words, -1, atom.negated)
        if isinstance(atom, Position):
            yield from _moved(atom)

    def more_words(self, atom: Token | Within, room: int, missed: int) -> list[str]:
        found: list[tuple[int, str]] = []
        reach = atom.reach if isinstance(atom, Within) else 0
        for word, rows in self.facts.words.items():
            if word in atom.words:
                continue
            if isinstance(atom, Token):
                bits = self.facts.moved(rows, atom.offset)
            else:
                bits = 0
                for distance in range(1, reach + 1):
                    bits |= self.facts.moved(rows, -distance)
            bits &= room
            gain = (bits & missed).bit_count() - (bits & ~self.labels).bit_count()
            if gain > 0:
                found.append((-gain, word))
        return [word for _, word in sorted(found)]


def spellings(words: Sequence[str]) -> list[Spelling]:
    """Spellings that most of these words share; of few words, all that any has."""
    counts: dict[tuple[str, str], int] = {}
    shown = sorted(words)[:40]
    for word in shown:
        bare = word.strip()
        lead = word[: len(word) - len(word.lstrip())]
        options = {("starts", lead + bare[:size]) for size in range(1, min(4, len(bare)) + 1)}
        options |= {("ends", bare[-size:]) for size in range(1, min(4, len(bare)) + 1)}
        options |= {("contains", letter) for letter in bare}
        if re.fullmatch(r"\s?\w+", word):
            options |= {("matches", rf"\s?\w{{{size},}}") for size in range(3, min(len(bare), 9) + 1)}
        for option in options:
            counts[option] = counts.get(option, 0) + 1
    least = 1 if len(shown) < 3 else max(2, len(shown) // 4)
    return [Spelling(manner, text) for (manner, text), count in sorted(counts.items()) if count >= least]


def _moved(atom: Position) -> Iterator[Position]:
    first, last = atom.first, atom.last
    for step in (-2, -1, 1, 2):
        if last is not None and last + step >= first:
            yield replace(atom, last=last + step)
        if first + step >= 1 and (last is None or first + step <= last):
            yield replace(atom, first=first + step)


def _joined(base: _Part, other: _Part, bits: int) -> _Part:
    return _Part((*base.atoms, *other.atoms), bits, base.cost + other.cost)


@functools.lru_cache(maxsize=100_000)
def _wording(atom: Atom) -> str:
    return repr(atom)


def _ordered(atoms: Atoms) -> Atoms:
    return tuple(sorted(dict.fromkeys(atoms), key=_wording))
