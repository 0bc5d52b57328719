"""What has not been tried of a rule: words where it wants its word, and surroundings in which it fires.

Rules that nobody has thought of cannot be told apart by the information gain, so what a text says
about untried things is counted beside it, as the entropy of a yes-no answer each:

- a word that never stood where the rest of the best rule holds may belong to its words (with the
  share of tried words that did, by Laplace's rule);
- a previous word, or being in quotes, in brackets or a repetition, with which the rule was never
  seen to fire may be an exception.

Words count by what they would matter in the corpus: the share of all firings that would be theirs,
or that they would take away.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

from mechlab.features.investigate.facts import Facts, Hypothesis, rows_of
from mechlab.features.investigate.fragments import Fragments
from mechlab.features.investigate.posterior import binary_entropy
from mechlab.features.rules import Atom, Inside, Repeats, Spelling, Token

_SURROUNDINGS: tuple[Atom, ...] = (Inside("quotes"), Inside("brackets"), Repeats())
# Chance that a state of the surroundings is an exception; that a previous word is, at most.
_EXCEPTION, _LEAD = 0.15, 0.15


class Gaps:
    """Gaps in what is known of one rule.

    Attributes:
        own: words on which it fires, as it should.

    Args:
        rule: the rule believed most.
        seen: the passages answered for.
        labels: rows of them on which the feature was active.
        corpus: what texts are quoted from.
    """

    def __init__(self, rule: Hypothesis, seen: Facts, labels: int, corpus: Fragments) -> None:
        self.rule, self._corpus = rule, corpus
        own = {word for atoms in rule for atom in atoms for word in getattr(atom, "words", ())}
        room = _room(rule, seen)
        fires = seen.rule(rule)
        tried = {word for word, rows in seen.words.items() if rows & room}
        share = binary_entropy(min(0.5, (max(len(own) - 1, 0) + 0.5) / (len(tried) + 20)))
        self._news = self._word_news(tried, share)
        self.own = sorted(word for word, rows in seen.words.items() if rows & fires & labels)
        self._led = {word for word, rows in seen.words.items() if seen.moved(rows, -1) & fires}
        self._unseen: list[Atom] = []
        for atom in _SURROUNDINGS:
            bits = seen.bits(atom)
            if not fires & bits:
                self._unseen.append(atom)
            if not fires & ~bits:
                self._unseen.append(type(atom)(**{**vars(atom), "negated": True}))

    def _word_news(self, tried: set[str], news: float) -> dict[str, float]:
        """Untried word → nats to learn about it, weighted."""
        facts, tokens = self._corpus.facts, self._corpus.text.tokens
        room = rows_of(_room(self.rule, facts), facts.n)
        fires = max(facts.rule(self.rule).bit_count(), 1)
        texts = self._corpus.vocabulary.texts
        counts = np.bincount(tokens[room], minlength=len(texts))
        # A word that the corpus never has there may stand there in another.
        return {
            texts[token]: news * float(counts[token] + 0.1) / float(counts[token] + 0.1 + fires)
            for token in self._corpus.held.tolist()
            if texts[token] not in tried
        }

    @functools.cached_property
    def words(self) -> list[str]:
        """Untried words, those that would matter most first."""
        return sorted(self._news, key=lambda word: (-self._news[word], word))

    @functools.cached_property
    def _lead_shares(self) -> dict[str, float]:
        facts, text = self._corpus.facts, self._corpus.text
        fires = rows_of(facts.rule(self.rule), facts.n)
        before = text.tokens[np.flatnonzero(fires & ~text.starts) - 1]
        words, counts = np.unique(before, return_counts=True)
        total = max(int(fires.sum()), 1)
        shares = zip(words.tolist(), counts.tolist(), strict=True)
        named = ((text.vocabulary.texts[token], count / total) for token, count in shares)
        return {word: share for word, share in named if word not in self._led}

    @functools.cached_property
    def leads(self) -> list[str]:
        """Previous words with which the rule was never seen to fire, the commonest in the corpus first."""
        return sorted(self._lead_shares, key=lambda word: (-self._lead_shares[word], word))

    def news(self, facts: Facts) -> Float[np.ndarray, "passage"]:
        """Nats to learn about gaps, for each passage."""
        room, fires = _room(self.rule, facts), facts.rule(self.rule)
        values = np.zeros(facts.n)
        exception = binary_entropy(_LEAD)
        for word, rows in facts.words.items():
            here = rows & room
            if here and word in self._news:
                values[rows_of(here, facts.n)] += self._news[word]
            share = self._lead_shares.get(word)
            led = facts.moved(rows, -1) & fires if share else 0
            if share and led:
                values[rows_of(led, facts.n)] += exception * share
        bounds = np.array(facts.bounds)
        found: np.ndarray = np.add.reduceat(values, bounds[:-1])
        for atom in self._unseen:
            there = rows_of(facts.bits(atom) & fires, facts.n)
            found += np.logical_or.reduceat(there, bounds[:-1]) * binary_entropy(_EXCEPTION)
        return found


def _room(rule: Hypothesis, facts: Facts) -> int:
    """Rows on which a clause holds but for its own word."""
    room = 0
    for atoms in rule:
        room |= facts.clause(tuple(atom for atom in atoms if not _is_own(atom)))
    return room


def _is_own(atom: Atom) -> bool:
    here = isinstance(atom, Spelling) or (isinstance(atom, Token) and atom.offset == 0)
    return here and not atom.negated
