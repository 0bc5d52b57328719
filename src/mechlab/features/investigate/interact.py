"""INTERACT: a student learns a document by asking the language model that holds it.

After Kendapadi et al. (2025), *INTERACT: Enabling Interactive, Question-Driven Learning in Large
Language Models* (ACL). A quiz of nine questions (three of each difficulty) is written about every
document and filtered: a question that a student who has seen nothing answers right is dropped and
another one asked for. The dialogue is sampled at temperature 1, the quiz is sat at temperature 0 after
every turn, and every condition is run with several seeds:

| condition | the student has |
|---|---|
| lesson | a lesson of the teacher (static) |
| dynamic | a dialogue in which it asks |
| dynamic + lesson | both |
| borrowed | the dialogue of another seed's student |
| weak teacher | a dialogue with a weaker model that holds the document |
| teacher | the document: the upper bound |
| nothing | nothing: the floor, low by construction |

Dialogues of all documents, conditions and seeds advance together, one batch of requests at a time.
What fails is counted, and never read as an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mechlab.errors import MechlabError
from mechlab.features.investigate import interact_prompts as prompts
from mechlab.features.investigate.curves import Curves
from mechlab.features.investigate.documents import DIFFICULTIES, OPTIONS, Document, Question
from mechlab.features.llm.client import Message, Reply, Request
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.schema import Malformed, parse

TURNS, EACH = 5, 3
_SPEAK, _SIT, _WRITE = 300, 200, 2500
_ROUNDS = 3
Turn = list[prompts.Exchange]


@dataclass(frozen=True, eq=False)
class Interaction:
    """Results of INTERACT.

    Attributes:
        curves: all conditions; a unit is a document, its values means over the seeds.
        quizzes: of each document; fewer than nine questions where the filter left no more.
        dialogues: of each document, the one of the dynamic student of the first seed.
        failed: requests without a usable answer, by what they were for.
    """

    curves: Curves
    quizzes: tuple[tuple[Question, ...], ...]
    dialogues: tuple[tuple[prompts.Exchange, ...], ...]
    failed: dict[str, int]


def interact(
    job: LlmJob,
    documents: Sequence[Document],
    *,
    student: str | None = None,
    weak: str | None = None,
    turns: int = TURNS,
    seeds: Sequence[int] = (0, 1, 2),
) -> Interaction:
    """Run the whole protocol.

    Args:
        job: who answers; its client's model is teacher and quiz writer.
        student: the student's model; the teacher's by default.
        weak: a weaker model as teacher; that condition is left out without one.
        turns: questions that the student may ask.
        seeds: one dialogue of every kind each; at least two.

    Raises MechlabError for too few seeds, or when no document has a question left.
    """
    if len(seeds) < 2:
        raise MechlabError("too few seeds to lend transcripts", len(seeds), "give 2 or more")
    play = _Play(job, student or job.client.model, weak, turns, list(seeds))
    quizzes = play.quizzes(documents)
    kept = [place for place, quiz in enumerate(quizzes) if quiz]
    if not kept:
        raise MechlabError(
            "no question is left in any quiz",
            f"{len(documents)} documents",
            "a student without context knew all",
        )
    chosen = [documents[place] for place in kept]
    left = [quizzes[place] for place in kept]
    values = play.run(chosen, left)
    about = {
        "documents": len(chosen), "left out": len(documents) - len(chosen), "seeds": list(seeds),
        "questions": [len(quiz) for quiz in left], "teacher": job.client.model, "student": play.student,
        "weak": weak, "failed": dict(play.failed),
    }  # fmt: skip
    curves = Curves(
        "document",
        {name: {"quiz": table} for name, table in values.items()},
        {"quiz": 1 / OPTIONS},
        1.0,
        about,
    )
    shown = tuple(tuple(dialogue) for dialogue in play.shown)
    return Interaction(curves, tuple(map(tuple, quizzes)), shown, dict(play.failed))


class _Play:
    """One run of the protocol."""

    def __init__(self, job: LlmJob, student: str, weak: str | None, turns: int, seeds: list[int]) -> None:
        self.job, self.student, self.weak, self.turns, self.seeds = job, student, weak, turns, seeds
        self.teacher = job.client.model
        self.failed: dict[str, int] = {}
        self.shown: list[Turn] = []

    def said(self, what: str, asked: Sequence[tuple[str, tuple[Message, ...], int]]) -> list[str | None]:
        """Free text at temperature 1: (model, messages, sample) → what it said, or None."""
        requests = [
            Request(messages, model, _SPEAK, temperature=1.0, sample=sample)
            for model, messages, sample in asked
        ]
        found = []
        for reply in self.job.run(requests):
            text = reply.text.strip() if isinstance(reply, Reply) else ""
            if not text:
                self.failed[what] = self.failed.get(what, 0) + 1
            found.append(text or None)
        return found

    def parsed(self, what: str, requests: Sequence[Request]) -> list[dict[str, Any] | None]:
        """JSON answers; None where there is none of the form asked for."""
        found: list[dict[str, Any] | None] = []
        for request, reply in zip(requests, self.job.run(requests), strict=True):
            value = None
            if isinstance(reply, Reply) and request.schema is not None:
                try:
                    value = parse(reply.text, request.schema)
                except Malformed:
                    value = None
            if value is None:
                self.failed[what] = self.failed.get(what, 0) + 1
            found.append(value)
        return found

    def sat(
        self, model: str, papers: Sequence[tuple[Document, str, Sequence[Question]]]
    ) -> list[list[bool] | None]:
        """Which questions are answered right by a model that was told something; None without an answer."""
        requests = [
            Request(
                prompts.sitting(document, given, quiz), model, _SIT, schema=prompts.answer_schema(len(quiz))
            )
            for document, given, quiz in papers
        ]
        results: list[list[bool] | None] = []
        for (_, _, quiz), value in zip(papers, self.parsed("quiz", requests), strict=True):
            answers = None if value is None else value["answers"]
            results.append(
                None if answers is None else [a == q.right for a, q in zip(answers, quiz, strict=True)]
            )
        return results

    def quizzes(self, documents: Sequence[Document]) -> list[list[Question]]:
        """A filtered quiz of every document, as many questions as could be found up to nine."""
        kept: list[list[Question]] = [[] for _ in documents]
        seen: list[list[str]] = [[] for _ in documents]
        for turn in range(_ROUNDS):
            wanting = [
                place for place in range(len(documents)) if len(kept[place]) < EACH * len(DIFFICULTIES)
            ]
            fresh: dict[int, list[Question]] = {}
            if turn == 0:
                fresh = {place: list(documents[place].quiz) for place in wanting if documents[place].quiz}
            write = [place for place in wanting if place not in fresh]
            schema = prompts.quiz_schema(EACH)
            requests = [
                Request(
                    prompts.writing(documents[place], EACH, seen[place]), self.teacher, _WRITE,
                    temperature=1.0, schema=schema, sample=turn,
                )
                for place in write
            ]  # fmt: skip
            for place, value in zip(write, self.parsed("quiz writing", requests), strict=True):
                fresh[place] = [] if value is None else prompts.questions(value)
            # Before the filter, so that the quiz is sat as it was filtered.
            fresh = {
                place: [_turned(q, n) for n, q in enumerate(made) if q.text not in seen[place]]
                for place, made in fresh.items()
            }
            asked = [place for place in wanting if fresh[place]]
            results = self.sat(self.student, [(documents[p], "", fresh[p]) for p in asked])
            for place, right in zip(asked, results, strict=True):
                seen[place] += [each.text for each in fresh[place]]
                for question, known in zip(fresh[place], right or [], strict=False):
                    own = [each for each in kept[place] if each.difficulty == question.difficulty]
                    if not known and len(own) < EACH:
                        kept[place].append(question)
        return kept

    def run(self, documents: Sequence[Document], quizzes: Sequence[list[Question]]) -> dict[str, np.ndarray]:
        """Condition → mean share of right answers, ``[document, turn]``."""
        cells = [(place, seed) for place in range(len(documents)) for seed in self.seeds]
        wanted = [(self.teacher, prompts.lesson(documents[place]), seed) for place, seed in cells]
        lessons = dict(zip(cells, self.said("lesson", wanted), strict=True))
        found: dict[str, np.ndarray] = {}

        def sit(model: str, given: Sequence[str]) -> np.ndarray:
            papers = [(documents[p], text, quizzes[p]) for (p, _), text in zip(cells, given, strict=True)]
            shares = [float("nan") if r is None else float(np.mean(r)) for r in self.sat(model, papers)]
            table = np.array(shares).reshape(len(documents), len(self.seeds))
            known = ~np.isnan(table)
            total = np.where(known, table, 0.0).sum(1)
            return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)

        def flat(values: np.ndarray) -> np.ndarray:
            return np.repeat(values[:, None], self.turns + 1, axis=1)

        found["lesson"] = flat(sit(self.student, [prompts.knowledge(lessons[c], []) for c in cells]))
        dynamic = {"dynamic": self.teacher, "dynamic + lesson": self.teacher}
        dynamic |= {"weak teacher": self.weak} if self.weak else {}
        talks: dict[str, list[Turn]] = {name: [[] for _ in cells] for name in dynamic}
        columns: dict[str, list[np.ndarray]] = {name: [] for name in (*dynamic, "borrowed")}
        for turn in range(self.turns + 1):
            if turn:
                for name, model in dynamic.items():
                    first = [lessons[c] if name == "dynamic + lesson" else None for c in cells]
                    self._exchange(documents, cells, first, talks[name], model, turn)
            for name in dynamic:
                first = [lessons[c] if name == "dynamic + lesson" else None for c in cells]
                given = [prompts.knowledge(text, talk) for text, talk in zip(first, talks[name], strict=True)]
                columns[name].append(sit(self.student, given))
            lent = [talks["dynamic"][self._other(place)] for place in range(len(cells))]
            columns["borrowed"].append(sit(self.student, [prompts.knowledge(None, talk) for talk in lent]))
        found |= {name: np.stack(rows, axis=1) for name, rows in columns.items()}
        found["teacher"] = flat(sit(self.teacher, [prompts.whole(documents[p]) for p, _ in cells]))
        found["nothing"] = flat(sit(self.student, ["" for _ in cells]))
        self.shown = talks["dynamic"][:: len(self.seeds)]
        return found

    def _other(self, place: int) -> int:
        """The cell of the same document and the next seed."""
        count = len(self.seeds)
        return place - place % count + (place % count + 1) % count

    def _exchange(
        self,
        documents: Sequence[Document],
        cells: Sequence[tuple[int, int]],
        lessons: Sequence[str | None],
        talks: list[Turn],
        teacher: str,
        turn: int,
    ) -> None:
        """One question and answer more in every dialogue; where one fails the turn passes without."""
        asked = [
            (self.student, prompts.learning(documents[p], prompts.knowledge(text, talk)), 1000 * seed + turn)
            for (p, seed), text, talk in zip(cells, lessons, talks, strict=True)
        ]
        questions = self.said("question", asked)
        spoken = [place for place, question in enumerate(questions) if question]
        wanted = [
            (
                teacher,
                prompts.teaching(documents[cells[place][0]], talks[place], questions[place] or ""),
                1000 * cells[place][1] + turn,
            )
            for place in spoken
        ]
        for place, answer in zip(spoken, self.said("answer", wanted), strict=True):
            if answer:
                talks[place].append((questions[place] or "", answer))


def _turned(question: Question, number: int) -> Question:
    """The options turned by some places, as writers like to put the right one first."""
    by = number % OPTIONS
    options = question.options[by:] + question.options[:by]
    return replace(question, options=options, right=(question.right - by) % OPTIONS)
