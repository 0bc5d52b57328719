"""Causal models that a user writes, and the pairs drawn from them."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from mechlab.circuits.causal.model import CausalModel, Variable
from mechlab.circuits.causal.problem import Problem, draw_interchanges, draw_pairs, part_of
from mechlab.errors import MechlabError

SUM = Variable("sum", ("a", "b"), lambda a, b: a + b)
OUT = Variable("out", ("sum", "c"), lambda total, c: total % c)


def arithmetic(*variables: Variable, output: str = "out") -> CausalModel:
    return CausalModel(("a", "b", "c"), variables or (OUT, SUM), output)


def arithmetic_problem(draw=None) -> Problem:
    def one(rng: Random) -> dict[str, int]:
        return {"a": rng.randrange(6), "b": rng.randrange(6), "c": rng.randrange(2, 5)}

    return Problem(arithmetic(), draw or one, lambda s: [0, s["a"], s["b"], s["c"]], lambda value: 10 + value)


def test_variables_run_in_order_whatever_the_order_given() -> None:
    values = arithmetic().run({"a": 3, "b": 4, "c": 5})
    assert values == {"a": 3, "b": 4, "c": 5, "sum": 7, "out": 2}


def test_interventions_cut_a_variable_from_its_parents() -> None:
    model = arithmetic()
    inputs = {"a": 3, "b": 4, "c": 5}
    assert model.run(inputs, {"sum": 9})["out"] == 4
    assert model.run(inputs, {"a": 0})["sum"] == 4
    assert model.run(inputs, {"out": 1})["out"] == 1
    assert inputs == {"a": 3, "b": 4, "c": 5}


def test_counterfactual_takes_each_value_from_its_own_source() -> None:
    model = arithmetic()
    base, one, two = ({"a": a, "b": b, "c": c} for a, b, c in ((1, 1, 5), (6, 7, 2), (0, 0, 7)))
    assert model.counterfactual(base, {"sum": one}) == 13 % 5
    assert model.counterfactual(base, {"sum": one, "c": two}) == 13 % 7
    assert model.counterfactual(base, {"sum": base}) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: arithmetic(OUT), "parent of out does not exist: sum"),
        (lambda: arithmetic(OUT, SUM, output="outt"), "output is no variable: outt .did you mean out"),
        (lambda: arithmetic(OUT, SUM, SUM), "defined twice: sum"),
        (lambda: arithmetic(OUT, SUM, Variable("a", (), lambda: 1)), "defined twice: a"),
        (
            lambda: arithmetic(OUT, Variable("sum", ("out",), lambda out: out)),
            "depend on each other in a circle: .*sum",
        ),
        (lambda: arithmetic().run({"a": 1, "b": 2}), "input has no value: c"),
        (lambda: arithmetic().run({"a": 1, "b": 2, "c": 3, "d": 1}), "model has no input: d"),
        (
            lambda: arithmetic().run({"a": 1, "b": 2, "c": 3}, {"summ": 1}),
            "no variable: summ .did you mean sum",
        ),
        (lambda: arithmetic().counterfactual({"a": 1, "b": 2, "c": 3}, {"x": {}}), "no variable: x"),
    ],
)
def test_mistakes_are_explained(make, message) -> None:
    with pytest.raises(MechlabError, match=message):
        make()


@pytest.mark.parametrize("changed", [0.0, 0.5, 1.0])
def test_pairs_hold_what_the_causal_model_says(changed) -> None:
    problem = arithmetic_problem()
    pairs = draw_pairs(problem, ("sum", "c"), n=40, seed=3, changed=changed)
    data = draw_interchanges(problem, ("sum", "c"), n=40, seed=3, changed=changed)
    assert sum(pair.after != pair.plain for pair in pairs) == round(40 * changed)
    assert data.outputs.tolist() == [10, 11, 12, 13]
    for row, pair in enumerate(pairs):
        c = pair.sources["c"]["c"]
        assert pair.after == (pair.sources["sum"]["a"] + pair.sources["sum"]["b"]) % c
        assert int(data.answers[row]) == 10 + pair.after
        assert int(data.unchanged[row]) == 10 + (pair.base["a"] + pair.base["b"]) % pair.base["c"]
        assert data.base[row].tolist() == [0, pair.base["a"], pair.base["b"], pair.base["c"]]
        assert int(data.sources["c"][row, 3]) == c


def test_parts_share_no_input() -> None:
    problem = arithmetic_problem()
    parts = {split: draw_interchanges(problem, "sum", n=60, split=split) for split in ("train", "test")}
    seen = {
        split: {tuple(row) for tokens in (data.base, data.sources["sum"]) for row in tokens.tolist()}
        for split, data in parts.items()
    }
    assert not seen["train"] & seen["test"]
    whole = [{"a": a, "b": b, "c": c} for a in range(20) for b in range(20) for c in range(5)]
    assert 0.2 < sum(part_of(setting) == "test" for setting in whole) / len(whole) < 0.3


def test_same_seed_same_pairs() -> None:
    problem = arithmetic_problem()
    one, two, other = (draw_interchanges(problem, "sum", n=20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.base, two.base)
    assert torch.equal(one.answers, two.answers)
    assert not torch.equal(one.base, other.base)


def test_arbitrary_labels_say_nothing_of_the_variable_and_belong_to_the_prompt() -> None:
    problem = arithmetic_problem()
    pairs = draw_pairs(problem, ("c",), n=200, changed=0.5, arbitrary=True)
    labels: dict[tuple[int, ...], set[int]] = {}
    for pair in pairs:
        fits = {c for c in (2, 3, 4) if (pair.base["a"] + pair.base["b"]) % c == pair.after}
        key = tuple(pair.sources["c"].values())
        labels[key] = labels.get(key, {2, 3, 4}) & fits
    assert all(labels.values())  # one value of the variable explains every pair of a source
    right = [pair.after == (pair.base["a"] + pair.base["b"]) % pair.sources["c"]["c"] for pair in pairs]
    assert 0.25 < sum(right) / len(right) < 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": "summ"}, "no variable: summ"),
        ({"variables": "sum", "split": "tst"}, "split does not exist: tst"),
        ({"variables": "sum", "n": 0}, "n=0"),
        ({"variables": "sum", "changed": 1.5}, "changed=1.5"),
    ],
)
def test_draws_that_make_no_sense_are_refused(options, message) -> None:
    with pytest.raises(MechlabError, match=message):
        draw_interchanges(arithmetic_problem(), **options)


def test_shares_that_never_occur_are_refused() -> None:
    constant = arithmetic_problem(lambda rng: {"a": rng.randrange(50), "b": 0, "c": 1})
    with pytest.raises(MechlabError, match=r"share of changed outputs: 1\.0"):
        draw_interchanges(constant, "sum", n=4, changed=1.0)


def test_outputs_that_only_an_interchange_gives_can_be_answers() -> None:
    """Both digits are the same without an interchange; with one they need not be."""
    digit = Variable("tens", ("a",), lambda a: a % 3)
    causal = CausalModel(
        ("a", "b"), (digit, Variable("out", ("tens", "a"), lambda tens, a: 10 * tens + a % 3)), "out"
    )
    problem = Problem(
        causal,
        lambda rng: {"a": rng.randrange(30), "b": rng.randrange(30)},
        lambda s: [0, s["a"], s["b"]],
        lambda value: 100 + value,
    )
    data = draw_interchanges(problem, "tens", n=60)
    assert set(data.answers.tolist()) == {100 + 10 * tens + ones for tens in range(3) for ones in range(3)}
    assert set(data.answers.tolist()) <= set(data.outputs.tolist())
    with pytest.raises(MechlabError, match="two outputs have one token"):
        draw_interchanges(replace(problem, token=lambda value: 7), "tens", n=60)


def test_prompts_of_several_lengths_are_refused() -> None:
    problem = Problem(
        arithmetic(), arithmetic_problem().draw, lambda s: [0] * (1 + s["a"]), lambda value: value
    )
    with pytest.raises(MechlabError, match="several lengths"):
        draw_interchanges(problem, "sum", n=20)
