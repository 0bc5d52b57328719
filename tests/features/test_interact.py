"""INTERACT over a real local server: the protocol, its filter, faults, and documents of a user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechlab.cli.main import main
from mechlab.errors import MechlabError
from mechlab.features.investigate.documents import Document, Question, load_documents
from mechlab.features.investigate.interact import Interaction, interact
from mechlab.features.investigate.interact_example import NAMES, example_documents, scripted
from mechlab.features.investigate.interact_prompts import LEARN, SIT, TEACH, WRITE
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.openai_client import OpenAIClient
from mechlab.features.llm.server import ScriptedServer

QUIZ = {"difficulty": "easy", "question": "Who?", "options": ["a", "b", "c", "d"], "answer": 2}


def played(
    server: ScriptedServer, cache: Path, documents: list[Document] | None = None, **options: Any
) -> Interaction:
    job = LlmJob(OpenAIClient(NAMES[0], base_url=server.url, key="none"), cache)
    return interact(job, documents or example_documents(2), weak=NAMES[1], seeds=(0, 1), **options)


def test_the_whole_protocol(tmp_path: Path) -> None:
    with ScriptedServer(scripted) as server:
        found = played(server, tmp_path / "answers", turns=3)
        sent = len(server.requests)
        again = played(server, tmp_path / "answers", turns=3)
        assert len(server.requests) == sent
        bodies = server.requests
    assert again.curves.to_dict() == found.curves.to_dict()
    at = {name: found.curves.at(name).mean(0) for name in found.curves.values}
    assert set(at) == {
        "lesson", "dynamic", "dynamic + lesson", "weak teacher", "borrowed", "teacher", "nothing",
    }  # fmt: skip
    # The filter leaves no question that a student without context answers right.
    assert at["nothing"].tolist() == [0] * 4
    assert at["teacher"].tolist() == [1] * 4
    assert at["dynamic"][0] == 0 < at["dynamic"][1] < at["dynamic"][3]
    assert at["weak teacher"][3] < at["dynamic"][3]
    assert at["lesson"][0] == at["dynamic + lesson"][0] < at["dynamic + lesson"][3]
    for quiz in found.quizzes:
        assert 5 <= len(quiz) <= 9
        assert len({question.text for question in quiz}) == len(quiz)
    assert found.failed == {}
    # Dialogues at temperature 1, quizzes at 0, and the student never sees the document.
    for body in bodies:
        role, user = body["messages"][0]["content"], body["messages"][1]["content"]
        assert body["temperature"] == (0 if role == SIT else 1)
        assert role != LEARN or "DOCUMENT" not in user


def test_what_fails_is_counted_and_not_read_as_an_answer(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> str:
        role = body["messages"][0]["content"]
        if role == SIT and "LESSON" in body["messages"][1]["content"]:
            return "no idea"
        return "" if role == TEACH and body["model"] == NAMES[1] else scripted(body)

    with ScriptedServer(answer) as server:
        found = played(server, tmp_path / "answers", turns=1)
    assert found.failed["quiz"] > 0
    assert found.failed["answer"] == 4
    assert found.curves.score("lesson", 1).to_dict()["value"] is None
    assert found.curves.at("weak teacher").tolist() == [[0, 0], [0, 0]]


def test_own_quizzes_are_filtered_too(tmp_path: Path) -> None:
    known, unknown = Question.from_dict({**QUIZ, "answer": 0}), Question.from_dict(QUIZ)

    def answer(body: dict[str, Any]) -> str:
        if body["messages"][0]["content"] == WRITE:
            return "I will not"
        if body["messages"][0]["content"] == SIT:
            paper = json.loads(body["messages"][1]["content"].partition("QUIZ\n")[2])
            return json.dumps({"answers": [each["options"].index("a") for each in paper]})
        return "Well."

    with ScriptedServer(answer) as server:
        documents = [Document("one", "text", quiz=(known, unknown)), Document("two", "text", quiz=(known,))]
        found = played(server, tmp_path / "answers", documents, turns=1)
        assert [len(quiz) for quiz in found.quizzes] == [1, 0]
        assert found.curves.about["left out"] == 1
        with pytest.raises(MechlabError, match="no question is left"):
            played(server, tmp_path / "answers", documents[1:], turns=1)


def test_documents_of_a_directory_lines_and_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "song"
    folder.mkdir()
    (folder / "b.md").write_text("second")
    (folder / "a.txt").write_text("first")
    (folder / "c.pdf").write_text("other")
    assert [(d.title, d.text, d.kind) for d in load_documents(folder)] == [
        ("a", "first", "song"),
        ("b", "second", "song"),
    ]
    lines = tmp_path / "d.jsonl"
    lines.write_text(json.dumps({"title": "t", "text": "x", "kind": "plot", "quiz": [QUIZ]}) + "\n\n")
    (document,) = load_documents(lines)
    assert document.quiz[0].to_dict() == QUIZ
    table = tmp_path / "d.csv"
    table.write_text('title,text,quiz\nt,"x, y",\nu,z,"' + json.dumps([QUIZ]).replace('"', '""') + '"\n')
    assert [(d.text, len(d.quiz)) for d in load_documents(table)] == [("x, y", 0), ("z", 1)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"title": "t"}\n', "has no text"),
        ("a.jsonl", "{\n", "cannot be read"),
        ("a.jsonl", "", "no documents here"),
        ("a.xml", "<x/>", "no documents here"),
        ("a.jsonl", json.dumps({"title": "t", "text": "x", "quiz": [{}]}), "not a question"),
        ("a.csv", "title,text,quiz\nt,x,{\n", "cannot be read"),
    ],
)
def test_documents_that_cannot_be_read(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(MechlabError, match=message):
        load_documents(tmp_path / name)


@pytest.mark.parametrize("wrong", [{"difficulty": "odd"}, {"options": ["a", "a", "b", "c"]}, {"answer": 4}])
def test_questions_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(MechlabError, match="question"):
        Question.from_dict({**QUIZ, **wrong})


def test_the_example_says_that_a_script_stands_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["features", "investigate", "--example", "interact", "--turns", "2", "--json",
              "--seeds", "2", "--figure", str(tmp_path / "curves.json")])  # fmt: skip
    assert stop.value.code == 0
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "scripted model stands in" in payload["notice"]
    assert json.loads((tmp_path / "curves.json").read_text())["data"]


@pytest.mark.parametrize(
    "words", [[], ["--planted", "3", "--example", "interact"], ["--planted", "3", "--seeds", "1"]]
)
def test_the_command_refuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["features", "investigate", *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
