"""Teachers: whoever knows what a feature does and answers questions about it, one by one.

A question costs one query; an edit, which is two texts, costs two. Activations are per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from mechlab.errors import MechlabError, near
from mechlab.features.investigate.fragments import Fragments, Passage
from mechlab.features.rules import Matcher, Rule
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary

PLAIN_TOOLS = ("activation", "edit", "example", "random")
"""What every teacher answers: a text of the student's, a text beside a changed one, a passage of the
corpus on which the feature is active, any passage of the corpus."""


@dataclass(frozen=True)
class Query:
    """A question.

    Attributes:
        tool: "activation", "edit", "example", "random"; of a model's feature also "ablation",
            "steering", "patching".
        passage: token ids without BOS; empty for an example.
        other: the changed text of an edit, or the text that patching takes the activation from.
    """

    tool: str
    passage: Passage = ()
    other: Passage = ()

    @property
    def cost(self) -> int:
        """Queries that it counts as."""
        return 2 if self.tool == "edit" else 1


@dataclass(frozen=True, eq=False)
class Answer:
    """What a teacher says to a query.

    Attributes:
        query: the question; of an example with the passage filled in.
        activation: of the feature, on every token of the passage.
        other: likewise on the other text; empty without one.
        effect: what ablation, steering or patching did; plain JSON values.
    """

    query: Query
    activation: Float[np.ndarray, "token"]
    other: Float[np.ndarray, "other_token"] = field(default_factory=lambda: np.zeros(0))
    effect: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> list[tuple[Passage, Float[np.ndarray, "_"]]]:
        """Every text of the answer with its activations."""
        both = [(self.query.passage, self.activation), (self.query.other, self.other)]
        return [(passage, values) for passage, values in both if len(values)]


@runtime_checkable
class Teacher(Protocol):
    """Answers queries and counts them."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What tokens say."""
        ...

    @property
    def tools(self) -> tuple[str, ...]:
        """What can be asked."""
        ...

    @property
    def asked(self) -> int:
        """What the queries so far cost."""
        ...

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers in order. MechlabError for a tool it lacks or a text it cannot read."""
        ...

    def activations(self, passages: Sequence[Passage]) -> list[Float[np.ndarray, "_"]]:
        """The truth, which costs nothing: for quizzes."""
        ...


class Corpus:
    """Examples that a teacher can show: each passage once, then from the start again.

    Args:
        fragments: the corpus.
        active: True on passages on which the feature is active.
    """

    def __init__(self, fragments: Fragments, active: Sequence[int], generator: np.random.Generator) -> None:
        self.fragments = fragments
        self._orders = {
            "example": generator.permutation(np.array(active, np.int64)).tolist(),
            "random": generator.permutation(len(fragments)).tolist(),
        }
        self._next = {"example": 0, "random": 0}

    def show(self, tool: str) -> Passage:
        """The next passage. MechlabError when the feature is active on none."""
        order = self._orders[tool]
        if not order:
            raise MechlabError("feature is active nowhere in the corpus", None, "give more documents")
        at = self._next[tool]
        self._next[tool] = at + 1
        return self.fragments.passages[order[at % len(order)]]


class RuleTeacher:
    """A planted rule that answers for itself.

    Args:
        rule: the truth.
        fragments: the corpus that examples come from.
        seed: decides which.
        matcher: of ``fragments.text``, where there is one already.
    """

    tools: tuple[str, ...] = PLAIN_TOOLS

    def __init__(
        self, rule: Rule, fragments: Fragments, *, seed: int = 0, matcher: Matcher | None = None
    ) -> None:
        self.rule, self.vocabulary, self.asked = rule, fragments.vocabulary, 0
        rows, _ = (matcher or Matcher(fragments.text)).rows(rule)
        active = np.unique(fragments.text.passage[rows]).tolist()
        self._corpus = Corpus(fragments, active, np.random.default_rng(seed))

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """See ``Teacher``."""
        answers = answered(self, self._corpus, queries)
        self.asked += sum(query.cost for query in queries)
        return answers

    def activations(self, passages: Sequence[Passage]) -> list[Float[np.ndarray, "_"]]:
        """See ``Teacher``."""
        text = text_of([list(each) for each in passages], self.vocabulary)
        predicted = Matcher(text).predict(self.rule)
        return list(np.split(predicted, np.cumsum([len(each) for each in passages])[:-1]))


def answered(teacher: Teacher, corpus: Corpus, queries: Sequence[Query]) -> list[Answer]:
    """Answers to queries of the plain tools; whoever asks counts them."""
    filled: list[Query] = []
    for query in queries:
        if query.tool not in PLAIN_TOOLS:
            raise MechlabError("teacher has no such tool", query.tool, near(query.tool, teacher.tools))
        shows = query.tool in ("example", "random")
        filled.append(replace(query, passage=corpus.show(query.tool)) if shows else query)
        check_passage(filled[-1].passage, teacher.vocabulary)
        if query.tool == "edit":
            check_passage(query.other, teacher.vocabulary)
    passages = [each for query in filled for each in (query.passage, query.other) if each]
    values = iter(teacher.activations(passages) if passages else [])
    return [
        Answer(query, next(values), next(values)) if query.other else Answer(query, next(values))
        for query in filled
    ]


def check_passage(passage: Passage, vocabulary: Vocabulary) -> None:
    """MechlabError for a text without tokens, or with one that the vocabulary lacks."""
    if not passage:
        raise MechlabError("text to ask about is empty", None, "give at least one token")
    wrong = next((token for token in passage if not 0 <= token < len(vocabulary)), None)
    if wrong is not None:
        raise MechlabError("token does not exist", wrong, f"give ids below {len(vocabulary)}")


class NoisyTeacher:
    """A teacher some of whose answers are wrong: each token's activity is flipped with one probability.

    An active token is said to have activation 0, a silent one the mean of what was active so far (1
    before that). Effects of ablation, steering and patching are passed on as they are.

    Raises MechlabError for a rate outside 0 to 1.
    """

    def __init__(self, teacher: Teacher, rate: float, *, seed: int = 0) -> None:
        if not 0 <= rate <= 1:
            raise MechlabError("rate of wrong answers is out of range", rate, "give a number from 0 to 1")
        self.teacher, self.rate = teacher, rate
        self.vocabulary, self.tools = teacher.vocabulary, teacher.tools
        self._generator = np.random.default_rng(seed)
        self._sum, self._count = 0.0, 0

    @property
    def asked(self) -> int:
        """Queries so far."""
        return self.teacher.asked

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """See ``Teacher``."""
        return [
            replace(answer, activation=self._flipped(answer.activation), other=self._flipped(answer.other))
            for answer in self.teacher.ask(queries)
        ]

    def activations(self, passages: Sequence[Passage]) -> list[Float[np.ndarray, "_"]]:
        """The truth, without wrong answers."""
        return self.teacher.activations(passages)

    def _flipped(self, values: Float[np.ndarray, "token"]) -> Float[np.ndarray, "token"]:
        active = values > 0
        self._sum, self._count = self._sum + float(values.sum()), self._count + int(active.sum())
        typical = self._sum / self._count if self._count else 1.0
        flipped = self._generator.random(len(values)) < self.rate
        return np.where(flipped, np.where(active, 0.0, typical), values)
