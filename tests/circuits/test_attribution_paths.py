"""Paths of integration, ablations, kept axes, information flow, and exact patching of a trained model."""

from __future__ import annotations

import pytest
import torch
from reading import difference, masked_logits

from mechlab.circuits.ablation import Ablation, make_ablation
from mechlab.circuits.attribution import edge_scores, gradient_points, node_scores
from mechlab.circuits.attribution.routes import importance
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import metric_named
from mechlab.circuits.runs import paired_runs
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import load_model

EDGE_METHODS = ("eap", "eap-corrupt", "eap-mean", "eap-ig", "eap-ig-activations", "ifr")


@pytest.mark.parametrize("kind", ["resample", "zero", "mean-positional"])
def test_activation_paths_complete_to_the_exact_effect(
    kind, architecture, random_module, random_task
) -> None:
    """The edges of each source sum to m(clean) − m(clean with the source ablated)."""
    forward, task = DecomposedForward(random_module(architecture, 1, 0.2)), random_task(1, n=3)
    ablation = make_ablation(forward, kind, random_task(9))
    graph = Graph(forward.shape)
    pair = next(paired_runs(forward, task, metric_named("logit_difference")))
    masks = graph.real.repeat(graph.shape.n_sources, 1, 1)
    masks[torch.arange(graph.shape.n_sources), torch.arange(graph.shape.n_sources)] = False
    logits = masked_logits(forward, pair.clean, ablation.values(pair), masks, task.positions["end"])
    exact = torch.stack([(pair.clean.metric - pair.metric(one)).mean() for one in logits])
    errors = []
    for steps in (1, 4, 40):
        scores = edge_scores(forward, task, method="eap-ig-activations", steps=steps, ablation=ablation)
        # With nothing but zero before the first norm, all change lies at α = 0, between any points.
        rows = slice(1 if kind == "zero" else 0, None)
        errors.append(float((node_scores(scores) - exact)[rows].abs().max()))
    assert errors[2] < 0.01 * float(exact.abs().max())
    assert errors[2] < errors[1] < errors[0]


def test_the_path_starts_at_the_ablated_embeddings(architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, 2)), random_task(2)
    mean = make_ablation(forward, "mean-positional", random_task(9))
    low = mean.constant[0, 0].expand(len(task), -1, -1)
    ends = [
        forward.run(x=x, positions=task.positions["end"]).logits for x in (forward.embed(task.clean), low)
    ]
    gap = float((difference(ends[0], task) - difference(ends[1], task)).mean())
    scores = edge_scores(forward, task, steps=200, ablation=mean, batch_size=4)
    assert float(scores[0].sum()) == pytest.approx(gap, rel=0.03)


@pytest.mark.parametrize("method", EDGE_METHODS[:5])
def test_resample_is_what_none_means(method, architecture, random_module, random_task) -> None:
    """The short way of resample ablation equals the way that every other ablation takes."""
    forward, task = DecomposedForward(random_module(architecture, 3)), random_task(3, n=1)
    corrupt = forward.run(task.corrupt, keep=True).sources
    constant = Ablation("mean-positional", corrupt.transpose(0, 1))
    general = edge_scores(forward, task, method=method, ablation=constant, steps=2)
    for ablation in (None, Ablation("resample")):
        short = edge_scores(forward, task, method=method, ablation=ablation, steps=2)
        torch.testing.assert_close(short, general, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("method", EDGE_METHODS)
def test_kept_axes_sum_to_the_scores(method, architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, 4)), random_task(4, n=5)
    plain = edge_scores(forward, task, method=method, steps=2)
    prompts = edge_scores(forward, task, method=method, steps=2, by_prompt=True, batch_size=2)
    positions = edge_scores(forward, task, method=method, steps=2, by_position=True, batch_size=2)
    both = edge_scores(forward, task, method=method, steps=2, by_prompt=True, by_position=True)
    assert both.shape == (5, *plain.shape, 7)
    tolerance = {"atol": 1e-5 * max(1.0, float(plain.abs().max())), "rtol": 1e-3}
    torch.testing.assert_close(prompts.mean(0), plain, **tolerance)
    torch.testing.assert_close(positions.sum(-1), plain, **tolerance)
    torch.testing.assert_close(both.sum(-1), prompts, **tolerance)
    torch.testing.assert_close(both.mean(0), positions, **tolerance)


def test_grids() -> None:
    assert gradient_points("eap-ig", 2) == (0.25, 0.75)
    assert gradient_points("eap-ig", 2, "right") == (0.5, 1.0)
    assert gradient_points("eap-mean") == (0.0, 1.0)
    assert gradient_points("ifr") == ()
    with pytest.raises(MechlabError, match="unknown grid"):
        gradient_points("eap-ig", 2, "left")


def test_a_metric_without_gradient_is_refused(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2")), random_task()
    for method in ("eap", "eap-ig-activations", "atp"):
        with pytest.raises(MechlabError, match="metric has no gradient"):
            edge_scores(forward, task, method=method, metric="accuracy", steps=1)


def test_importance_by_hand() -> None:
    """y = (2, 0): ‖y‖ = 2; sources (3, 0), (−1, 0) and (0, 0) lie at 1, 3 and 2."""
    sources = torch.tensor([[3.0, 0], [-1, 0], [0, 0]])[:, None, None]
    found = importance(sources.sum(0), sources)
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 0, 0]))
    sources = torch.tensor([[3.0, 0], [0, 1]])[:, None, None]
    torch.testing.assert_close(importance(sources.sum(0), sources).flatten(), torch.tensor([0.75, 0.25]))


def test_routes_share_out_every_stream(architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture)), random_task()
    scores = edge_scores(forward, task, method="ifr", batch_size=4)
    torch.testing.assert_close(scores.sum(0), torch.ones(forward.shape.n_readers))
    assert float(scores.min()) >= 0


@pytest.mark.slow
def test_signs_agree_with_exact_patching(stories_model, stories_task) -> None:
    """A small step of an edge towards its corrupt value moves the metric as EAP says."""
    subject = load_model(str(stories_model), device="cpu")
    forward, task = DecomposedForward(subject.module), stories_task(subject, n=8)
    scores = edge_scores(forward, task, method="eap", metric="logit_difference")
    top = scores.flatten().abs().topk(200).indices
    masks = Graph(forward.shape).real.repeat(200, 1, 1)
    masks.flatten(1)[torch.arange(200), top] = False
    pair = next(paired_runs(forward, task, metric_named("logit_difference")))
    expected = scores.flatten()[top].sign()

    def agreement(step: float) -> float:
        other = torch.lerp(pair.clean.sources, pair.corrupt.sources, step)
        logits = masked_logits(forward, pair.clean, other, masks, task.positions["end"])
        effects = torch.stack([(pair.clean.metric - pair.metric(one)).mean() for one in logits])
        return float((effects.sign() == expected).float().mean())

    assert agreement(0.05) >= 0.95
    assert agreement(1.0) >= 0.8


@pytest.fixture
def stories_task():
    """Prompt pairs from random words of the model's vocabulary that differ in two tokens."""

    def make(subject, n: int) -> Task:
        generator = torch.Generator().manual_seed(0)
        size = subject.module.config.vocab_size
        clean = torch.randint(3, size, (n, 12), generator=generator)
        clean[:, 0] = 1
        corrupt = clean.clone()
        corrupt[:, 4:6] = torch.randint(3, size, (n, 2), generator=generator)
        positions = {"end": torch.full((n,), 11)}
        answers = subject.module(clean).logits[:, -1].argmax(-1)
        wrong = subject.module(corrupt).logits[:, -1].topk(2).indices
        wrong = torch.where(wrong[:, 0] == answers, wrong[:, 1], wrong[:, 0])
        names = tuple(f"clean {row}" for row in range(n)), tuple(f"corrupt {row}" for row in range(n))
        return Task("stories", clean, corrupt, answers, wrong, positions, *names)

    return make
