"""Texts that a student may ask about, from which those that tell most are chosen.

- passages of the corpus on which rules still believed disagree, and some random ones;
- small edits of what was seen active: a token swapped, dropped or put in before it, the beginning
  cut off, the whole in quotes or brackets, said twice;
- lists of words not asked about yet, laid out so that each stands where the rule believed most
  wants its word: alone, after the word that came before, after a marker, in quotes, said twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mechlab.features.investigate.facts import Atoms, Hypothesis, rows_of
from mechlab.features.investigate.fragments import WIDTH, Fragments, Passage
from mechlab.features.investigate.gaps import Gaps
from mechlab.features.investigate.search import Particles
from mechlab.features.rules import Inside, Token, Within

_DISAGREEING, _RANDOM, _EDITS, _LISTS = 20, 6, 26, 14
_PAIRS = 12


class Proposer:
    """Makes candidates for one student.

    Args:
        fragments: the corpus it may quote from.
        generator: decides everything that is random.
    """

    def __init__(self, fragments: Fragments, generator: np.random.Generator) -> None:
        self.fragments, self.generator = fragments, generator
        self.vocabulary = fragments.vocabulary
        text = fragments.text
        counts = np.bincount(text.tokens, minlength=len(self.vocabulary))
        self._common = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
        self._ids = {self.vocabulary.texts[token]: token for token in reversed(self._common.tolist())}
        self._marks = {mark: token for mark, token in self._ids.items() if mark.strip() in ('"', "(", ")")}

    def candidates(
        self, particles: Particles, active: Sequence[tuple[Passage, int]], gaps: Gaps | None
    ) -> list[Passage]:
        """Distinct passages worth considering.

        Args:
            active: passages seen and a token of each on which the feature was active.
            gaps: what has not been tried of the best rule.
        """
        found = self.random(_RANDOM)
        if particles.rules:
            found += self.disagreeing(particles)
        if active:
            found += [self.edited(*active[int(each)]) for each in self._some(len(active), _EDITS)]
        if gaps is not None:
            found += self.lists(particles.rules[0], gaps)
        return [each for each in dict.fromkeys(found) if each]

    def random(self, count: int) -> list[Passage]:
        """Passages of the corpus."""
        return [self.fragments.passages[int(each)] for each in self._some(len(self.fragments), count)]

    def disagreeing(self, particles: Particles) -> list[Passage]:
        """Passages of the corpus about which pairs of believed rules differ."""
        facts = self.fragments.facts
        found: list[int] = []
        size = len(particles.rules)
        # Flatter than the posterior, so that rules far from the best are met too.
        weights = np.sqrt(particles.weights)
        weights /= weights.sum()
        for _ in range(_PAIRS):
            left, right = self.generator.choice(size, 2, p=weights)
            if left == right:
                continue
            bits = facts.rule(particles.rules[left]) ^ facts.rule(particles.rules[right])
            numbers = self.fragments.holding(rows_of(bits, facts.n)) if bits else np.zeros(0, np.int64)
            found += numbers[self._some(len(numbers), 3)].tolist() if len(numbers) else []
        return [self.fragments.passages[each] for each in found[:_DISAGREEING]]

    def edited(self, passage: Passage, at: int) -> Passage:
        """A small change of a passage near an active token."""
        before, token, after = list(passage[:at]), passage[at], list(passage[at + 1 :])
        kind = int(self.generator.integers(10))
        if kind == 0:
            made = [*before, self._word(), *after]
        elif kind == 1 and before:
            made = [*before[:-1], self._word(), token, *after]
        elif kind == 2 and before:
            gone = int(self.generator.integers(len(before)))
            made = [*before[:gone], *before[gone + 1 :], token, *after]
        elif kind == 3 and before:
            swapped = int(self.generator.integers(len(before)))
            made = [*before[:swapped], self._word(), *before[swapped + 1 :], token, *after]
        elif kind == 4:
            place = int(self.generator.integers(len(before) + 1))
            made = [*before[:place], self._word(), *before[place:], token, *after]
        elif kind == 5:
            made = [*before[int(self.generator.integers(len(before) + 1)) :], token, *after]
        elif kind == 6:
            made = [*self._wrapped([*before[-6:], token, *after[:4]]), *before[:6], token]
        elif kind == 7:
            short = [*before[-5:], token, *after[:3]]
            made = [*short, *short]
        elif kind == 8:
            padding = self.random(1)[0]
            made = [*padding[: int(self.generator.integers(1, 13))], *before[-4:], token, *after]
        else:
            made = [*before, token, *([self._word()] if after else []), *after[1:]]
        return tuple(made[:WIDTH])

    def lists(self, rule: Hypothesis, gaps: Gaps) -> list[Passage]:
        """Words set out where the rule's clauses want theirs."""
        words = [self._ids[word] for word in gaps.words if word in self._ids] or self._common.tolist()
        found: list[Passage] = []
        for each in range(_LISTS):
            atoms = rule[each % len(rule)]
            made = self._laid_out(atoms, self._draw(words[: 3 * WIDTH], WIDTH), each // len(rule), gaps)
            # In quotes or brackets where the rule wants it so, and out of them every third time.
            inside = any(isinstance(atom, Inside) and not atom.negated for atom in atoms)
            if inside != (each % 3 == 2):
                made = self._wrapped(made[: WIDTH - 2])
            found.append(tuple(made[:WIDTH]))
        return found

    def _laid_out(self, atoms: Atoms, words: list[int], style: int, gaps: Gaps) -> list[int]:
        before, marker = _words_at(atoms, Token, -1), _words_at(atoms, Within, None)
        made: list[int] = []
        if style % 4 == 0 and before:
            lead = self._one(before)
            for word in words:
                made += [lead, word]
        elif style % 4 == 1 and gaps.own:
            leads = [self._ids[word] for word in gaps.leads[: WIDTH // 2] if word in self._ids] or words
            for lead in leads:
                made += [lead, self._one(gaps.own)]
        elif marker and style % 4 < 3:
            lead = self._one(marker)
            for place in range(0, len(words), 4):
                made += [lead, *words[place : place + 4]]
        elif style % 4 == 3:
            made = words[: WIDTH // 2] * 2
        else:
            made = words
        return made

    def _one(self, words: Sequence[str]) -> int:
        known = [self._ids[word] for word in words if word in self._ids]
        return known[int(self.generator.integers(len(known)))] if known else self._word()

    def _wrapped(self, tokens: list[int]) -> list[int]:
        marks = [mark for mark in ('"', "(") if mark in self._marks]
        if not marks:
            return tokens
        mark = marks[int(self.generator.integers(len(marks)))]
        close = self._marks.get(")") if mark == "(" else self._marks[mark]
        return [self._marks[mark], *tokens, *([] if close is None else [close])]

    def _word(self) -> int:
        """A word of the corpus, common ones hardly more likely than rare ones."""
        return int(self._common[int(self.generator.integers(len(self._common)))])

    def _draw(self, words: list[int], count: int) -> list[int]:
        return [words[int(each)] for each in self._some(len(words), count)]

    def _some(self, size: int, count: int) -> np.ndarray:
        return self.generator.choice(size, min(size, count), replace=False)


def _words_at(atoms: Sequence[object], kind: type, offset: int | None) -> tuple[str, ...]:
    return next(
        (
            atom.words
            for atom in atoms
            if isinstance(atom, Token | Within)
            and isinstance(atom, kind)
            and not atom.negated
            and (offset is None or getattr(atom, "offset", None) == offset)
        ),
        (),
    )
