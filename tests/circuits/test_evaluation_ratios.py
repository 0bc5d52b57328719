"""Both faithfulness ratios, size curves and stability."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mechlab.circuits.ablation import Ablation
from mechlab.circuits.attribution import edge_scores
from mechlab.circuits.evaluate import random_circuits, run_circuits
from mechlab.circuits.evaluation.curve import SHARES, size_curves
from mechlab.circuits.evaluation.ratios import mean_of_ratios, ratio_of_means
from mechlab.circuits.evaluation.stability import jaccard, resampled, rows_of, stability
from mechlab.circuits.graph import Graph
from mechlab.circuits.search.found import clean_up
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Shape


def test_the_two_ratios_differ() -> None:
    whole = torch.tensor([4.0, 4.0, 0.01, 1.0])
    empty = torch.tensor([0.0, 0.0, 0.00, 1.0])
    values = torch.tensor([4.0, 2.0, 1.00, 5.0])
    assert ratio_of_means(values, whole, empty).value == pytest.approx(11 / 8.01, rel=1e-5)
    ratios, undefined = mean_of_ratios(values, whole, empty)
    assert ratios.value == pytest.approx((1 + 0.5 + 100) / 3, rel=1e-5)
    assert (undefined, ratios.n) == (1, 3)
    assert ratios.low < 1 < ratios.high


def test_no_prompt_has_a_gap() -> None:
    same = torch.tensor([1.0, 2.0])
    ratios, undefined = mean_of_ratios(same, same, same)
    assert np.isnan(ratios.value)
    assert undefined == 2
    assert np.isnan(ratio_of_means(same, same, same).value)


@pytest.mark.parametrize("kind", ["resample", "zero"])
def test_size_curves(kind, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2", 3)), random_task(3, n=8)
    # Where no prompt's gap is negative, resampled gaps are not near zero.
    _, whole, empty = run_circuits(forward, task, Graph(forward.shape).real[None], ablation=Ablation(kind))
    flip = whole < empty
    answers, wrong = (
        torch.where(flip, *pair) for pair in ((task.wrong, task.answers), (task.answers, task.wrong))
    )
    task = replace(task, answers=answers, wrong=wrong)
    scores = edge_scores(forward, task, method="eap")
    ablation = Ablation(kind)
    cpr, cmd = size_curves(forward, task, scores, ablation=ablation)
    graph = Graph(forward.shape)
    real = scores[graph.real]
    for curve, ranking in ((cpr, real), (cmd, real.abs())):
        assert [point.share for point in curve.points] == list(SHARES)
        assert [point.n_top for point in curve.points][-3:] == [
            int(graph.n_edges * 0.2),
            graph.n_edges // 2,
            graph.n_edges,
        ]
        assert curve.points[-1].faithfulness == pytest.approx(1, abs=1e-4)
        heights = []
        for point in curve.points:
            mask = torch.zeros_like(graph.real)
            mask[graph.real] = ranking >= ranking.sort(descending=True).values[point.n_top - 1]
            mask = clean_up(graph, mask if point.n_top else torch.zeros_like(mask), kind)
            assert point.n_edges == mask.sum()
            values, whole, empty = run_circuits(forward, task, mask[None], ablation=ablation)
            heights.append(float((values[0] - empty).mean() / (whole - empty).mean()))
            assert point.faithfulness == pytest.approx(heights[-1], abs=1e-3)
        f = np.array(heights)
        expected = np.trapezoid(f if curve is cpr else np.abs(1 - f), np.array(SHARES))
        assert curve.area.value == pytest.approx(expected, abs=1e-3)
        assert curve.area.low <= curve.area.value <= curve.area.high
        assert curve.area.n == 8


def test_jaccard_and_stability() -> None:
    graph = Graph(Shape(3, 4, 2, parallel=False))
    some = random_circuits(graph, 20, 3, seed=1)
    assert jaccard(some[0], some[0]) == 1
    assert jaccard(torch.zeros_like(some[0]), torch.zeros_like(some[0])) == 1
    found = stability(graph, some, seed=1)
    pairs = [jaccard(some[i], some[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.low <= found.value <= found.high
    # Random circuits of one size are each other's control.
    assert found.null is not None
    assert found.null.value == pytest.approx(found.value, abs=0.25)
    same = stability(graph, some[:1].repeat(4, 1, 1))
    assert (same.value, same.low, same.high, same.n) == (1, 1, 1, 4)
    assert same.beats_null
    with pytest.raises(MechlabError, match="at least two circuits"):
        stability(graph, some[:1])


def test_resampled_prompts(random_task) -> None:
    task = replace(random_task(n=9), groups=torch.arange(9))
    drawn = list(resampled(task, 3, seed=4))
    assert len(drawn) == 3
    for each in drawn:
        assert len(each) == len(each.prompts) == 9
        rows = [task.prompts.index(prompt) for prompt in each.prompts]
        assert torch.equal(each.clean, task.clean[rows])
        assert torch.equal(each.groups, torch.tensor(rows))
        assert torch.equal(each.positions["end"], task.positions["end"][rows])
    assert drawn[0].prompts != drawn[1].prompts
    assert drawn[0].prompts == next(resampled(task, 1, seed=4)).prompts
    assert len(rows_of(task, torch.tensor([2, 2]))) == 2
