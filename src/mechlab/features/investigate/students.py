"""Students that learn rules: one that asks, one that is shown examples, one that reads along.

All three learn alike: they keep the most probable rules of the grammar (``search``) for the
activations they know of, and differ only in where these come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.investigate.facts import Facts, Hypothesis, bits_of, hypothesis_of, rows_of
from mechlab.features.investigate.fragments import Fragments, Passage, words_of
from mechlab.features.investigate.gaps import Gaps
from mechlab.features.investigate.posterior import binary_entropy, flip_rate, information, likelihoods
from mechlab.features.investigate.proposals import Proposer
from mechlab.features.investigate.quiz import Quiz, QuizAnswers
from mechlab.features.investigate.search import Particles, particles
from mechlab.features.investigate.teachers import Answer, Query
from mechlab.features.rules import Clause, Rule, parse_rule

_NOTHING = Particles((), np.zeros(0), np.zeros(0), (), 0)
# Every so many turns the search is thorough, even when nothing was a surprise.
_THOROUGH = 4
# What a surprising example is worth, in nats, beside the news that there is one.
_SURPRISE = 1.0


@runtime_checkable
class Student(Protocol):
    """Learns about one feature by queries and answers for what it has learned."""

    name: str

    def ask(self, budget: int) -> list[Query]:
        """Queries for this turn that cost ``budget`` at most."""
        ...

    def learn(self, answers: Sequence[Answer]) -> None:
        """Take in the answers of a turn."""
        ...

    def explain(self) -> Explanation | None:
        """What the feature does, in a sentence; None when the student has no idea."""
        ...

    def answer(self, quiz: Quiz) -> QuizAnswers:
        """Probabilities for a quiz."""
        ...


class PassiveStudent:
    """Is shown random examples: by turns a passage on which the feature is active, and any passage.

    Args:
        fragments: the corpus, for its vocabulary.
        feature: number that goes into the explanation.
    """

    name = "passive"

    def __init__(self, fragments: Fragments, *, feature: int = 0) -> None:
        self.fragments, self.feature = fragments, feature
        self.vocabulary = fragments.vocabulary
        self.facts, self.labels = Facts(), 0
        self.values: list[Float[np.ndarray, "_"]] = []
        self.seen: list[Passage] = []
        self.particles = _NOTHING
        self._asked, self._turn = 0, 0
        self._quiz: tuple[Quiz, Facts, list[int]] | None = None

    def ask(self, budget: int) -> list[Query]:
        """See ``Student``."""
        queries = [Query(("example", "random")[(self._asked + each) % 2]) for each in range(budget)]
        self._asked += budget
        return queries

    def learn(self, answers: Sequence[Answer]) -> None:
        """See ``Student``."""
        start, self._turn = self.facts.n, self._turn + 1
        for answer in answers:
            for passage, values in answer.shown:
                self.labels |= bits_of(values > 0) << self.facts.n
                self.facts.add(words_of(passage, self.vocabulary))
                self.values.append(values)
                self.seen.append(passage)
        thorough = self._turn % _THOROUGH == 1 or self._surprised(start)
        self.particles = particles(self.facts, self.labels, self.particles.rules, thorough=thorough)

    def _surprised(self, start: int) -> bool:
        """Whether more answers from row ``start`` on than the usual were not the best rule's."""
        if not self.particles.rules:
            return True
        errors = (self.facts.rule(self.particles.rules[0]) ^ self.labels) >> start
        usual = flip_rate(self.particles.errors, start) * (self.facts.n - start)
        return errors.bit_count() > 1.5 * usual

    def explain(self) -> Explanation | None:
        """The most probable rule; the strength of a clause is the mean activation where it holds."""
        if not self.particles.rules:
            return None
        values = np.concatenate(self.values)
        clauses = []
        for atoms in self.particles.rules[0]:
            here = values[rows_of(self.facts.clause(atoms), self.facts.n)]
            mean = float(here.mean()) if len(here) else 0.0
            clauses.append(Clause(atoms, mean if mean > 0 else 1.0))
        rule = Rule(tuple(clauses))
        about = {"student": self.name, "texts": len(self.seen), "weight": float(self.particles.weights[0])}
        return Explanation(self.feature, f"investigate:{self.name}", rule.sentence(), rule, about)

    def answer(self, quiz: Quiz) -> QuizAnswers:
        """Posterior predictive of the items; choices by likelihood, then by likeness to the best rule."""
        if self._quiz is None or self._quiz[0] is not quiz:
            facts = Facts(words_of(each, self.vocabulary) for each in quiz.passages)
            rows = [start + int(at) for start, at in zip(facts.bounds[:-1], quiz.at, strict=True)]
            self._quiz = quiz, facts, rows
        _, facts, rows = self._quiz
        belief = np.full(len(rows), 0.5)
        if self.particles.rules:
            table = np.stack([rows_of(facts.rule(rule), facts.n)[rows] for rule in self.particles.rules])
            belief = self.particles.weights @ table
        return QuizAnswers(belief, tuple(self._chosen(choices) for choices in quiz.choices))

    def _chosen(self, choices: Sequence[str]) -> Float[np.ndarray, "choice"]:
        if not self.particles.rules:
            return np.full(len(choices), 1 / len(choices))
        rules = [_readable(text) for text in choices]
        likely, corpus = likelihoods(self.facts.n), self.fragments.facts
        best = corpus.rule(self.particles.rules[0])
        scores = np.full(len(choices), -np.inf)
        for place, rule in enumerate(rules):
            if rule is not None:
                errors = (self.facts.rule(rule) ^ self.labels).bit_count()
                unlike = (corpus.rule(rule) ^ best).bit_count() / corpus.n
                scores[place] = likely[errors] - unlike
        if not np.isfinite(scores).any():
            return np.full(len(choices), 1 / len(choices))
        chosen = np.exp(scores - scores.max())
        shares: np.ndarray = chosen / chosen.sum()
        return shares


def _readable(text: str) -> Hypothesis | None:
    try:
        return hypothesis_of(parse_rule(text))
    except MechlabError:
        return None


class BorrowedStudent(PassiveStudent):
    """Reads the transcript of a student that asked, without having asked itself.

    Args:
        transcript: the answers of each turn.
    """

    name = "borrowed"

    def __init__(
        self, fragments: Fragments, transcript: Sequence[Sequence[Answer]], *, feature: int = 0
    ) -> None:
        super().__init__(fragments, feature=feature)
        self._turns = [list(turn) for turn in transcript]

    def ask(self, budget: int) -> list[Query]:
        """The next turn of the transcript, asked again."""
        return [answer.query for answer in self._turns.pop(0)] if self._turns else []


class RuleStudent(PassiveStudent):
    """Asks what tells it most about which rule is true.

    Texts are chosen one after the other by the information gain of the batch about the rule
    (``posterior.information``) plus what there is to learn about words and surroundings that were not
    tried (``gaps``). An example is asked for instead where it is expected to tell more: the share of
    examples that surprise is estimated by Laplace's rule of succession.

    Args:
        fragments: the corpus it may quote from.
        seed: decides the texts it considers.
    """

    name = "active"

    def __init__(self, fragments: Fragments, *, feature: int = 0, seed: int = 0) -> None:
        super().__init__(fragments, feature=feature)
        self.generator = np.random.default_rng(seed)
        self.proposer = Proposer(fragments, self.generator)
        self._gaps: Gaps | None = None
        self._examples, self._surprises = 0, 0.0

    def ask(self, budget: int) -> list[Query]:
        """See ``Student``."""
        if not self.particles.rules:
            return [Query("example")] * min(budget, 1) + [Query("example")] * (budget - 1)
        queries: list[Query] = []
        for passage, gain in self.choose(budget):
            # One example a turn at most: its news is not known to be of another kind than the last one's.
            example = not queries and self._example_gain() > gain
            queries.append(Query("example") if example else Query("activation", passage))
        return queries + [Query("example")] * (budget - len(queries))

    def _example_gain(self) -> float:
        """Nats that an example is expected to tell, which is nothing unless it surprises."""
        missing = (self._surprises + 1) / (self._examples + 2)
        return binary_entropy(missing) + missing * _SURPRISE

    def learn(self, answers: Sequence[Answer]) -> None:
        """See ``Student``."""
        believed = self.particles.rules[:1]
        for answer in answers:
            if answer.query.tool == "example" and believed:
                facts = Facts([words_of(answer.query.passage, self.vocabulary)])
                surprised = facts.rule(believed[0]) != bits_of(answer.activation > 0)
                self._examples += 1
                # A surprise long ago, since explained, says little about the next example.
                self._surprises = self._surprises * 0.7 + surprised
        super().learn(answers)

    def choose(self, count: int) -> list[tuple[Passage, float]]:
        """The texts that together tell most, chosen one by one, with the nats that each adds."""
        if count <= 0:
            return []
        candidates = [each for each in self._candidates() if each not in self.seen]
        facts = Facts(words_of(each, self.vocabulary) for each in candidates)
        active = np.stack([rows_of(facts.rule(rule), facts.n) for rule in self.particles.rules])
        table = active.astype(np.float32)
        distance = np.empty((len(candidates), len(table), len(table)), np.float32)
        for place, (start, stop) in enumerate(itertools.pairwise(facts.bounds)):
            here = table[:, start:stop]
            total = here.sum(1)
            distance[place] = total[:, None] + total[None] - 2 * here @ here.T
        news = self._news(facts, candidates)
        flips = flip_rate(self.particles.errors, self.facts.n)
        chosen: list[int] = []
        gains: list[float] = []
        sure = 0.0
        so_far = np.zeros(distance.shape[1:], np.float32)
        for _ in range(min(count, len(candidates))):
            told = information(distance + so_far, self.particles.weights, flips)
            gain = told - sure + news
            gain[chosen] = -np.inf
            best = int(np.argmax(gain))
            chosen.append(best)
            gains.append(float(gain[best]))
            sure = float(told[best])
            so_far += distance[best]
        return [(candidates[each], gain) for each, gain in zip(chosen, gains, strict=True)]

    def _candidates(self) -> list[Passage]:
        rows = rows_of(self.labels, self.facts.n)
        starts = np.array(self.facts.bounds)
        hits = np.flatnonzero(rows)[-60:]
        where = np.searchsorted(starts, hits, "right") - 1
        active = [(self.seen[int(p)], int(r - starts[p])) for p, r in zip(where, hits, strict=True)]
        self._gaps = Gaps(self.particles.rules[0], self.facts, self.labels, self.fragments)
        return self.proposer.candidates(self.particles, active, self._gaps)

    def _news(self, facts: Facts, candidates: Sequence[Passage]) -> Float[np.ndarray, "candidate"]:
        """Nats to learn from each candidate about words and surroundings that were not tried."""
        assert self._gaps is not None
        return self._gaps.news(facts)
