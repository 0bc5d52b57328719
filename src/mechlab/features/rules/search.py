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

import math
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

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
from mechlab.features.split import Split
from mechlab.features.text import Text

MAX_CLAUSES, MAX_ATOMS, BEAM = 6, 3, 3
_PRICE, _PRICE_RARE = 0.003, 0.6
"""Price of one unit of complexity in F1, and what it grows by divided by the active rows."""
_RECALL = 3.0
_ENOUGH = 0.98
_PURE, _PURE_FEWEST = 0.8, 5
OFTEN = 2000
"""Active rows that are enough to learn from."""
_PARTS = 7_919  # so that the parts do not follow the division of the user, who begins with seed 0


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
    grounds = _Grounds(index.text, concepts or {}, seed)
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


class _Grounds:
    """The text, and parts of its documents: 1/2, 1/4, …; what is active often is learnt on a part."""

    def __init__(self, text: Text, concepts: Mapping[str, Collection[str]], seed: int) -> None:
        self.text, self.concepts, self.seed = text, concepts, seed
        self.whole = Ground(text, concepts)
        self.parts: dict[int, tuple[Ground, Bool[np.ndarray, "row"], Int[np.ndarray, "row"]]] = {}
        self.lock = threading.Lock()

    def part(
        self, rows: Int[np.ndarray, "entry"], values: Float[np.ndarray, "entry"]
    ) -> tuple[Ground, Int[np.ndarray, "part_entry"], Float[np.ndarray, "part_entry"]]:
        """A ground on which a feature is active often enough, and its entries there."""
        rows, values = np.asarray(rows), np.asarray(values)
        for halvings in range(int(math.log2(max(len(rows) / OFTEN, 1))), 0, -1):
            ground, keep, number = self.halved(halvings)
            kept = keep[rows]
            if kept.sum() >= OFTEN / 2:
                return ground, number[rows[kept]], values[kept]
        return self.whole, rows, values

    def halved(self, times: int) -> tuple[Ground, Bool[np.ndarray, "row"], Int[np.ndarray, "row"]]:
        """The ground, which rows of the text are in it, and their numbers there."""
        with self.lock:
            if times not in self.parts:
                keep = Split(0.5**times, self.seed + _PARTS).explains(self.text.document)
                number = (np.cumsum(keep) - 1).astype(np.int32)
                self.parts[times] = Ground(self.text.select(keep), self.concepts), keep, number
            return self.parts[times]


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
        self.taken, self.active = None, self.rows
        found: list[tuple[Atom, ...]] = []
        while len(found) < MAX_CLAUSES and len(self.active):
            part = self.clause() if found or first is None else first
            if part is None or (found and part.worth <= self.goal.value(0.0, 0.0)):
                break
            found.append(part.atoms)
            self.take(part)
        price = self.goal.penalty * sum(map(_complexity, found))
        return found, self.goal.value(0.0, 0.0) - price

    def pure(self) -> _Part | None:
        """The words on which the feature is nearly always active, when they are a part of its rows.

        A feature with several meanings is else explained by words that they share.
        """
        hits, seen = Region(self.ground, None, None, self.rows).here
        words = np.flatnonzero(hits >= np.maximum(_PURE * seen, _PURE_FEWEST))
        if not 0.1 < hits[words].sum() / len(self.rows) < 0.95:
            return None
        words = words[np.argsort(-hits[words], kind="stable")][:MAX_WORDS]
        self.goal = replace(self.goal, hits=0.0, matched=0.0)
        self.taken, self.active = None, self.rows
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
        self.active = self.left(self.active)
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
        if narrow[0].worth < _ENOUGH:
            wide = choices(start, replace(self.goal, beta=_RECALL), further=False)
            seeds += [each for each in wide[:BEAM] if all(each.atom != seed.atom for seed in seeds)]
        frontier = [self.pruned(part) for seed in seeds if (part := self.add(empty, seed)) is not None]
        if not frontier:
            return None
        best = max(frontier, key=lambda part: part.worth)
        for _ in range(MAX_ATOMS - 1):
            if best.worth > _ENOUGH:
                break
            grown = [made for part in frontier for made in self.grow(part)]
            grown.sort(key=lambda part: -part.worth)
            frontier = [self.pruned(self.refit(part)) for part in grown[:BEAM]]
            if not frontier:
                break
            top = max(frontier, key=lambda part: part.worth)
            if top.worth <= best.worth:
                break
            best = top
        return best

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
            if not isinstance(atom, Within):
                continue
            best = atom
            for word in atom.words[::-1]:
                if len(best.words) > 1:
                    fewer = replace(best, words=tuple(each for each in best.words if each != word))
                    atoms = (*part.atoms[:place], fewer, *part.atoms[place + 1 :])
                    made = self.made(atoms, part.losses)
                    if made is not None and made.worth >= part.worth:
                        part, best = made, fewer
        return part

    def made(self, atoms: tuple[Atom, ...], losses: tuple[float, ...]) -> _Part | None:
        """A conjunction from scratch."""
        rows = self.left(self.matcher.clause_rows(Clause(atoms)))
        active = self.active
        for atom in atoms:
            active = active[self.matcher.holds(atom, active)]
        return self.part(atoms, losses, rows, active) if len(active) else None

    def left(self, rows: Int[np.ndarray, "row"]) -> Int[np.ndarray, "left_row"]:
        """Those rows that no clause has taken."""
        return rows if self.taken is None else rows[~self.is_taken[rows]]

    def refit(self, part: _Part) -> _Part:
        """The conjunction with each atom that has words chosen again, the others being as they are."""
        for atom in part.atoms:
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
