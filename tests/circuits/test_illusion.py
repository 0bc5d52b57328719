"""The illusion test: planted illusory directions are exposed, faithful ones pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.circuits.causal.illusion import illusion_test, output_map, split_spaces
from mechlab.circuits.causal.interchange import Place
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.sites import site_table
from mechlab.models.subject import Subject

SITE = "blocks.1.mlp.hook_post"


@pytest.fixture
def subject(random_module, as_subject):
    def make(architecture: str = "gpt2", seed: int = 0) -> Subject:
        module = random_module(architecture, seed)
        return Subject("random", module, as_subject(module).tokenizer, site_table(module))

    return make


@pytest.fixture
def one_mlp(subject):
    """A model in which only block 1's MLP adds to the embedding, so it carries what a task is about."""

    def make(seed: int = 0) -> Subject:
        model = subject("gpt2", seed)
        for number, block in enumerate(model.module.transformer.h):
            for part in (block.attn.c_proj, block.mlp.c_proj):
                scale = 6.0 if number == 1 and part is block.mlp.c_proj else 0.0
                part.weight.data *= scale
                part.bias.data.zero_()
        return model

    return make


def two_endings(subject: Subject, n: int = 24) -> Task:
    """Clean prompts end with token 3, corrupt ones with token 4; the answers are what that changes most."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(5, 30, (n, 5), generator=generator)
    corrupt = clean.clone()
    clean[:, -1], corrupt[:, -1] = 3, 4
    gap = (subject.logits(clean) - subject.logits(corrupt))[:, -1].mean(0)
    return Task(
        name="endings",
        clean=clean,
        corrupt=corrupt,
        answers=gap.argmax().repeat(n),
        wrong=gap.argmin().repeat(n),
        positions={"end": torch.full((n,), 4)},
        prompts=("clean",) * n,
        corrupt_prompts=("corrupt",) * n,
    )


def mean_gap(subject: Subject, task: Task) -> Tensor:
    """What the site differs by at the end, corrupt less clean."""
    values = [read_sites(subject, tokens, [SITE])[SITE][:, -1] for tokens in (task.corrupt, task.clean)]
    return (values[0] - values[1]).mean(0).double()


def downhill(subject: Subject, task: Task) -> Tensor:
    """The direction at the site along which the logit difference falls."""
    held: list[Tensor] = []

    def hook(_m, args):
        held.append(args[0].detach().requires_grad_())
        return (held[0],)

    handle = subject.module.transformer.h[1].mlp.c_proj.register_forward_pre_hook(hook)
    logits = subject.module(task.clean).logits[:, -1]
    handle.remove()
    metric = logits.gather(1, task.answers[:, None]) - logits.gather(1, task.wrong[:, None])
    return -torch.autograd.grad(metric.sum(), held[0])[0][:, -1].mean(0).double()


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_illusory_direction_is_exposed(one_mlp, seed) -> None:
    model = one_mlp(seed)
    task = two_endings(model)
    gap = mean_gap(model, task)
    reads, ignores = split_spaces(output_map(model, SITE))
    disconnected = unit(gap @ ignores.T @ ignores)
    # What the map reads but the two endings do not differ in.
    active = unit(gap @ reads.T @ reads)
    dormant = downhill(model, task)
    dormant = unit(dormant - active * (active @ dormant))
    direction = unit(disconnected + dormant)
    place = Place(SITE, -1, direction[None].float())
    test = illusion_test(model, task, place)
    assert test.row_share == pytest.approx(0.5, abs=1e-3)
    assert test.full.value > 0.1
    assert test.full.value > 4 * abs(test.row_space.value)
    assert test.full.value > 4 * abs(test.random.value)
    assert test.null_space.value == pytest.approx(0.0, abs=1e-4)
    assert test.illusory


def test_a_direction_that_the_model_uses_passes(one_mlp) -> None:
    model = one_mlp()
    task = two_endings(model)
    reads, _ = split_spaces(output_map(model, SITE))
    direction = unit(mean_gap(model, task) @ reads.T @ reads)
    test = illusion_test(model, task, Place(SITE, -1, direction[None].float()))
    assert test.null_space is None
    assert test.row_share == pytest.approx(1.0, abs=1e-4)
    assert test.row_space.value == pytest.approx(test.full.value, abs=1e-3)
    assert test.full.value > 0.5 * test.whole.value
    assert not test.illusory
    assert len(test.table().splitlines()) == 5
    assert "–" in test.table()


def test_half_null_space_by_itself_is_no_illusion(one_mlp) -> None:
    """A direction whose row-space part does the same alone passes, whatever else is in it."""
    model = one_mlp()
    task = two_endings(model)
    _, ignores = split_spaces(output_map(model, SITE))
    gap = mean_gap(model, task)
    test = illusion_test(model, task, Place(SITE, -1, unit(gap)[None].float()))
    assert float((unit(gap) @ ignores.T).norm()) > 0.3
    assert test.row_space.value > 0.5 * test.full.value
    assert not test.illusory


def test_a_random_direction_is_not_called_illusory(one_mlp) -> None:
    model = one_mlp()
    direction = unit(torch.randn(96, generator=torch.Generator().manual_seed(3)))
    test = illusion_test(model, two_endings(model), Place(SITE, -1, direction[None]))
    assert not test.illusory


def test_the_whole_space_has_the_whole_effect(subject) -> None:
    model = subject("llama")
    task = two_endings(model)
    test = illusion_test(model, task, Place("blocks.1.mlp.hook_post", -1, torch.eye(32)))
    assert test.full.value == pytest.approx(test.whole.value, abs=1e-4)
    assert test.row_space.value == pytest.approx(test.whole.value, abs=1e-4)


def test_a_baseline_of_nothing_is_refused(subject) -> None:
    model = subject()
    with pytest.raises(MechlabError, match="at least one random subspace: 0"):
        illusion_test(model, two_endings(model), Place(SITE, -1, torch.eye(96)[:1]), n_random=0)


@pytest.mark.parametrize("site", ["blocks.1.mlp.hook_post", "blocks.0.attn.hook_z"])
def test_the_map_is_what_the_module_does(architecture, subject, site) -> None:
    model = subject(architecture)
    place, matrix = model.site(site), output_map(model, site)
    reader = model.module.get_submodule(place.module)
    x = torch.randn(4, place.dim, generator=torch.Generator().manual_seed(0))
    wanted = reader(x) - reader(torch.zeros_like(x))
    torch.testing.assert_close((x.double() @ matrix).float(), wanted, atol=1e-4, rtol=1e-4)
    heads = [output_map(model, f"{site}:{head}") for head in range(place.heads or 0)]
    assert not heads or torch.equal(torch.cat(heads), matrix)


@pytest.mark.parametrize(("dim", "out", "rank"), [(8, 3, 3), (3, 8, 3), (6, 5, 2)])
def test_spaces_split_what_is_read_from_what_is_not(dim, out, rank) -> None:
    generator = torch.Generator().manual_seed(dim)
    left, right = (torch.randn(shape, generator=generator).double() for shape in ((dim, rank), (rank, out)))
    reads, ignores = split_spaces(left @ right)
    assert (len(reads), len(ignores)) == (rank, dim - rank)
    both = torch.cat([reads, ignores])
    torch.testing.assert_close(both @ both.T, torch.eye(dim).double())
    torch.testing.assert_close(ignores @ left, torch.zeros(dim - rank, rank).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place(SITE, -1), "place has no subspace"),
        (Place(SITE, -1, torch.eye(4)), "another size than the site: 4"),
        (Place("blocks.1.hook_resid_post", -1, torch.eye(24)), "no linear map reads this site"),
        (Place("blocks.1.hook_resid_mid", -1, torch.eye(24)), "no linear map reads this site"),
    ],
)
def test_what_cannot_be_tested_is_refused(subject, place, message) -> None:
    model = subject()
    with pytest.raises(MechlabError, match=message):
        illusion_test(model, two_endings(model), place)
