"""Notes beside an index: appended by many at once, read back whole, none of the artifact's business."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from mechlab.artifacts import open_artifact
from mechlab.cli.main import main
from mechlab.errors import MechlabError
from mechlab.features.building import load_index
from mechlab.features.notes import NOTES, add_note, person_explanations, read_notes
from mechlab.features.rules import Clause, Rule, Token
from mechlab.features.sources import TextRows, index_function
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary

VOCABULARY = Vocabulary((" a", " bb"))


def length(text: str) -> float:
    return float(len(text))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    functions = {"length": length, "count": lambda text: float(text.count("b"))}
    index_function(functions, TextRows(text_of([[0, 1], [1]], VOCABULARY)), tmp_path / "i")
    return tmp_path / "i"


def test_notes_add_up_and_the_last_label_wins(index: Path) -> None:
    before = open_artifact(index).manifest
    add_note(index, 1, text="not on the first token", label="b's", author="Ada")
    add_note(index, 0, label="length")
    add_note(index, 1, label="count of b", text="  ")
    last = add_note(index, 1, text="„ÆØÅ“ \u2028 \n two lines", author="Bo")
    found = read_notes(index)
    assert found.labels == {0: "length", 1: "count of b"}
    assert [note.text for note in found.of(1)] == ["not on the first token", None, last.text]
    assert [note.author for note in found.of(1)][::2] == ["Ada", "Bo"]
    assert found.items[-1] == last
    add_note(index, 0, label="")
    assert read_notes(index).labels == {1: "count of b"}
    # The artifact does not know.
    open_artifact(index).verify()
    assert open_artifact(index).manifest == before
    assert load_index(index).n_features == 2


def test_labels_are_explanations_by_a_person(index: Path) -> None:
    rule = Rule((Clause((Token((" bb",)),), 3.0),))
    add_note(index, 1, label="count of b", author="Ada")
    add_note(index, 0, label=rule.sentence(), author="Bo")
    length, count = person_explanations(read_notes(index))
    assert (length.feature, length.rule, length.about["author"]) == (0, rule, "Bo")
    assert (count.feature, count.rule, count.text, count.explainer) == (1, None, "count of b", "person")


def append_some(index: Path, author: str) -> None:
    for number in range(25):
        add_note(index, 0, text=f"{number} " + "x" * 5000, author=author)


def test_many_processes_append_at_once(index: Path) -> None:
    # Forked, as each would spend seconds on importing torch.
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=append_some, args=(index, str(who))) for who in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    found = read_notes(index)
    for who in range(3):
        own = [note.text for note in found.items if note.author == str(who)]
        assert own == [f"{i} " + "x" * 5000 for i in range(25)]


def test_a_torn_line_costs_itself_only(index: Path) -> None:
    add_note(index, 0, text="first")
    path = index / NOTES
    path.write_bytes(path.read_bytes() + b'{"feature": 1, "te')
    add_note(index, 1, text="second")
    with pytest.warns(UserWarning, match="1 lines of .* cannot be read"):
        found = read_notes(index)
    assert [note.text for note in found.items] == ["first", "second"]


def test_notes_on_the_index_that_was_here_before_are_kept_apart(index: Path) -> None:
    add_note(index, 1, label="count of b")
    index_function(length, TextRows(text_of([[0]], VOCABULARY)), index, overwrite=True)
    found = read_notes(index)
    assert (found.items, found.elsewhere) == ((), 1)
    add_note(index, 0, label="length")
    assert read_notes(index).labels == {0: "length"}


def test_what_a_shell_could_not_decode_is_written_as_an_escape(index: Path) -> None:
    add_note(index, 0, text="\udcff a", label="\ud83d", author="\udcfe")
    [note] = read_notes(index).items
    assert (note.text, note.label, note.author) == ("\\udcff a", "\\ud83d", "\\udcfe")


def test_what_is_refused(index: Path, tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match=r"feature does not exist: 2 .* 0 to 1"):
        add_note(index, 2, text="x")
    with pytest.raises(MechlabError, match="note is empty"):
        add_note(index, 1, text=" ")
    with pytest.raises(MechlabError, match="no feature-index here"):
        add_note(tmp_path / "nothing", 1, text="x")
    assert read_notes(index).items == ()


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["features", "note", *(str(word) for word in words)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_the_command(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(index, 1, "--label", "b", "--text", "a note", "--author", "Ada", "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["added"]["text"] == "a note"
    assert said["labels"] == [[1, "b"]]
    assert run(index, 0, "--text", "another", "--author", "Bo") == 0
    assert "Bo: another" in capsys.readouterr().out
    assert run(index, "--list") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "1  b"
    assert [line.split("  ")[-1] for line in shown[1:]] == ["Ada: a note", "Bo: another"]
    assert run(index, 1, "--list", "--json") == 0
    assert [note["feature"] for note in json.loads(capsys.readouterr().out)["notes"]] == [1]
    assert run(index, "--text", "x") == 2
    assert "no feature was named" in capsys.readouterr().err
    assert run(index, 7, "--text", "x") == 2
    assert np.array_equal(load_index(index).dense(0), [2, 5, 3])
