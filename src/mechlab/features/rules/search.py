"""A rule for every live feature, found from its activations and the text alone.

A rule is grown clause by clause on the rows that no clause matches yet (sequential covering). A clause is
grown atom by atom, a few conjunctions side by side (beam search), from the best atom of every kind: by F1,
which the clause is judged by, and by F3, as what is to be narrowed down must first of all miss nothing.
After each step the other atoms are chosen again. An atom or clause is kept when F1 grows by more than the
price of its complexity; hits of rare words are shrunk, so that luck is not learnt.

Sources: Fürnkranz (1999), *Separate-and-conquer rule learning*; Dinkelbach (1967) for sets of words (see
``choosing``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from mechlab.features.index import FeatureIndex
from mechlab.features.rules.atoms import Atom, Concept, Spelling, Token, Within
from mechlab.features.rules.candidates import (
    MAX_WORDS,
    Choice,
    Region,
    choices,
    given_choice,
    token_choices,
    within_choices,
)
from mechlab.features.rules.choosing import Goal
from mechlab.features.rules.grammar import Clause, Rule
from mechlab.features.rules.ground import Ground
from mechlab.features.rules.grounds import Grounds

MAX_CLAUSES, MAX_ATOMS, BEAM = 6, 3, 3
_PRICE, _PRICE_RARE = 0.003, 0.6
"""Price of one unit of complexity in F1, and what it grows by divided by the active rows."""
_RECALL = 3.0
_ENOUGH = 0.98
_PURE, _PURE_FEWEST = 0.8, 5


@dataclass(frozen=True, eq=False)
class _Part:
    """A conjunction with its region.

    Attributes:
        losses: by how much the hits were shrunk on account of each atom.
        hits: active rows of the region, shrunk.
        worth: F1 with what is matched already, less the price of the atoms.
    """

    atoms: tuple[Atom, ...]
    region: Region
    losses: tuple[float, ...] = ()
    hits: float = 0.0
    worth: float = 0.0


def explain_rules(
    index: FeatureIndex,
    *,
    features: Iterable[int] | None = None,
    concepts: Mapping[str, Collection[str]] | None = None,
    promoted: Mapping[int, Collection[str]] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Rule]:
    """A rule for every live feature.

    Args:
        index: the features' activations on the text to learn from.
        features: which ones; all live ones by default. Dead ones are left out.
        concepts: named lists of words that rules may refer to.
        promoted: feature → words that it makes the model say next; a rule may then ask for one of them.
        progress: called with the number of features done and of all.
    """
    wanted = index.live.tolist() if features is None else [f for f in features if index.active[f]]
    grounds = Grounds(index.text, concepts or {}, seed)
    words = {feature: tuple(dict.fromkeys(some)) for feature, some in (promoted or {}).items()}
    done: dict[int, Rule] = {}

    def one(feature: int) -> Rule:
        return _Search(*grounds.part(*index.entries(feature)), words.get(feature, ())).rule()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for feature, rule in zip(wanted, pool.map(one, wanted), strict=True):
            done[feature] = rule
            if progress is not None:
                progress(len(done), len(wanted))
    return done


class _Search:
    """The search for one feature."""

    def __init__(
        self,
        ground: Ground,
        rows: Int[np.ndarray, "entry"],
        values: Float[np.ndarray, "entry"],
        promoted: tuple[str, ...] = (),
    ) -> None:
        self.ground, self.rows, self.values = ground, rows, values
        # Words of the text only; one that never occurs says nothing and has its price.
        self.promoted = tuple(word for word in promoted if word in ground.text.vocabulary)
        self.matcher = ground.matcher
        price = _PRICE + _PRICE_RARE / len(rows)
        self.goal = Goal(float(len(rows)), penalty=price)
        self.taken: Int[np.ndarray, "taken_row"] | None = None
        self.active = rows
        self.known: dict[tuple[Atom, ...], _Part | None] = {}

    def rule(self) -> Rule:
        """The rule."""
        found, worth = self.cover(None)
        pure = self.pure() if worth < _ENOUGH else None
        if pure is not None:
            other, worth_of_other = self.cover(pure)
            found = other if worth_of_other > worth else found
        clauses = (Clause(tuple(sorted(atoms, key=_place)), self.strength(atoms)) for atoms in found)
        return Rule(tuple(clauses))

    def cover(self, first: _Part | None) -> tuple[list[tuple[Atom, ...]], float]:
        """Clauses that cover the active rows, and what they are worth; ``first``, if given, is the first."""
        self.goal = replace(self.goal, hits=0.0, matched=0.0)
        self.taken, self.active, self.known = None, self.rows, {}
        found: list[tuple[Atom, ...]] = []
        while len(found) < MAX_CLAUSES and self.promising(float(len(self.active)), found):
            part = self.clause() if found or first is None else first
            if part is None or (found and part.worth <= self.goal.value(0.0, 0.0)):
                break
            found.append(part.atoms)
            self.take(part)
        price = self.goal.penalty * sum(map(_complexity, found))
        return found, self.goal.value(0.0, 0.0) - price

    def promising(self, left: float, found: list[tuple[Atom, ...]]) -> bool:
        """Whether a clause more could be worth its price, if it matched what is left and nothing else."""
        gain = self.goal.value(left, left) - self.goal.value(0.0, 0.0)
        return left > 0 and (not found or gain > self.goal.penalty)

    def pure(self) -> _Part | None:
        """The words on which the feature is nearly always active, when they are a part of its rows.

        A feature with several meanings is else explained by words that they share.
        """
        region = Region(self.ground, None, None, self.rows)
        hits, seen = region.hits.at[0], region.seen.at[0]
        words = np.flatnonzero(hits >= np.maximum(_PURE * seen, _PURE_FEWEST))
        if not 0.1 < hits[words].sum() / len(self.rows) < 0.95:
            return None
        words = words[np.argsort(-hits[words], kind="stable")][:MAX_WORDS]
        self.goal = replace(self.goal, hits=0.0, matched=0.0)
        self.taken, self.active, self.known = None, self.rows, {}
        texts = self.ground.text.vocabulary.texts
        return self.made((Token(tuple(texts[word] for word in words.tolist())),), (0.0,))

    def take(self, part: _Part) -> None:
        """Go on with what a clause leaves."""
        rows = part.region.rows
        assert rows is not None
        if self.taken is None:
            self.is_taken = np.zeros(len(self.ground.text), bool)
        self.is_taken[rows] = True
        self.taken = np.flatnonzero(self.is_taken).astype(np.int32)
        self.active, self.known = self.left(self.active), {}
        hits, matched = self.goal.hits + part.hits, self.goal.matched + float(len(rows))
        self.goal = replace(self.goal, hits=hits, matched=matched)

    def strength(self, atoms: tuple[Atom, ...]) -> float:
        """Mean activation on the rows that a clause matches, inactive ones counted as 0."""
        rows = self.matcher.clause_rows(Clause(atoms))
        both = np.isin(self.rows, rows, assume_unique=True)
        mean = float(self.values[both].sum()) / max(len(rows), 1)
        return mean if mean > 0 else float(self.values.min())

    def clause(self) -> _Part | None:
        """The best clause on the rows that are left."""
        start = Region(self.ground, None, self.taken, self.active)
        narrow = choices(start, self.goal, further=False)
        if self.promoted:
            narrow += [given_choice(start, self.goal, Token(self.promoted, 1))]
            narrow.sort(key=lambda choice: -choice.worth)
        empty = _Part((), start)
        seeds = narrow[:BEAM]
        if self.goal.value(narrow[0].hits, narrow[0].matched) < _ENOUGH:
            wide = choices(start, replace(self.goal, beta=_RECALL), further=False)
            seeds += [each for each in wide[:BEAM] if all(each.atom != seed.atom for seed in seeds)]
        frontier = [self.pruned(part) for seed in seeds if (part := self.add(empty, seed)) is not None]
        if not frontier:
            return None
        best = max(frontier, key=lambda part: part.worth)
        for _ in range(MAX_ATOMS - 1):
            if self.value(best) > _ENOUGH:
                break
            grown = [
                made for part in frontier if self.best_case(part) > best.worth for made in self.grow(part)
            ]
            grown.sort(key=lambda part: -part.worth)
            frontier = [self.pruned(self.refit(part)) for part in grown[:BEAM]]
            if not frontier:
                break
            top = max(frontier, key=lambda part: part.worth)
            if top.worth <= best.worth:
                break
            best = top
        return best

    def value(self, part: _Part) -> float:
        """F1 with a conjunction."""
        return self.goal.value(part.hits, float(part.region.size))

    def best_case(self, part: _Part) -> float:
        """What a conjunction with one atom more is worth at most: if it kept the active rows alone."""
        price = self.goal.penalty * (_complexity(part.atoms) + 1)
        return self.goal.value(part.hits, part.hits) - price

    def grow(self, part: _Part) -> list[_Part]:
        """A conjunction with one atom more, in its two best ways."""
        found = []
        ranked = choices(part.region, self.goal, further=True)
        for choice in [each for each in ranked if not _asked(each.atom, part.atoms)][:2]:
            made = self.add(part, choice)
            if made is not None and made.worth > part.worth:
                found.append(made)
        return found

    def add(self, part: _Part, choice: Choice) -> _Part | None:
        """A conjunction with this atom more."""
        atom, region = choice.atom, part.region
        active = region.active[self.matcher.holds(atom, region.active)]
        if region.rows is None:
            rows = self.left(self.matcher.atom_rows(atom))
        else:
            rows = region.rows[self.matcher.holds(atom, region.rows)]
        if len(active) == 0:
            return None
        losses = (*part.losses, max(choice.loss, 0.0))
        return self.part((*part.atoms, atom), losses, rows, active)

    def part(
        self,
        atoms: tuple[Atom, ...],
        losses: tuple[float, ...],
        rows: Int[np.ndarray, "left_row"],
        active: Int[np.ndarray, "active_row"],
    ) -> _Part:
        """A conjunction that holds on these rows."""
        hits = max(len(active) - sum(losses), 0.0)
        worth = self.goal.value(hits, float(len(rows))) - self.goal.penalty * _complexity(atoms)
        return _Part(atoms, Region(self.ground, rows, self.taken, active), losses, hits, worth)

    def pruned(self, part: _Part) -> _Part:
        """The conjunction without the words to have come before that it does as well without.

        Words that come together count twice when a set is chosen.
        """
        for place, atom in enumerate(part.atoms):
            if not isinstance(atom, Within) or atom.negated or len(atom.words) == 1:
                continue
            rows, active = part.region.rows, part.region.active
            assert rows is not None
            of_rows, of_active = self.matcher.near_words(atom, rows), self.matcher.near_words(atom, active)
            # How many rows have which of the words near them.
            matched, hits = np.bincount(of_rows, minlength=256), np.bincount(of_active, minlength=256)
            kept = (1 << len(atom.words)) - 1
            best = part
            for number in range(len(atom.words))[::-1]:
                fewer = kept & ~(1 << number)
                if not fewer:
                    continue
                some = np.arange(256) & fewer != 0
                words = tuple(word for which, word in enumerate(atom.words) if fewer >> which & 1)
                atoms = (*part.atoms[:place], replace(atom, words=words), *part.atoms[place + 1 :])
                left = max(float(hits[some].sum()) - sum(part.losses), 0.0)
                worth = self.goal.value(left, float(matched[some].sum())) - self.goal.penalty * _complexity(
                    atoms
                )
                if worth >= best.worth and left:
                    best, kept = replace(best, atoms=atoms, hits=left, worth=worth), fewer
            if best is not part:
                part = self.part(
                    best.atoms, part.losses, rows[of_rows & kept != 0], active[of_active & kept != 0]
                )
        return part

    def made(self, atoms: tuple[Atom, ...], losses: tuple[float, ...]) -> _Part | None:
        """A conjunction from scratch."""
        if atoms in self.known:
            return self.known[atoms]
        rows = self.left(self.matcher.clause_rows(Clause(atoms)))
        active = self.active
        for atom in atoms:
            active = active[self.matcher.holds(atom, active)]
        self.known[atoms] = self.part(atoms, losses, rows, active) if len(active) else None
        return self.known[atoms]

    def left(self, rows: Int[np.ndarray, "row"]) -> Int[np.ndarray, "left_row"]:
        """Those rows that no clause has taken."""
        return rows if self.taken is None else rows[~self.is_taken[rows]]

    def refit(self, part: _Part) -> _Part:
        """The conjunction with each atom that has words chosen again, the others being as they are."""
        # The last one has just been chosen so.
        for atom in part.atoms[:-1]:
            if atom.negated or not isinstance(atom, Token | Within | Spelling):
                continue
            kept = [place for place, other in enumerate(part.atoms) if other is not atom]
            others = tuple(part.atoms[place] for place in kept)
            if isinstance(atom, Spelling) and _asked(Token(("",)), others):
                continue
            rest = self.made(others, tuple(part.losses[place] for place in kept))
            if rest is None:
                continue
            if isinstance(atom, Within):
                chosen = within_choices(rest.region, self.goal, False)
            else:
                offset = atom.offset if isinstance(atom, Token) else 0
                chosen = token_choices(rest.region, self.goal, offset, False)
            for choice in chosen:
                new = self.add(rest, choice)
                if new is not None and new.worth > part.worth:
                    part = new
        return part


def _asked(atom: Atom, atoms: tuple[Atom, ...]) -> bool:
    """Whether a conjunction looks at the words of this place already."""
    places = {(type(other), getattr(other, "offset", 0)) for other in atoms}
    return isinstance(atom, Token | Within) and (type(atom), getattr(atom, "offset", 0)) in places


def _place(atom: Atom) -> tuple[bool, bool]:
    """Where an atom stands in its clause: the token itself first, negations last."""
    itself = isinstance(atom, Spelling | Concept) or (isinstance(atom, Token) and atom.offset == 0)
    return atom.negated, not itself


def _complexity(atoms: tuple[Atom, ...]) -> float:
    return Clause(atoms).complexity
