"""A language-model judge: what it is asked, how its answers are read, and explainer to score end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.llm_grader import Grader, planted, random_text, word_rules
from features.llm_questions import job
from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation, Explanations, rule_explanations
from mechlab.features.llm.client import Reply, TokenOdds
from mechlab.features.llm.explainer import explain_llm
from mechlab.features.llm.judge import LlmJudge
from mechlab.features.llm.reading import number_odds, share_of_one
from mechlab.features.llm.server import Answer, ScriptedServer, first
from mechlab.features.llm.simulator import LlmSimulator, Written, write_texts
from mechlab.features.rules import Matcher
from mechlab.features.scoring.items import ACTIVE, INTRUDER, MARKED, BatchJudge, Items, Question
from mechlab.features.scoring.rules import RuleJudge
from mechlab.features.scoring.score import score_features
from mechlab.features.scoring.simulated import score_simulations
from mechlab.features.scoring.simulators import RuleSimulator, Simulator
from mechlab.features.split import Split
from mechlab.features.text import Text

WIDTH = 8


def _items(text: Text, count: int, seed: int, asks: str = ACTIVE) -> Items:
    """Random windows; with one or two random marks where marks are asked about."""
    generator = np.random.default_rng(seed)
    start = generator.choice(text.bounds[:-1], count, replace=False) + generator.integers(0, 12, count)
    marks = None if asks == ACTIVE else generator.random((count, WIDTH)) < 0.2
    if marks is not None:
        marks[np.arange(count), generator.integers(0, WIDTH, count)] = True
    group = np.arange(count) // 4
    return Items(start, WIDTH, generator.random(count) < 0.5, marks, text.document[start], group, asks)


@pytest.mark.parametrize("asks", [ACTIVE, MARKED])
@pytest.mark.parametrize("batch", [1, 5, 7])
def test_a_model_that_executes_rules_judges_like_the_rules(tmp_path: Path, asks: str, batch: int) -> None:
    text = random_text(60, 20)
    explanations = rule_explanations(dict(enumerate(word_rules(3))))
    questions = [Question(each, _items(text, 23, each.feature, asks)) for each in explanations]
    rules = RuleJudge(Matcher(text))
    with ScriptedServer(Grader(text, WIDTH)) as server:
        judge = LlmJudge(job(server.url, tmp_path / "cache"), batch=batch)
        assert isinstance(judge, BatchJudge)
        answers = judge.answer_all(text, questions)
        for question, answer in zip(questions, answers, strict=True):
            expected = rules(question.explanation, text, question.items)
            # The server gives every token 0.9 of the probability.
            np.testing.assert_allclose(answer, 0.1 + 0.8 * expected, atol=1e-6)
        assert len(server.log) == len(judge.requests(text, questions)) == 3 * math.ceil(23 / batch)
        hard = LlmJudge(job(server.url, tmp_path / "cache"), batch=batch, logprobs=False)
        np.testing.assert_array_equal(
            hard(explanations[0], text, questions[0].items),
            rules(explanations[0], text, questions[0].items),
        )
    assert not judge.failures


def test_prompts_hold_the_windows_and_nothing_of_the_answers(tmp_path: Path) -> None:
    text = random_text(40, 20)
    (explanation,) = rule_explanations({3: word_rules(4)[3]})
    for asks in (ACTIVE, MARKED):
        items = _items(text, 10, 0, asks)
        flipped = Items(
            items.start, WIDTH, ~items.label, items.marks, items.document, items.group[::-1].copy(), asks
        )
        judge = LlmJudge(job("http://127.0.0.1:9/v1", tmp_path / "cache"))
        asked = judge.requests(text, [Question(explanation, items)])
        assert asked == judge.requests(text, [Question(explanation, flipped)])
        said = [each.messages[-1].content for each in asked]
        assert all(
            each.startswith(f"The feature responds to: {explanation.text}\n\nWindow 1 (") for each in said
        )
        assert sum(each.count("\nWindow ") for each in said) == 10
        assert ("<<" in "".join(said)) == (asks == MARKED)
        # What all prompts share comes first.
        assert len({each.messages[:-1] for each in asked}) == 1
        assert sorted(each.schema["properties"]["answers"]["minItems"] for each in asked if each.schema) == [
            5,
            5,
        ]


def test_the_last_batch_may_be_smaller(tmp_path: Path) -> None:
    text = random_text(40, 20)
    (explanation,) = rule_explanations({0: word_rules(1)[0]})
    with ScriptedServer(Grader(text, WIDTH)) as server:
        answers = LlmJudge(job(server.url, tmp_path / "cache"))(explanation, text, _items(text, 7, 0))
        assert len(server.log) == 2
    assert np.isfinite(answers).all()


def test_a_wrong_number_of_answers_is_no_answer_for_the_whole_batch(tmp_path: Path) -> None:
    text = random_text(60, 20)
    (explanation,) = rule_explanations({0: word_rules(1)[0]})
    grade, spoilt = Grader(text, WIDTH), []

    def answer(body: dict[str, Any]) -> str:
        told = json.loads(grade(body))["answers"]
        if "lily" in body["messages"][-1]["content"].split("Window 1 ")[1]:
            spoilt.append(len(told))
            return json.dumps({"answers": [*told, 1]})
        return json.dumps({"answers": told})

    items = _items(text, 30, 0)
    with ScriptedServer(answer) as server:
        judge = LlmJudge(job(server.url, tmp_path / "cache", again=1), batch=3)
        answers = judge(explanation, text, items)
    assert judge.failures == {"malformed": len(spoilt) // 2}
    assert 0 < np.isnan(answers).sum() == sum(spoilt) // 2 < 30


def test_intruders_one_group_a_prompt(tmp_path: Path) -> None:
    text = random_text(120, 20)
    rows = np.flatnonzero(text.tokens == 2)
    silent = np.flatnonzero(text.tokens != 2)
    fits = (text.position > 4) & (text.position < 14)
    rows, silent = rows[fits[rows]][:12], silent[fits[silent]][:4]
    centre = np.concatenate([rows, silent])
    marks = np.zeros((16, WIDTH), bool)
    marks[:, 3] = True
    label = np.arange(16) >= 12
    group = np.concatenate([np.repeat(np.arange(4), 3), np.arange(4)])
    items = Items(centre - 3, WIDTH, label, marks, text.document[centre], group, INTRUDER)
    items = items.take(np.random.default_rng(0).permutation(16))
    with ScriptedServer(Grader(text, WIDTH)) as server:
        chosen = LlmJudge(job(server.url, tmp_path / "cache"))(Explanation(0, "", ""), text, items)
        assert len(server.log) == 4
        assert not any("responds to" in body["messages"][-1]["content"] for body in server.requests)
    for number in range(4):
        mine = items.group == number
        assert items.label[mine][chosen[mine].argmax()]
        assert chosen[mine].sum() == pytest.approx(1.0)


def test_explainer_to_judge_to_score(tmp_path: Path) -> None:
    """The scripted model reads the planted word off the marks and then judges by its own sentence."""
    text = random_text(240, 40)
    index = planted(text, word_rules(4))
    explain, held_out = index.halves(Split(0.5, 0))
    with ScriptedServer(Grader(text, WIDTH), faults=first("500")) as server:
        asking = job(server.url, tmp_path / "cache", wait=0.001, concurrency=8)
        explanations = explain_llm(explain, asking)
        judge = LlmJudge(asking)
        card = score_features(
            held_out, explanations, ("detection", "fuzzing"), judge, samples=20, width=WIDTH
        )
        sent = len(server.log)
        again = score_features(
            held_out, explanations, ("detection", "fuzzing"), judge, samples=20, width=WIDTH
        )
        assert len(server.log) == sent
    assert [each.score for each in again.scored] == [each.score for each in card.scored]
    assert len(card.scored) == 8
    for each in card.scored:
        assert (each.score.value, each.failed) == (1.0, 0)
        assert each.score.null is not None
        assert each.score.null.low <= 0.5 <= each.score.null.high


def test_simulation_by_a_model_that_executes_rules(tmp_path: Path) -> None:
    text = random_text(120, 40)
    rules = word_rules(3)
    index = planted(text, rules)
    explanations = Explanations(tuple(rule_explanations(dict(enumerate(rules)))), (), index.n_features)
    with ScriptedServer(Grader(text, WIDTH)) as server:
        simulator = LlmSimulator(job(server.url, tmp_path / "cache"), logprobs=False)
        assert isinstance(simulator, Simulator)
        exact = score_simulations(index, explanations, RuleSimulator(Matcher(text)), windows=6, width=WIDTH)
        told = score_simulations(index, explanations, simulator, windows=6, width=WIDTH)
        hedged = LlmSimulator(job(server.url, tmp_path / "cache"))(
            explanations.items[0], text, text.bounds[:1].copy(), WIDTH
        )
    scorer = "simulation correlation"
    for one, other in zip(exact.of(scorer).values(), told.of(scorer).values(), strict=True):
        assert other.failed == 0
        assert one.score.value == pytest.approx(other.score.value) == 1.0
    # "10" has 0.9 of the probability and "0" the rest, "0" has 0.9 and "1" the rest.
    here = text.tokens[:WIDTH] == 0
    np.testing.assert_allclose(hedged[0], np.where(here, 9.0, 0.1), atol=1e-6)


def test_simulation_that_failed_is_nan_and_not_zero(tmp_path: Path) -> None:
    text = random_text(4, 20)
    (explanation,) = rule_explanations({0: word_rules(1)[0]})
    with ScriptedServer(Grader(text, WIDTH), faults=first("short", "short")) as server:
        simulator = LlmSimulator(job(server.url, tmp_path / "cache"))
        predicted = simulator(explanation, text, text.bounds[:2].copy(), WIDTH)
    assert np.isnan(predicted).all()
    assert simulator.failures == {"malformed": 2}


def test_written_texts(tmp_path: Path) -> None:
    explanations = rule_explanations(dict(enumerate(word_rules(2))))
    with ScriptedServer(Grader(random_text(1, 20), WIDTH)) as server:
        asking = job(server.url, tmp_path / "cache")
        told = write_texts(asking, explanations, 3)
        assert told == [Written(("a lily",) * 3, ("a cat",) * 3)] * 2
    with ScriptedServer(lambda body: '{"positive": ["x"], "negative": ["y", "z"]}') as server:
        (failure, _) = write_texts(job(server.url, tmp_path / "cache"), explanations, 1)
    assert not isinstance(failure, Written)
    assert failure.kind == "malformed"


def test_odds_of_numbers() -> None:
    def reply(*tokens: tuple[str, dict[str, float]]) -> Reply:
        odds = tuple(
            TokenOdds(text, math.log(0.5), tuple((each, math.log(p)) for each, p in top.items()))
            for text, top in tokens
        )
        return Reply("".join(text for text, _ in tokens), 1, 1, odds)

    told = reply(
        ('{"answers', {}),
        ('":', {}),
        (" [", {}),
        ("1", {"1": 0.5, " 1": 0.1, "0": 0.2, "yes": 0.1}),
        (",", {}),
        (" 0", {" 0": 0.6, "0": 0.1, " 1": 0.3}),
        ("]}", {}),
    )
    odds = number_odds(told, "answers", 2)
    assert odds is not None
    assert [share_of_one(each) for each in odds] == pytest.approx([0.6 / 0.8, 0.3 / 1.0])
    # One token for two numbers, a number in two tokens, another count, no odds, other text.
    assert number_odds(reply(('{"answers": [', {}), ("1, 0", {}), ("]}", {})), "answers", 2) is None
    assert number_odds(reply(('{"answers": [', {}), ("1", {}), ("0", {}), ("]}", {})), "answers", 1) is None
    assert number_odds(told, "answers", 3) is None
    assert number_odds(Reply(told.text, 1, 1), "answers", 2) is None
    assert number_odds(Reply(told.text + " ", 1, 1, told.logprobs), "answers", 2) is None
    assert math.isnan(share_of_one({"7": -0.1}))


def test_an_answer_that_is_sure_of_something_else_has_no_odds(tmp_path: Path) -> None:
    text = random_text(10, 20)
    (explanation,) = rule_explanations({0: word_rules(1)[0]})
    with ScriptedServer(lambda body: Answer('{"answers": [1, 1, 1, 1, 1]}', 1.0)) as server:
        answers = LlmJudge(job(server.url, tmp_path / "cache"))(explanation, text, _items(text, 5, 0))
    np.testing.assert_allclose(answers, 1.0)


def test_batches_hold_something(tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="batch is too small"):
        LlmJudge(job("http://127.0.0.1:9/v1", tmp_path / "cache"), batch=0)
