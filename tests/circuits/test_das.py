"""Distributed alignment search: planted directions are found, and the controls catch what is not there."""

from __future__ import annotations

import copy
from dataclasses import replace
from random import Random

import pytest
import torch

from mechlab.activations.capture import read_sites
from mechlab.circuits.causal.das import das, learn_subspace, matched, random_model
from mechlab.circuits.causal.imposed import imposed_problem, load_imposed
from mechlab.circuits.causal.interchange import Place, interchange_logits, winners
from mechlab.circuits.causal.model import CausalModel, Variable
from mechlab.circuits.causal.problem import Problem, draw_interchanges
from mechlab.errors import MechlabError
from mechlab.models.sites import site_table
from mechlab.models.subject import Subject

SAME = Place("blocks.0.hook_resid_post", 2)


@pytest.fixture(scope="module")
def subject():
    return load_imposed()


def search(subject, place, k=1):
    return das(subject, imposed_problem(), "same", place, k=k, n_train=128, n_test=120, steps=60, rate=0.03)


@pytest.fixture(scope="module")
def found(subject):
    return search(subject, SAME)


def test_a_variable_is_found_in_one_dimension(found) -> None:
    assert found.place.subspace.shape == (1, 32)
    assert float(found.place.subspace.norm()) == pytest.approx(1.0, abs=1e-4)
    assert found.score.value >= 0.95
    assert found.score.n == 120
    assert found.whole.value >= 0.95
    assert found.holds


def test_controls_of_a_variable_stay_at_chance(found) -> None:
    assert found.score.chance == 0.5
    assert found.placebo.low <= 0.5 <= found.placebo.high
    assert found.arbitrary.low <= 0.5 <= found.arbitrary.high
    assert found.random_model.high < 0.5


def test_a_position_that_does_not_hold_it_scores_chance(subject) -> None:
    elsewhere = search(subject, replace(SAME, position=3), k=4)
    assert elsewhere.score.low <= 0.5 <= elsewhere.score.high
    assert not elsewhere.holds


def test_the_placebo_catches_a_subspace_that_is_nearly_everything(subject) -> None:
    nearly = search(subject, SAME, k=31)
    assert nearly.score.value >= 0.95
    assert nearly.placebo.value >= 0.95
    assert not nearly.holds


def test_a_half_precision_model_can_be_searched(subject) -> None:
    module = copy.deepcopy(subject.module).to(torch.bfloat16)
    half = search(Subject("half", module, subject.tokenizer, site_table(module)), SAME)
    assert half.score.value >= 0.9
    assert half.holds


def planted(random_module, as_subject) -> tuple[Subject, Problem, torch.Tensor]:
    """A model whose output follows one direction of the embedding, hidden in larger other ones."""
    module = random_module("gpt2", 3)
    for block in module.transformer.h:
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.weight.data.zero_()
            part.bias.data.zero_()
    module.transformer.wpe.weight.data.zero_()
    module.transformer.ln_f.weight.data.fill_(1.0)
    module.transformer.ln_f.bias.data.zero_()
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(24, generator=generator)
    direction = (direction - direction.mean()) / (direction - direction.mean()).norm()
    # Fewer dimensions than tokens: nothing but the direction tells odd tokens from even ones.
    rest = torch.randn(30, 6, generator=generator) @ torch.randn(6, 24, generator=generator) / 2
    rest = rest - rest.mean(1, keepdim=True)
    rest = rest - (rest @ direction)[:, None] * direction
    rest[:2] = 0  # the outputs, tokens 0 and 1, are the two ends of the direction
    sign = torch.tensor([1.0, -1.0]).repeat(15)[:, None]
    module.transformer.wte.weight.data.copy_(rest + sign * direction)
    causal = CausalModel(("a", "b"), (Variable("odd", ("a",), lambda a: a % 2),), "odd")

    def draw(rng: Random) -> dict[str, int]:
        return {"a": rng.randrange(2, 30), "b": rng.randrange(2, 30)}

    problem = Problem(causal, draw, lambda s: [s["b"], s["a"]], lambda value: value)
    tokenizer = as_subject(module).tokenizer
    return Subject("planted", module, tokenizer, site_table(module)), problem, direction


@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_direction_is_recovered(random_module, as_subject, seed) -> None:
    subject, problem, direction = planted(random_module, as_subject)
    data = draw_interchanges(problem, "odd", n=128, split="train", seed=seed)
    place = Place("blocks.1.hook_resid_post", -1)
    rows = learn_subspace(subject, data, place, k=1, steps=100, rate=0.02, seed=seed)
    assert float((rows[0] @ direction).abs()) > 0.9
    test = draw_interchanges(problem, "odd", n=100, seed=seed)
    logits = interchange_logits(subject, test, {"odd": replace(place, subspace=rows)})
    assert float((winners(logits, test.outputs) == test.answers).double().mean()) > 0.95


def test_same_seed_same_subspace(subject) -> None:
    data = draw_interchanges(imposed_problem(), "same", n=64, split="train")
    one, two, other = (learn_subspace(subject, data, SAME, k=2, steps=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.allclose(one, other, atol=1e-2)
    torch.testing.assert_close(one @ one.T, torch.eye(2), atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in subject.module.parameters())


def test_the_placebo_moves_as_far_as_the_search(subject) -> None:
    data = draw_interchanges(imposed_problem(), "same", n=16)
    source = read_sites(subject, data.sources["same"], [SAME.site])[SAME.site]
    value = read_sites(subject, data.base, [SAME.site])[SAME.site]
    rows, other = (
        torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(s)))[0].T for s in (0, 1)
    )
    moved = matched(source, rows, other)(value) - value
    torch.testing.assert_close(
        moved.norm(dim=-1), ((source - value) @ rows.T).norm(dim=-1), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(moved @ other.T @ other, moved, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(matched(source, rows, rows)(value), value + (source - value) @ rows.T @ rows)


def test_the_random_model_has_the_shape_and_none_of_the_weights(subject) -> None:
    blank = random_model(subject, 5)
    assert blank.module.config is subject.module.config
    assert torch.equal(
        blank.logits(torch.zeros(1, 3, dtype=torch.long)),
        random_model(subject, 5).logits(torch.zeros(1, 3, dtype=torch.long)),
    )
    for name, parameter in subject.module.named_parameters():
        if parameter.ndim > 1:
            assert not torch.allclose(parameter, blank.module.get_parameter(name), atol=1e-3)


@pytest.mark.parametrize(
    ("variables", "place", "k", "message"),
    [
        ("same", SAME, 0, "does not fit the site: 0"),
        ("same", SAME, 33, "does not fit the site: 33"),
        ("same", Place(SAME.site, 2, torch.eye(32)[:1]), 1, "has a subspace already"),
        (("same", "carried"), SAME, 1, "for one variable: same, carried"),
    ],
)
def test_searches_that_make_no_sense_are_refused(subject, variables, place, k, message) -> None:
    data = draw_interchanges(imposed_problem(), variables, n=8)
    with pytest.raises(MechlabError, match=message):
        learn_subspace(subject, data, place, k=k, steps=1)
