"""Effects of features and errors: against written-out gradients, patching and single ablations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from feature_models import D_MODEL, filled, sae_at, subject_of, transcoder_at
from torch import Tensor, nn

from mechlab.circuits.features.edges import feature_graph
from mechlab.circuits.features.effects import feature_effects
from mechlab.circuits.features.evaluate import exact_effects
from mechlab.circuits.features.sites import mask_of, top_nodes
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.sae.codes import scatter
from mechlab.sae.splice import At
from mechlab.sae.topk import TopK, TopKConfig

SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out")
Make, MakeTask = Callable[..., nn.Module], Callable[..., Task]


def metric(subject: Subject, task: Task) -> Tensor:
    logits = subject.module(task.clean, use_cache=False).logits[:, -1]
    rows = torch.arange(len(task))
    return logits[rows, task.answers] - logits[rows, task.wrong]


def value(subject: Subject, site: str, tokens: Tensor) -> Tensor:
    found: list[Tensor] = []
    with torch.no_grad(), editing(subject, site, lambda x: found.append(x) or x):  # type: ignore[func-returns-value]
        subject.module(tokens, use_cache=False)
    return found[0]


def dense(at: At, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes ``[batch pos d_sae]`` and error, written out."""
    codes = scatter(at.sae.encode(x.flatten(0, 1)), at.sae.d_sae).view(*x.shape[:2], -1)
    return codes, x - codes @ at.sae.W_dec - at.sae.b_dec


@pytest.mark.parametrize(("arch", "ablation"), [("topk", "resample"), ("jumprelu", "zero")])
def test_attribution_is_the_gradient_at_each_latent(
    random_module: Make, random_task: MakeTask, architecture: str, arch: str, ablation: str
) -> None:
    subject, task = subject_of(random_module(architecture)), random_task()
    dictionaries = [sae_at(site, arch, seed) for seed, site in enumerate(SITES)]
    effects = feature_effects(
        subject, dictionaries, task, method="attribution", ablation=ablation, by_position=True, batch_size=4
    )
    assert list(effects) == list(SITES)
    for at in dictionaries:
        site = at.inputs[0]
        codes, error = dense(at, value(subject, site, task.clean))
        other, other_error = dense(at, value(subject, site, task.corrupt))
        if ablation == "zero":
            other, other_error = torch.zeros_like(codes), torch.zeros_like(error)
        codes, error = codes.requires_grad_(), error.requires_grad_()
        made = codes @ at.sae.W_dec + at.sae.b_dec + error
        with editing(subject, site, lambda _, made=made: made):
            metric(subject, task).sum().backward()
        assert codes.grad is not None
        assert error.grad is not None
        latents = (codes.grad * (codes - other)).sum(0) / len(task)
        errors = (error.grad * (error - other_error)).sum((0, 2)) / len(task)
        expected = torch.cat([latents, errors[:, None]], 1).detach()
        torch.testing.assert_close(effects[site], expected, atol=1e-5, rtol=1e-3)
    summed = feature_effects(subject, dictionaries, task, method="attribution", ablation=ablation)
    for site, effect in effects.items():
        torch.testing.assert_close(summed[site], effect.sum(0, keepdim=True), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_integrated_effects_of_a_site_add_up_to_patching_it(
    random_module: Make, random_task: MakeTask, architecture: str, ablation: str
) -> None:
    subject, task = subject_of(random_module(architecture, scale=0.2)), random_task()
    dictionaries = [sae_at(site) for site in SITES[:2]]
    gaps = []
    for steps in (1, 8):
        effects = feature_effects(subject, dictionaries, task, steps=steps, ablation=ablation)
        gap = 0.0
        for at in dictionaries:
            site = at.inputs[0]
            patch = value(subject, site, task.corrupt)
            patch = at.sae.b_dec.expand_as(patch) if ablation == "zero" else patch
            with torch.no_grad(), editing(subject, site, lambda _, patch=patch: patch):
                patched = metric(subject, task)
            whole = float((metric(subject, task) - patched).mean())
            gap = max(gap, abs(float(effects[site].sum()) - whole))
            assert abs(whole) > 1e-3
        gaps.append(gap)
    assert gaps[1] < 0.02
    assert gaps[1] < gaps[0]


def test_effects_have_the_sign_of_single_ablations(random_module: Make, random_task: MakeTask) -> None:
    subject, task = subject_of(random_module("gpt2", scale=0.2)), random_task(n=8)
    dictionaries = [sae_at(site) for site in SITES]
    effects = feature_effects(subject, dictionaries, task, by_position=True)
    nodes = top_nodes(subject, effects, 25)
    assert {node.kind for node in nodes} == {"feature", "error"}
    exact = exact_effects(subject, dictionaries, task, nodes, effects).mean(1)
    found = torch.tensor([node.score for node in nodes])
    assert float(((exact > 0) == (found > 0)).float().mean()) > 0.85
    assert float(torch.corrcoef(torch.stack([exact, found]))[0, 1]) > 0.6


def test_a_single_ablation_exchanges_what_one_node_writes(random_module: Make, random_task: MakeTask) -> None:
    subject, task = subject_of(random_module("llama")), random_task()
    at = sae_at(SITES[1])
    effects = feature_effects(subject, [at], task, by_position=True)
    nodes = top_nodes(subject, effects, 12)
    exact = exact_effects(subject, [at], task, nodes, effects)
    x, whole = value(subject, SITES[1], task.clean), metric(subject, task)
    (codes, error), (other, other_error) = dense(at, x), dense(at, value(subject, SITES[1], task.corrupt))
    for node, effect in zip(nodes, exact, strict=True):
        moved, p = x.clone(), node.position
        if node.index is None:
            moved[:, p] += (other_error - error)[:, p]
        else:
            moved[:, p] += (other - codes)[:, p, node.index, None] * at.sae.W_dec[node.index]
        with torch.no_grad(), editing(subject, SITES[1], lambda _, moved=moved: moved):
            without = metric(subject, task)
        torch.testing.assert_close(effect, whole - without, atol=1e-4, rtol=1e-3)


def test_top_nodes_are_the_largest(random_module: Make) -> None:
    subject = subject_of(random_module("gpt2"))
    effects = {
        SITES[0]: torch.tensor([[0.0, -3.0, 1.0, 2.5]]),
        SITES[2]: torch.tensor([[4.0, 0.0, 0.1, -0.5]]),
    }
    nodes = top_nodes(subject, effects, 3)
    assert [(node.name, node.score) for node in nodes] == [
        ("blocks.0.hook_resid_post/f1", -3.0),
        ("blocks.0.hook_resid_post/error", 2.5),
        ("blocks.1.hook_mlp_out/f0", 4.0),
    ]
    assert [node.layer for node in nodes] == [0, 0, 1]
    assert len(top_nodes(subject, effects, 99)) == 6
    assert all(node.kind == "feature" for node in top_nodes(subject, effects, 99, errors=False))
    masks = mask_of(nodes, effects)
    assert masks[SITES[0]].tolist() == [[False, True, False, True]]
    assert masks[SITES[2]].tolist() == [[True, False, False, False]]


def test_errors_say_what_is_wrong(random_module: Make, random_task: MakeTask) -> None:
    subject, task, at = subject_of(random_module("gpt2")), random_task(), sae_at(SITES[0])
    for settings, wrong in (
        ({"method": "igg"}, "attribution method"),
        ({"ablation": "mean"}, "ablation"),
        ({"steps": 0}, "at least one step"),
        ({"metric": "logits"}, "metric"),
    ):
        with pytest.raises(MechlabError, match=wrong):
            feature_effects(subject, [at], task, **settings)  # type: ignore[arg-type]
    for given, wrong in (
        ([], "no dictionary"),
        ([at, at], "two dictionaries"),
        ([transcoder_at(1)], "reconstruct"),
    ):
        with pytest.raises(MechlabError, match=wrong):
            feature_effects(subject, given, task)
    narrow = At(filled(TopK(TopKConfig(d_sae=8, k=2), D_MODEL - 1), 0), (SITES[0],), (SITES[0],))
    with pytest.raises(MechlabError, match="another size"):
        feature_effects(subject, [narrow], task)
    effects = feature_effects(subject, [at], task, steps=1)
    with pytest.raises(MechlabError, match="at least 1"):
        top_nodes(subject, effects, 0)
    there = top_nodes(subject, feature_effects(subject, [at], task, steps=1, by_position=True), 1)
    with pytest.raises(MechlabError, match="no such node"):
        mask_of(there, effects)


def test_a_model_of_another_type_gives_the_same_effects(random_module: Make, random_task: MakeTask) -> None:
    task, dictionaries = random_task(), [sae_at(site) for site in SITES]
    single, double = (
        feature_effects(subject_of(module), dictionaries, task, method="attribution")
        for module in (random_module("llama"), random_module("llama").double())
    )
    for site, effect in single.items():
        torch.testing.assert_close(effect, double[site].float(), atol=1e-4, rtol=1e-2)


@pytest.mark.gpu
def test_on_a_gpu(random_module: Make, random_task: MakeTask) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    task, dictionaries = random_task(), [sae_at(site) for site in SITES]
    found = []
    for device in ("cpu", "cuda"):
        subject = subject_of(random_module("gpt2").to(device))
        effects = feature_effects(subject, dictionaries, task, steps=2)
        nodes = top_nodes(subject, effects, 8)
        graph = feature_graph(subject, dictionaries, task, nodes)
        found.append((effects, graph.scores, exact_effects(subject, dictionaries, task, nodes, effects)))
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-2)
