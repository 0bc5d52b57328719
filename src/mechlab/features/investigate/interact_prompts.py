"""What teacher, student and quiz writer of INTERACT are told; wording of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mechlab.features.investigate.documents import DIFFICULTIES, OPTIONS, Document, Question
from mechlab.features.llm.client import Message
from mechlab.features.llm.schema import STRING, listing, record

WRITE = (
    "You write a quiz. It tests what somebody knows of one document: nobody can answer from general "
    "knowledge, and whoever knows the document can. Every question has four short options, one of "
    "them right. Easy: one statement of the document. Medium: two statements put together. Hard: a "
    "conclusion. Answer as JSON."
)
TEACH = (
    "You are the teacher. You hold a document that your student cannot see. Answer the student's "
    "question truly and briefly, from the document alone."
)
LESSON = (
    "You are the teacher. You hold a document. Write a lesson of a few sentences that says what matters "
    "most in it."
)
LEARN = (
    "You are the student. A teacher holds a document that you cannot see, and you will sit a quiz on it. "
    "Ask the one question whose answer you would learn most from, and nothing else."
)
SIT = (
    "You sit a quiz on a document. Answer every question with the number of an option, from 0. Use what "
    "you are given; where it does not say, choose what seems likeliest. Answer as JSON."
)
Exchange = tuple[str, str]


def quiz_schema(each: int) -> dict[str, Any]:
    """Form of a quiz: so many questions of every difficulty."""
    question = record(
        difficulty={"type": "string", "enum": list(DIFFICULTIES)},
        question=STRING,
        options=listing(STRING, OPTIONS),
        answer={"type": "integer", "minimum": 0, "maximum": OPTIONS - 1},
    )
    return record(questions=listing(question, each * len(DIFFICULTIES)))


def answer_schema(count: int) -> dict[str, Any]:
    """Form of the answers to a quiz."""
    return record(answers=listing({"type": "integer", "minimum": 0, "maximum": OPTIONS - 1}, count))


def writing(document: Document, each: int, known: Sequence[str]) -> tuple[Message, ...]:
    """Asks for a quiz; ``known`` are questions not to be asked again."""
    asked = f"\nDo not ask again: {json.dumps(list(known))}" if known else ""
    wanted = f"Write {each} easy, {each} medium and {each} hard questions.{asked}"
    return _chat(WRITE, f"{_held(document)}\n\n{wanted}")


def teaching(document: Document, dialogue: Sequence[Exchange], question: str) -> tuple[Message, ...]:
    """Asks the teacher."""
    return _chat(TEACH, f"{_held(document)}\n\n{_said(dialogue)}The student asks: {question}")


def lesson(document: Document) -> tuple[Message, ...]:
    """Asks for a lesson."""
    return _chat(LESSON, _held(document))


def learning(document: Document, given: str) -> tuple[Message, ...]:
    """Asks the student for a question."""
    return _chat(LEARN, f"{_about(document)}\n\n{given}Your question:")


def sitting(document: Document, given: str, quiz: Sequence[Question]) -> tuple[Message, ...]:
    """Asks for answers to a quiz."""
    asked = [{"question": each.text, "options": list(each.options)} for each in quiz]
    return _chat(SIT, f"{_about(document)}\n\n{given}QUIZ\n{json.dumps(asked, ensure_ascii=False)}")


def knowledge(lesson: str | None, dialogue: Sequence[Exchange]) -> str:
    """What a student has been told so far."""
    first = f"LESSON\n{lesson}\n\n" if lesson else ""
    return first + _said(dialogue)


def whole(document: Document) -> str:
    """What the teacher knows, given to whoever sits the quiz."""
    return f"DOCUMENT\n{document.text}\n\n"


def _said(dialogue: Sequence[Exchange]) -> str:
    return "".join(f"Student: {asked}\nTeacher: {answered}\n\n" for asked, answered in dialogue)


def _about(document: Document) -> str:
    return f'The document is a {document.kind} called "{document.title}".'


def _held(document: Document) -> str:
    return f"{_about(document)}\n\n{whole(document)}".rstrip()


def _chat(system: str, user: str) -> tuple[Message, ...]:
    return (Message("system", system), Message("user", user))


def questions(answer: Mapping[str, Any]) -> list[Question]:
    """The questions of a written quiz that are sound; two equal options make one unsound."""
    found = []
    for each in answer["questions"]:
        options = [option.strip() for option in each["options"]]
        if len(set(options)) == OPTIONS:
            found.append(Question.from_dict({**each, "options": options}))
    return found
