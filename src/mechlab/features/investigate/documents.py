"""Documents that a teacher holds and a student asks about, read from a user's files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError

DIFFICULTIES = ("easy", "medium", "hard")
OPTIONS = 4


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    Attributes:
        difficulty: "easy", "medium" or "hard".
        text: the question.
        options: four answers.
        right: which of them.

    Raises MechlabError when it is not of that form.
    """

    difficulty: str
    text: str
    options: tuple[str, ...]
    right: int

    def __post_init__(self) -> None:
        if self.difficulty not in DIFFICULTIES:
            raise MechlabError("unknown difficulty of a question", self.difficulty, "easy, medium or hard")
        if len(set(self.options)) != OPTIONS or not 0 <= self.right < OPTIONS:
            raise MechlabError("question needs four different options and a right one", self.text)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "difficulty": self.difficulty,
            "question": self.text,
            "options": list(self.options),
            "answer": self.right,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Question:
        """The inverse of ``to_dict``. MechlabError for anything else."""
        try:
            options = tuple(str(each).strip() for each in fields["options"])
            return cls(fields["difficulty"], str(fields["question"]), options, int(fields["answer"]))
        except (KeyError, TypeError, ValueError) as error:
            raise MechlabError("not a question of a quiz", fields, "see Question.to_dict") from error


@dataclass(frozen=True)
class Document:
    """A song, an article, a plot, a paper: what the teacher knows and the student does not.

    Attributes:
        title: told to the student.
        text: told to the teacher alone.
        kind: what it is ("song", "article"), told to the student.
        quiz: questions about it, where somebody has written them.
    """

    title: str
    text: str
    kind: str = "document"
    quiz: tuple[Question, ...] = ()


def load_documents(path: Path | str) -> list[Document]:
    """Documents of a directory of .txt and .md files, a .jsonl or a .csv file, in order of name or line.

    Lines and rows have title and text, and may have kind and quiz (a list of {difficulty, question,
    options, answer}; in CSV as JSON). A file's title is its name, its kind the name of the folder.

    Raises MechlabError when there are none, or where one cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.suffix in (".txt", ".md"))
            found = [
                _document(
                    {"title": each.stem, "text": each.read_text(encoding="utf-8"), "kind": each.parent.name},
                    str(each),
                )
                for each in files
            ]
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            found = [
                _document(json.loads(line), f"{path}, line {number}")
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as handle:
                rows = list(csv.DictReader(handle))
            found = [_document(_cells(row), f"{path}, row {number}") for number, row in enumerate(rows, 1)]
        else:
            raise MechlabError(
                "no documents here", path, "give a directory of .txt or .md, a .jsonl or a .csv"
            )
    except (OSError, ValueError) as error:
        raise MechlabError("documents cannot be read", path, str(error).splitlines()[0]) from error
    if not found:
        raise MechlabError("no documents here", path, "give a directory of .txt or .md, a .jsonl or a .csv")
    return found


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    filled = {key: value for key, value in row.items() if value}
    return {**filled, "quiz": json.loads(filled["quiz"])} if "quiz" in filled else filled


def _document(fields: Mapping[str, Any], where: str) -> Document:
    missing = [name for name in ("title", "text") if not str(fields.get(name, "")).strip()]
    if missing:
        raise MechlabError(f"document has no {missing[0]}", where, "give title and text")
    quiz = tuple(Question.from_dict(each) for each in fields.get("quiz") or ())
    return Document(str(fields["title"]), str(fields["text"]), str(fields.get("kind") or "document"), quiz)
