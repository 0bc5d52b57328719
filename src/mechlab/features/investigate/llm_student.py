"""A language model as the student of a feature: it asks by naming a tool and writing a text, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.investigate.fragments import Passage
from mechlab.features.investigate.quiz import Quiz, QuizAnswers
from mechlab.features.investigate.teachers import Answer, Query
from mechlab.features.llm.client import Message, Reply, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.schema import STRING, Malformed, listing, parse, record
from mechlab.features.vocabulary import Vocabulary

ROLE = (
    "You study one feature of a language model: a unit that is active on some tokens of a text and silent "
    "on the others. You may ask for its activation on texts of your choice. Find out what it responds to."
)
TOOLS: Mapping[str, str] = {
    "example": "a text of the corpus on which it is active (text and other stay empty)",
    "random": "any text of the corpus (text and other stay empty)",
    "activation": "its activation on every token of text",
    "edit": "its activation on text and on other, a changed text; counts as two queries",
    "ablation": "what removing the feature does to the model's predictions on text",
    "steering": "which next tokens become likelier after text when the feature is added",
    "patching": "what the feature's activation on other does when it is put into text",
}
_ASK, _TELL, _SIT = 600, 200, 1500


class LlmStudent:
    """Asks, explains and answers through a language model.

    Args:
        job: who is asked; the dialogue at temperature 1, the quiz at 0.
        encode: a text as the teacher's tokens; raises MechlabError for a text it cannot read.
        tools: of the teacher.
        feature: number that goes into the explanation.
        seed: another seed is another dialogue.

    Attributes:
        failed: what came to nothing, counted: "query" (a text that cannot be read), and answers of
            the model that were missing or of another form.
    """

    name = "llm"

    def __init__(
        self,
        job: LlmJob,
        vocabulary: Vocabulary,
        encode: Callable[[str], Passage],
        *,
        tools: Sequence[str],
        feature: int = 0,
        seed: int = 0,
    ) -> None:
        self.job, self.vocabulary, self.encode = job, vocabulary, encode
        self.tools, self.feature, self.seed = tuple(tools), feature, seed
        self.transcript: list[str] = []
        self.failed: dict[str, int] = {}
        self._said: tuple[int, Explanation | None] = (-1, None)

    def ask(self, budget: int) -> list[Query]:
        """See ``Student``; what the model asks beyond the budget is cut off."""
        kinds = {name: TOOLS[name] for name in self.tools if name in TOOLS}
        query = record(tool={"type": "string", "enum": list(kinds)}, text=STRING, other=STRING)
        schema = record(queries={"type": "array", "items": query, "minItems": 1, "maxItems": budget})
        told = "\n".join(f"- {name}: {about}" for name, about in kinds.items())
        wanted = f"Tools:\n{told}\n\nAsk up to {budget} queries, as JSON."
        answer = self._json("asking", f"{self._seen()}{wanted}", schema, _ASK, temperature=1.0)
        queries: list[Query] = []
        left = budget
        for each in answer["queries"] if answer else []:
            query_made = self._query(each)
            if query_made is not None and query_made.cost <= left:
                queries.append(query_made)
                left -= query_made.cost
        return queries

    def _query(self, fields: Mapping[str, Any]) -> Query | None:
        tool = fields["tool"]
        if tool in ("example", "random"):
            return Query(tool)
        try:
            other = self.encode(fields["other"]) if tool in ("edit", "patching") else ()
            return Query(tool, self.encode(fields["text"]), other)
        except MechlabError:
            self._fail("query")
            return None

    def learn(self, answers: Sequence[Answer]) -> None:
        """See ``Student``."""
        for answer in answers:
            lines = [f"{answer.query.tool}:"]
            for passage, values in answer.shown:
                tokens = (self.vocabulary.texts[token] for token in passage)
                shown = (f"<<{t}|{v:.3g}>>" if v > 0 else t for t, v in zip(tokens, values, strict=True))
                lines.append("".join(shown))
            if answer.effect:
                lines.append(json.dumps(dict(answer.effect), ensure_ascii=False))
            self.transcript.append("\n".join(lines))

    def explain(self) -> Explanation | None:
        """One sentence; None when the model gave none. Asked once for what is known."""
        if self._said[0] != len(self.transcript):
            wanted = f"{self._seen()}Say in one sentence what the feature responds to, as JSON."
            answer = self._json("explaining", wanted, record(explanation=STRING), _TELL)
            made = None
            if answer and answer["explanation"].strip():
                about = {"queries": len(self.transcript)}
                made = Explanation(
                    self.feature,
                    f"investigate:{self.job.client.model}",
                    answer["explanation"].strip(),
                    None,
                    about,
                )
            self._said = len(self.transcript), made
        return self._said[1]

    def answer(self, quiz: Quiz) -> QuizAnswers:
        """Probabilities for a quiz; 1/2, or equal ones, where the model gave no usable answer."""
        shown = []
        for passage, at in zip(quiz.passages, quiz.at.tolist(), strict=True):
            tokens = [self.vocabulary.texts[token] for token in passage]
            tokens[at] = f"<<{tokens[at]}>>"
            shown.append("".join(tokens))
        percent = {"type": "integer", "minimum": 0, "maximum": 100}
        schema = record(active=listing(percent, len(shown)))
        texts = json.dumps(shown, ensure_ascii=False)
        wanted = (
            f"{self._seen()}How likely is the feature active on the marked token of each text, in percent? "
            f"As JSON.\nTEXTS\n{texts}"
        )
        given = self._json("quiz", wanted, schema, _SIT)
        belief = np.full(len(shown), 0.5) if given is None else np.array(given["active"], np.float64) / 100
        return QuizAnswers(belief, tuple(self._choose(choices) for choices in quiz.choices))

    def _choose(self, choices: Sequence[str]) -> np.ndarray:
        schema = record(choice={"type": "integer", "minimum": 0, "maximum": len(choices) - 1})
        listed = "\n".join(f"{number}: {text}" for number, text in enumerate(choices))
        wanted = f"{self._seen()}Which explanation is the feature's? As JSON.\n{listed}"
        given = self._json("quiz", wanted, schema, _TELL)
        if given is None:
            return np.full(len(choices), 1 / len(choices))
        chosen: np.ndarray = np.eye(len(choices))[given["choice"]]
        return chosen

    def _seen(self) -> str:
        if not self.transcript:
            return ""
        told = "\n\n".join(self.transcript)
        return f"What you know (active tokens are marked, with their activation):\n{told}\n\n"

    def _json(
        self, what: str, text: str, schema: Mapping[str, Any], tokens: int, *, temperature: float = 0.0
    ) -> dict[str, Any] | None:
        messages = (Message("system", ROLE), Message("user", text))
        request = Request(
            messages, self.job.client.model, tokens, temperature=temperature, schema=schema, sample=self.seed
        )
        (reply,) = self.job.run([request])
        if isinstance(reply, Reply):
            try:
                found: dict[str, Any] = parse(reply.text, schema)
                return found
            except Malformed:
                pass
        self._fail(what)
        return None

    def _fail(self, what: str) -> None:
        self.failed[what] = self.failed.get(what, 0) + 1
