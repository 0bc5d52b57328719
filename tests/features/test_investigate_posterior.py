"""Posterior and information gain against brute force and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mechlab.features.investigate.facts import Facts, Hypothesis
from mechlab.features.investigate.posterior import (
    FLIPS,
    binary_entropy,
    flip_rate,
    information,
    likelihoods,
    rule_cost,
)
from mechlab.features.investigate.search import particles
from mechlab.features.rules import Inside, Token, Within


def test_likelihood_is_the_integral_over_the_flip_rate() -> None:
    a, b = FLIPS
    n = 12
    # Substituting the rate by its square root's square removes the pole that a = 1/2 has at 0.
    u = (np.arange(200_000) + 0.5) / 200_000
    rate = u**2
    prior = rate ** (a - 1) * (1 - rate) ** (b - 1) * 2 * u
    for errors in range(4):
        brute = (rate**errors * (1 - rate) ** (n - errors) * prior).sum() / prior.sum()
        assert math.exp(likelihoods(n)[errors]) == pytest.approx(brute, rel=1e-4)
    assert flip_rate(3, n) == pytest.approx((a + 3) / (a + b + n))


def test_weights_are_the_normalised_posterior() -> None:
    facts = Facts([[" a", " cat"], [" the", " cat"], [" the", " dog"]])
    labels = 0b001000  # " cat" after " the"
    found = particles(facts, labels)
    brute = [
        likelihoods(facts.n)[(facts.rule(rule) ^ labels).bit_count()] - rule_cost(rule)
        for rule in found.rules
    ]
    expected = np.exp(brute) / np.exp(brute).sum()
    assert found.weights == pytest.approx(expected)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    # The conjunction is the cheapest rule in the grammar that has no errors here.
    assert found.errors == 0
    both: Hypothesis = ((Token((" cat",)), Token((" the",), -1)),)
    assert {frozenset(rule[0]) for rule in found.rules} >= {frozenset(both[0])}


def test_cheaper_rules_weigh_more() -> None:
    one, two = ((Token((" a",)),),), ((Token((" a", " b")),),)
    assert rule_cost(one) < rule_cost(two) < rule_cost((*one, (Within((" b",), 3), Inside("quotes"))))


def test_without_active_rows_there_is_nothing_to_explain() -> None:
    assert particles(Facts([[" a", " b"]]), 0).rules == ()


def test_information_by_hand() -> None:
    # Rules 0 and 1 answer alike, rule 2 differs on one token: two groups of 1/2.
    distance = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], float)
    weights = np.array([0.25, 0.25, 0.5])
    assert information(distance[None], weights, 0.0)[0] == pytest.approx(math.log(2))
    rate = 2 * math.sqrt(0.1 * 0.9)
    by_hand = -math.log(0.5 + 0.5 * rate)
    assert information(distance[None], weights, 0.1)[0] == pytest.approx(by_hand)
    assert information(np.zeros((1, 3, 3)), weights, 0.1)[0] == pytest.approx(0.0)


@pytest.mark.parametrize("seed", range(8))
def test_information_is_a_bound_that_is_exact_without_noise(seed: int) -> None:
    generator = np.random.default_rng(seed)
    answers = generator.integers(2, size=(5, 4))
    weights = generator.dirichlet(np.ones(5))
    distance = (answers[:, None] != answers[None]).sum(-1).astype(float)
    groups: dict[tuple[int, ...], float] = {}
    for row, weight in zip(answers.tolist(), weights, strict=True):
        groups[tuple(row)] = groups.get(tuple(row), 0.0) + float(weight)
    entropy = -sum(weight * math.log(weight) for weight in groups.values())
    assert information(distance[None], weights, 0.0)[0] == pytest.approx(entropy)
    for flips in (0.02, 0.1, 0.3):
        mixture = 0.0
        for outcome in itertools.product((0, 1), repeat=4):
            wrong = (answers != np.array(outcome)).sum(1)
            chance = float(weights @ (flips**wrong * (1 - flips) ** (4 - wrong)))
            mixture -= chance * math.log(chance)
        exact = mixture - 4 * binary_entropy(flips)
        assert 0 <= information(distance[None], weights, flips)[0] <= exact + 1e-12


def test_two_texts_tell_no_less_than_one() -> None:
    generator = np.random.default_rng(0)
    answers = generator.integers(2, size=(2, 6, 5))
    parts = (answers[:, :, None] != answers[:, None]).sum(-1).astype(float)
    weights = np.full(6, 1 / 6)
    assert information(parts.sum(0)[None], weights, 0.05)[0] >= information(parts, weights, 0.05).max()
