"""ROC against a known truth, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution import edge_scores
from mechlab.circuits.evaluation.judge import evaluate_mask
from mechlab.circuits.evaluation.minimality import minimality
from mechlab.circuits.evaluation.roc import edge_roc, node_roc, roc
from mechlab.circuits.graph import Graph
from mechlab.errors import MechlabError
from mechlab.models.compiled import compiled_subject, compiled_task, truth
from mechlab.models.forward import DecomposedForward, Shape


@pytest.mark.parametrize(
    ("found", "true", "auc", "pessimistic"),
    [(3, 15, 0.6, 0.2), (6, 10, 0.8, 0.6), (5, 16, 0.65625, 0.3125), (0, 4, 0.5, 0.0), (4, 4, 1.0, 1.0)],
)
def test_some_true_edges_first_and_all_others_tied(found, true, auc, pessimistic) -> None:
    # The first three are how published .200, .600 and .312 come about.
    truth = torch.arange(77) < true
    curve = roc((torch.arange(77) < found).float(), truth)
    assert curve.auc == pytest.approx(auc)
    assert curve.pessimistic == pytest.approx(pessimistic)


def test_by_hand() -> None:
    # Falling scores: true | false and true tied | false | true; rates by thirds and halves.
    scores = torch.tensor([9.0, 5.0, 5.0, 2.0, -1.0])
    truth = torch.tensor([True, False, True, False, True])
    curve = roc(scores, truth)
    assert curve.false == pytest.approx((0, 0, 0.5, 1, 1))
    assert curve.true == pytest.approx((0, 1 / 3, 2 / 3, 2 / 3, 1))
    # Pairs (true, false): 9 beats both, 5 ties one and beats one, −1 beats none: 3½ of 6.
    assert curve.auc == pytest.approx(3.5 / 6)
    assert curve.pessimistic == pytest.approx(0.5 / 3 + 0.5 * 2 / 3)
    assert roc(-scores, truth).auc == pytest.approx(1 - curve.auc)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_trapezoid_is_the_chance_that_a_true_item_wins(seed) -> None:
    draw = np.random.default_rng(seed)
    scores, truth = draw.integers(0, 6, 40), draw.random(40) < 0.3
    wins = [np.sign(a - b) / 2 + 0.5 for a in scores[truth] for b in scores[~truth]]
    curve = roc(torch.tensor(scores).double(), torch.tensor(truth))
    assert curve.auc == pytest.approx(np.mean(wins))
    strict = [a > b for a in scores[truth] for b in scores[~truth]]
    assert curve.pessimistic == pytest.approx(np.mean(strict))  # ties count nothing
    assert curve.pessimistic <= curve.auc


def test_edges_and_nodes() -> None:
    graph = Graph(Shape(2, 2, 2, parallel=False))
    truth = graph.mask([("embed", "a0.h1.q"), ("a0.h1", "m1"), ("m1", "logits")])
    scores = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(0))
    perfect = truth.float() + torch.where(graph.real, 0.0, 9.0)  # what is no edge must not count
    assert edge_roc(graph, perfect, truth).auc == 1
    assert node_roc(graph, perfect, truth).auc == 1
    assert len(edge_roc(graph, scores, truth).false) == graph.n_edges + 1
    # Of six nodes, a0.h1 and m1 are true; m0 gets the highest edge, into it.
    wrong = truth.float()
    wrong[graph.source("a0.h0"), graph.reader("m0")] = 2.0
    found = node_roc(graph, wrong, truth)
    assert found.auc == pytest.approx(4 / 8)  # a0.h0 and m0 beat both, the other two lose
    assert found.true == pytest.approx((0, 0, 1, 1))


def test_mistakes() -> None:
    scores = torch.tensor([1.0, 2.0])
    for same in (torch.tensor([True, True]), torch.tensor([False, False])):
        with pytest.raises(MechlabError, match="ROC needs true and false items"):
            roc(scores, same)
    with pytest.raises(MechlabError, match="scores that are numbers: 1 are not"):
        roc(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))


@pytest.mark.parametrize(
    ("name", "edges", "auc", "pessimistic"),
    [("reverse", (2, 10), 0.6, 0.2), ("proportion", (3, 5), 0.8, 0.6)],
)
def test_a_truth_of_another_ablation_is_missed_by_a_perfect_method(name, edges, auc, pessimistic) -> None:
    subject = compiled_subject(name, device="cpu")
    forward, task = DecomposedForward(subject.module), compiled_task(subject.module, 64, length=5)
    graph, scores = Graph(forward.shape), edge_scores(forward, task, method="eap").abs()
    resample, zero = (truth(subject.module, kind) for kind in ("resample", "zero"))
    assert (int(resample.sum()), int(zero.sum())) == edges
    assert (edge_roc(graph, scores, resample).auc, node_roc(graph, scores, resample).auc) == (1, 1)
    curve = edge_roc(graph, scores, zero)
    assert (curve.auc, curve.pessimistic) == pytest.approx((auc, pessimistic))
    # The needed circuit is all of the behaviour, and every edge of it is missed.
    found = evaluate_mask(
        forward, task, resample, scores, metric="logit_difference", ablation=Ablation("resample"), controls=3
    )
    assert found.faithfulness.value == pytest.approx(1)
    assert found.kl.value == pytest.approx(0, abs=1e-6)
    minimal = minimality(forward, task, resample, controls=5)
    assert [part.score.value for part in minimal.edges] == pytest.approx([1.0] * edges[0])
    assert (minimal.threshold, minimal.matter) == (pytest.approx(0, abs=1e-6), 1)
