"""What the explainer's prompt shows, and what becomes of the answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.llm_grader import WORDS, Grader, planted, random_text, word_rules
from features.llm_questions import MODEL, PRICE, job
from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanations
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.llm.explainer import explain_llm
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.server import ScriptedServer, first
from mechlab.features.llm.showing import window
from mechlab.features.scoring.simulation import levels
from mechlab.features.split import Split
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary

_SHOWN = re.compile(r"^Window \d+ \(from position (\d+)\): (.*)\n(?:  (.*))?", re.MULTILINE)


def _prompts(server: ScriptedServer) -> list[tuple[str, str]]:
    return [(body["messages"][0]["content"], body["messages"][1]["content"]) for body in server.requests]


def _explain(index: FeatureIndex, folder: Path, **options: Any) -> tuple[Explanations, list[tuple[str, str]]]:
    with ScriptedServer(Grader(index.text, 8)) as server:
        told = explain_llm(index, job(server.url, folder / "cache"), **options)
        return told, _prompts(server)


def test_marks_and_levels_are_those_of_the_activation(tmp_path: Path) -> None:
    text = random_text(40, 30)
    generator = np.random.default_rng(5)
    drawn = generator.uniform(0.05, 1, len(text)).astype(np.float32).astype(np.float64)
    strength = np.where(text.tokens == 3, drawn, 0.0)
    index = index_of(text, {0: strength})
    explained, [(system, user)] = _explain(index, tmp_path, examples=12, radius=6)
    shown = _SHOWN.findall(user)
    assert len(shown) == 12
    assert "at most 13 tokens cut out of a longer text" in system
    best = 0.0
    for place, said, listed in shown:
        bare = said.replace("<<", "").replace(">>", "")
        rows = [
            row
            for row in np.flatnonzero(text.position == int(place)).tolist()
            if window(text, row, min(row + 13, len(text))).startswith(bare)
        ]
        length = bare.count(" ")
        values = strength[rows[0] : rows[0] + length]
        marked = values >= 0.3 * values.max()
        assert window(text, rows[0], rows[0] + length, marked) == said
        told = levels(values[marked], float(strength.max()))
        assert listed == "; ".join(f"dog: {level}" for level in told.tolist())
        best = max(best, float(values.max()))
    assert best == strength.max()
    (explanation,) = explained.items
    assert explanation.explainer == f"llm:{MODEL}:max-activating"
    assert explanation.text == word_rules(4)[3].sentence()
    assert all(strength[row] > 0 for row in explanation.about["rows"])
    assert explanation.about["dollars"] == pytest.approx(
        PRICE.nanodollars(explanation.about["input_tokens"], explanation.about["output_tokens"]) / 1e9
    )


def test_no_held_out_document_is_shown(tmp_path: Path) -> None:
    """Every document has a word of its own, so that the prompt tells which were shown."""
    names = tuple(f" name{number}" for number in range(60))
    passages = [[0, 1, 2 + number, 0, 1] for number in range(60)]
    text = text_of(passages, Vocabulary((" a", " b", *names)), first=100)
    index = index_of(text, {0: (text.tokens == 1).astype(np.float64)})
    split = Split(0.5, 3)
    held_out = {name for number, name in enumerate(names) if not split.explains(np.array([100 + number]))[0]}
    with ScriptedServer(lambda body: '{"explanation": "the letter b"}') as server:
        for prompt in ("max-activating", "contrastive", "chain-of-thought"):
            told = explain_llm(
                index, job(server.url, tmp_path / "cache"), prompt=prompt, split=split, examples=40, radius=2
            )
            if prompt != "chain-of-thought":
                (explanation,) = told.items
                rows = np.array(explanation.about["rows"])
                assert set(text.document[rows]) <= set(told.documents)
                assert (text.tokens[rows] == 1).all()
        said = " ".join(user for _, user in _prompts(server))
    found = {name for name in names if re.search(rf"{name}\b", said)}
    assert len(found) > 10
    assert not found & held_out
    assert not {int(name[5:]) + 100 for name in held_out} & set(told.documents)


def test_parts_of_a_character_are_shown_together(tmp_path: Path) -> None:
    cup = "☕".encode()
    vocabulary = Vocabulary((" tea", " and", "b0", "b1", "b2"), {2 + n: cup[n : n + 1] for n in range(3)})
    text = text_of([[0, 1, 2, 3, 4, 0]] * 3 + [[1, 2, 3, 4, 0, 0]], vocabulary)
    index = index_of(text, {0: (text.tokens == 4).astype(np.float64)})
    with ScriptedServer(lambda body: '{"explanation": "a cup"}') as server:
        explain_llm(index, job(server.url, tmp_path / "cache"))
        ((_, user),) = _prompts(server)
    assert " and<<☕>> tea" in user
    assert "  ☕: 10" in user
    assert "b1" not in user
    assert "\\x" not in user


def test_line_breaks_and_marks_of_the_text_itself(tmp_path: Path) -> None:
    vocabulary = Vocabulary((" if", " <<", "\n", " x"))
    text = text_of([[0, 3, 1, 2, 3]], vocabulary)
    assert window(text, 0, 5, np.array([False, True, False, False, True])) == " if <<x>> ‹‹⏎ <<x>>"


def test_no_text_can_forge_a_mark() -> None:
    vocabulary = Vocabulary(("<", ">", " x", "<y>", "\n", "<<<", " "))
    generator = np.random.default_rng(0)
    for _ in range(200):
        tokens = generator.integers(0, len(vocabulary), 8)
        marks = generator.random(8) < 0.3
        shown = window(text_of([tokens.tolist()], vocabulary), 0, 8, marks)
        assert (shown.count("<<"), shown.count(">>")) == (marks.sum(), marks.sum())
        assert "<<<" not in shown.replace(">><<", "")
        assert "\n" not in shown
        bare = shown.replace("<<", "").replace(">>", "").replace("‹", "<").replace("›", ">")
        assert bare == "".join(vocabulary[each] for each in tokens.tolist()).replace("\n", "⏎")
    text = text_of([[2, 0, 2, 1]], vocabulary)
    assert window(text, 0, 4) == " x< x>"  # a single one stays what it is


def test_contrastive_shows_contexts_without_the_feature(tmp_path: Path) -> None:
    text = random_text(60, 30)
    index = planted(text, word_rules(4))
    _, prompts = _explain(index, tmp_path, features=[1], prompt="contrastive", examples=10, radius=3)
    ((system, user),) = prompts
    assert "windows in which it is silent" in system
    active, silent = user.split("Windows in which the feature is silent:\n")
    lines = silent.split("\n")
    assert len(lines) == 5
    assert not any("<<" in line or WORDS[1] + " " in line + " " for line in lines)
    assert active.count("<<ben>>") >= 10
    _, [(_, nearer)] = _explain(
        index, tmp_path / "near", features=[1], prompt="contrastive", neighbours={1: [2]}, radius=3
    )
    assert all(WORDS[2] in line for line in nearer.split("is silent:\n")[1].split("\n"))


def test_promoted_words_and_reasoning(tmp_path: Path) -> None:
    index = planted(random_text(30, 30), word_rules(2))
    told, [(system, user)] = _explain(
        index, tmp_path, features=[0], prompt="chain-of-thought", promoted={0: [" sun", " red"]}
    )
    assert user.endswith("makes the model say next: ' sun', ' red'")
    assert '"reasoning"' in system
    assert told.items[0].about["reasoning"] == "all alike"
    assert told.items[0].text == word_rules(1)[0].sentence()


def test_what_is_no_explanation_is_counted_and_not_kept(tmp_path: Path) -> None:
    text = random_text(30, 30)
    index = planted(text, word_rules(6))
    index = index_of(text, {**{n: index.dense(n) for n in range(6)}, 7: np.zeros(len(text))})
    replies = {
        WORDS[0]: "The feature is about lilies.",
        WORDS[1]: '{"explanation": 3}',
        WORDS[2]: "I'm sorry, I can't.",
        WORDS[3]: '{"explanation": "  "}',
        WORDS[4]: '{"explanation": "the word\\ndog", "sure": true}',
    }

    def answer(body: dict[str, Any]) -> str:
        marked = re.findall(r"<<(.*?)>>", body["messages"][1]["content"])
        return replies.get(f" {marked[0]}", json.dumps({"explanation": "the word\n tree"}))

    with ScriptedServer(answer) as server:
        told = explain_llm(index, job(server.url, tmp_path / "cache"), range(8))
    assert [(each.feature, each.text) for each in told.items] == [(5, "the word tree")]
    assert {feature: why.split(":")[0] for feature, why in told.failed.items()} == {
        0: "malformed",
        1: "malformed",
        2: "refused",
        3: "malformed",
        4: "malformed",
        6: "it is not active in the documents for explaining",
        7: "it is not active in the documents for explaining",
    }
    assert told.n_features == 8


def test_the_same_seed_asks_the_same(tmp_path: Path) -> None:
    index = planted(random_text(50, 30), word_rules(3))
    with ScriptedServer(Grader(index.text, 8)) as server:
        asking: LlmJob = job(server.url, tmp_path / "cache")
        once = explain_llm(index, asking, seed=1)
        sent = len(server.log)
        assert explain_llm(index, asking, seed=1) == once
        assert len(server.log) == sent == 3
        explain_llm(index, asking, seed=2)
        assert len(server.log) == 6


def test_errors(tmp_path: Path) -> None:
    index = planted(random_text(10, 20), word_rules(1))
    with ScriptedServer(Grader(index.text, 8), faults=first("401")) as server:
        with pytest.raises(MechlabError, match="did you mean contrastive"):
            explain_llm(index, job(server.url, tmp_path / "cache"), prompt="contrastiv")
        with pytest.raises(MechlabError, match="check the key"):
            explain_llm(index, job(server.url, tmp_path / "cache"))
