"""Accuracy, F1 and AUROC from totals, and the logistic probe."""

from __future__ import annotations

import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.sae.metrics.logistic import fit_logistic
from mechlab.sae.metrics.verdicts import BINS, Figures, Verdicts


def random_verdicts(rows: int, concepts: int, seed: int, *, distinct: int | None = None) -> Verdicts:
    generator = torch.Generator().manual_seed(seed)
    actual = torch.rand(rows, concepts, generator=generator) < 0.4
    scores = torch.randn(rows, concepts, generator=generator) + actual
    if distinct:
        scores = (scores * distinct / 6).round()
    counted = torch.rand(rows, concepts, generator=generator) < 0.8
    return Verdicts(scores, actual, counted, torch.randint(0, 12, (rows,), generator=generator))


def test_by_hand() -> None:
    scores = torch.tensor([[3.0], [1.0], [-1.0], [2.0], [-2.0], [-3.0]])
    actual = torch.tensor([[1], [1], [1], [0], [0], [0]], dtype=torch.bool)
    counted = torch.ones_like(actual)
    got = Verdicts(scores, actual, counted, torch.arange(6))
    assert got.accuracy().value == pytest.approx(4 / 6)
    assert got.f1().value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert got.auroc().value == pytest.approx(7 / 9)  # 3 beats 3, 1 beats 2, -1 beats 2
    assert got.f1_of_chance() == pytest.approx(0.5)
    assert got.accuracy().n == 6
    counted[3] = False
    assert Verdicts(scores, actual, counted, torch.arange(6)).auroc().value == 1.0


@pytest.mark.parametrize(("rows", "concepts", "seed"), [(60, 1, 0), (200, 3, 1), (500, 5, 2)])
def test_means_over_concepts_equal_a_loop(rows: int, concepts: int, seed: int) -> None:
    got = random_verdicts(rows, concepts, seed, distinct=20)
    assert len(got.scores.unique()) <= BINS
    accuracy, f1, auroc = [], [], []
    for c in range(concepts):
        keep = got.counted[:, c]
        s, y = got.scores[keep, c], got.actual[keep, c]
        said = s > 0
        accuracy.append(float((said == y).float().mean()))
        f1.append(float(2 * (said & y).sum() / (said.sum() + y.sum())))
        above = (s[y][:, None] > s[~y]).float() + (s[y][:, None] == s[~y]).float() / 2
        auroc.append(float(above.mean()))
        assert got.f1(c).value == pytest.approx(f1[c], abs=1e-6)
        assert got.auroc(c).value == pytest.approx(auroc[c], abs=1e-6)
    for score, want in ((got.accuracy(), accuracy), (got.f1(), f1), (got.auroc(), auroc)):
        assert score.value == pytest.approx(sum(want) / concepts, abs=1e-6)
        assert score.low <= score.value <= score.high
        assert score.n == 12


def test_binned_auroc_is_close_to_the_exact_one() -> None:
    got = random_verdicts(4000, 1, 3)
    keep = got.counted[:, 0]
    s, y = got.scores[keep, 0], got.actual[keep, 0]
    exact = float((s[y][:, None] > s[~y]).float().mean())
    assert got.auroc().value == pytest.approx(exact, abs=0.01)


def test_nulls_are_carried() -> None:
    figures = Figures.of(random_verdicts(300, 2, 0), random_verdicts(300, 2, 1))
    assert figures.accuracy.null is not None
    assert figures.accuracy.chance == figures.auroc.chance == 0.5
    assert figures.f1.chance == pytest.approx(random_verdicts(300, 2, 1).f1_of_chance())


def objective(w, b, x, y):
    z = x @ w + b
    return (torch.nn.functional.softplus(z) - y * z).sum() + (w**2).sum() / 2


@pytest.mark.parametrize(("rows", "d", "shift", "seed"), [(40, 1, 0, 0), (200, 6, 5, 1), (60, 100, 0, 2)])
def test_the_probe_is_the_minimum(rows: int, d: int, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=generator) + shift
    y = x[:, 0] + torch.randn(rows, generator=generator) > shift
    probe = fit_logistic(x, y)
    w, b = probe.weight.double().requires_grad_(), probe.bias.double().requires_grad_()
    objective(w, b, x.double(), y.double()).backward()
    assert w.grad.abs().max() < 1e-3
    assert b.grad.abs() < 1e-3


def test_separable_rows_and_constant_columns_have_a_probe() -> None:
    x = torch.tensor([[0.0, 7.0], [0.0, 7.0], [50.0, 7.0], [60.0, 7.0]])
    y = torch.tensor([False, False, True, True])
    probe = fit_logistic(x, y)
    assert torch.equal(probe.score(x) > 0, y)
    assert probe.weight.isfinite().all()
    silent = fit_logistic(torch.zeros(4, 1), y)
    assert float(silent.weight[0]) == 0.0


def test_probe_refusals() -> None:
    with pytest.raises(MechlabError, match="both classes"):
        fit_logistic(torch.ones(3, 1), torch.ones(3, dtype=torch.bool))
    with pytest.raises(MechlabError, match="not finite"):
        fit_logistic(torch.tensor([[torch.nan], [1.0]]), torch.tensor([True, False]))
