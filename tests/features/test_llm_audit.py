"""The audit finds every way of judging badly, and none in a judge that judges well."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.llm_grader import Grader, planted, random_text, word_rules
from features.llm_questions import job
from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation, rule_explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.llm.audit import Audit, audit_judge
from mechlab.features.llm.server import ScriptedServer, first
from mechlab.features.llm.showing import window
from mechlab.features.scoring.detection import detection_items
from mechlab.features.scoring.held import hold
from mechlab.features.scoring.items import INTRUDER, Items, Question

WIDTH = 8
Body = dict[str, Any]


@pytest.fixture(scope="module")
def index() -> FeatureIndex:
    return planted(random_text(150, 24), word_rules(3))


def _questions(index: FeatureIndex) -> list[Question]:
    held = hold(index, width=WIDTH, samples=24)
    questions = []
    for explanation in rule_explanations(dict(enumerate(word_rules(3)))):
        items = detection_items(held, explanation.feature, np.random.default_rng(explanation.feature))
        assert isinstance(items, Items)
        questions.append(Question(explanation, items))
    return questions


def _audit(
    index: FeatureIndex, folder: Path, twist: Callable[[Grader, Body, list[int]], list[int]] | None = None
) -> Audit:
    """Audit of a judge that executes rules, but for a twist of its verdicts."""
    grade = Grader(index.text, WIDTH)

    def answer(body: Body) -> str:
        told = json.loads(grade(body))
        if twist is not None and "answers" in told:
            told["answers"] = twist(grade, body, told["answers"])
        return json.dumps(told)

    with ScriptedServer(answer) as server:
        return audit_judge(
            job(server.url, folder / "cache", concurrency=8), index.text, _questions(index), batch=8
        )


def test_a_good_judge_is_usable(index: FeatureIndex, tmp_path: Path) -> None:
    audit = _audit(index, tmp_path)
    assert (audit.verdict, audit.usable) == ("usable", True)
    assert audit.scores["order"].value == audit.scores["wording"].value == 1.0
    assert audit.scores["order"].n == 144
    assert audit.scores["order"].beats_null
    assert audit.scores["order"].null is not None
    assert audit.scores["order"].null_at_chance
    assert audit.scores["explanation"].high < 0.7
    assert audit.scores["yes rate"].value == 0.5
    assert audit.scores["blind"].low < 0.5 < audit.scores["blind"].high
    assert audit.scores["own words"].value == 0
    assert audit.scores["no answer"].value == 0
    assert json.loads(json.dumps(audit.to_dict()))["verdict"] == "usable"


def _coin(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0] % 2


def test_a_coin_of_the_window_whatever_the_explanation(index: FeatureIndex, tmp_path: Path) -> None:
    """Steady under every order and wording, says yes half the time, knows nothing."""

    def twist(_: Grader, body: Body, answers: list[int]) -> list[int]:
        lines = [line for line in body["messages"][-1]["content"].split("\n") if line.startswith("Window")]
        return [_coin(line.split(" (", 1)[1]) for line in lines]

    audit = _audit(index, tmp_path, twist)
    assert audit.problems == ("verdicts do not depend on the explanation (100% stay by another feature's)",)


def test_one_feature_has_no_other_explanation(index: FeatureIndex, tmp_path: Path) -> None:
    with ScriptedServer(Grader(index.text, WIDTH)) as server:
        audit = audit_judge(job(server.url, tmp_path / "cache"), index.text, _questions(index)[:1])
    assert audit.scores["explanation"].n == 0
    assert "depend on the explanation" not in audit.verdict


def test_always_yes(index: FeatureIndex, tmp_path: Path) -> None:
    audit = _audit(index, tmp_path, lambda _, __, answers: [1] * len(answers))
    assert audit.problems == ("says yes whatever it is asked (100% yes)",)


@pytest.mark.slow
def test_always_no(index: FeatureIndex, tmp_path: Path) -> None:
    audit = _audit(index, tmp_path, lambda _, __, answers: [0] * len(answers))
    assert audit.problems == ("says no whatever it is asked (0% yes)",)


def test_yes_to_whatever_comes_first(index: FeatureIndex, tmp_path: Path) -> None:
    audit = _audit(index, tmp_path, lambda _, __, answers: [1, 1, 1, 1, 0, 0, 0, 0][: len(answers)])
    assert len(audit.problems) == 2
    assert "depend on the order" in audit.verdict
    assert "do not depend on the explanation" in audit.verdict
    assert not audit.scores["order"].beats_null


@pytest.mark.slow
def test_another_wording_another_verdict(index: FeatureIndex, tmp_path: Path) -> None:
    def twist(_: Grader, body: Body, answers: list[int]) -> list[int]:
        flips = body["messages"][0]["content"].startswith("Below")
        return [1 - each for each in answers] if flips else answers

    audit = _audit(index, tmp_path, twist)
    assert len(audit.problems) == 1
    assert "depend on the wording" in audit.verdict


@pytest.mark.slow
def test_items_that_give_themselves_away(index: FeatureIndex, tmp_path: Path) -> None:
    """A judge that knows which word was planted where needs no explanation."""
    questions = _questions(index)

    def shown(label: bool) -> set[tuple[int, str]]:
        starts = [question.items.start[question.items.label == label].tolist() for question in questions]
        return {
            (int(index.text.position[row]), window(index.text, row, row + WIDTH))
            for row in itertools.chain(*starts)
        }

    known = shown(True) - shown(False)

    def twist(grade: Grader, body: Body, answers: list[int]) -> list[int]:
        user = body["messages"][-1]["content"]
        if grade.topic(user):
            return answers
        lines = [line for line in user.split("\n") if line.startswith("Window")]
        said = [(int(line.split("position ")[1].split(")")[0]), line.split("): ", 1)[1]) for line in lines]
        return [int(each in known) for each in said]

    audit = _audit(index, tmp_path, twist)
    assert len(audit.problems) == 1
    assert "right without an explanation" in audit.verdict


@pytest.mark.slow
def test_it_prefers_its_own_words(index: FeatureIndex, tmp_path: Path) -> None:
    grade = Grader(index.text, WIDTH)

    def answer(body: Body) -> str:
        told = json.loads(grade(body))
        user = body["messages"][-1]["content"]
        if "explanation" in told:
            # The same rule, said with a strength of 1 instead of 2.
            return json.dumps({"explanation": told["explanation"].replace("(2)", "(1)")})
        if "(2)" in grade.topic(user):
            lines = [line for line in user.split("\n") if line.startswith("Window")]
            wrong = [hashlib.sha256(line[9:].encode()).digest()[0] < 50 for line in lines]
            told["answers"] = [each ^ flip for each, flip in zip(told["answers"], wrong, strict=True)]
        return json.dumps(told)

    with ScriptedServer(answer) as server:
        asking = job(server.url, tmp_path / "cache", concurrency=8)
        audit = audit_judge(asking, index.text, _questions(index), batch=8)
    assert len(audit.problems) == 1
    assert "prefers its own words" in audit.verdict
    assert 0.1 < audit.scores["own words"].value < 0.3
    assert audit.scores["own words"].null is not None
    assert audit.scores["own words"].null.value == 0


def test_no_answers(index: FeatureIndex, tmp_path: Path) -> None:
    with ScriptedServer(Grader(index.text, WIDTH), faults=first("refusal")) as server:
        audit = audit_judge(job(server.url, tmp_path / "cache"), index.text, _questions(index)[:2])
    assert "no answer to 100% of the items" in audit.verdict
    assert audit.to_dict()["scores"]["order"]["value"] is None


def test_what_cannot_be_audited(index: FeatureIndex, tmp_path: Path) -> None:
    asking = job("http://127.0.0.1:9/v1", tmp_path / "cache")
    items = _questions(index)[0].items
    intruders = Items(items.start, WIDTH, items.label, None, items.document, items.group, INTRUDER)
    for questions in ([], [Question(Explanation(0, "", ""), intruders)]):
        with pytest.raises(MechlabError, match="cannot be audited"):
            audit_judge(asking, index.text, questions)
