"""Ablations: what removed edges carry, against means written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechlab.circuits.ablation import Ablation, make_ablation, require_apart
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.runs import paired_runs
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward


@pytest.fixture(scope="module")
def prepared(random_module, random_task):
    forward = DecomposedForward(random_module("gpt2"))
    reference = replace(random_task(1, n=7), groups=torch.tensor([0, 0, 1, 1, 1, 2, 0]))
    task = replace(random_task(2, n=4), groups=torch.tensor([2, 1, 0, 1]))
    pair = next(iter(paired_runs(forward, task, logit_difference)))
    sources = forward.run(reference.clean, keep=True).sources
    return forward, reference, task, pair, sources


def test_means(prepared) -> None:
    forward, reference, task, pair, sources = prepared
    # A batch size that leaves a short last batch, which must not weigh as much as a full one.
    for kind, expected in (
        ("mean", sources.mean((1, 2))[:, None, None].expand_as(pair.clean.sources)),
        ("mean-positional", sources.mean(1)[:, None].expand_as(pair.clean.sources)),
        (
            "mean-template",
            torch.stack([sources[:, reference.groups == g].mean(1) for g in task.groups.tolist()], 1),
        ),
        ("zero", torch.zeros_like(pair.clean.sources)),
        ("resample", pair.corrupt.sources),
    ):
        made = make_ablation(forward, kind, reference, batch_size=3)
        torch.testing.assert_close(made.values(pair), expected, atol=1e-5, rtol=1e-4)


def test_zero_ablation_of_everything_leaves_the_attention_biases(prepared) -> None:
    forward, _, task, _, _ = prepared
    real = Graph(forward.shape).real
    _, _, empty = run_circuits(forward, task, real[None], ablation=Ablation("zero"))
    biases = sum(attention.output_bias for attention in forward.attentions)
    x = biases.expand(len(task), task.clean.shape[1], -1)
    logits = forward.run(x=x, start=forward.shape.n_layers, positions=task.positions["end"]).logits
    expected = logit_difference(logits, task, logits)
    torch.testing.assert_close(empty, expected, atol=1e-4, rtol=1e-4)


def test_the_whole_model_is_itself_under_any_ablation(prepared) -> None:
    forward, reference, task, _, _ = prepared
    real = Graph(forward.shape).real
    for kind in ("zero", "mean", "mean-template"):
        made = make_ablation(forward, kind, reference)
        values, whole, empty = run_circuits(
            forward, task, torch.stack([real, torch.zeros_like(real)]), ablation=made
        )
        assert torch.equal(values[0], whole)
        torch.testing.assert_close(values[1], empty)
        assert not torch.allclose(whole, empty)


def test_optimal_constants_beat_means_and_zeros(prepared) -> None:
    forward, reference, _, _, _ = prepared
    generator = torch.Generator().manual_seed(3)
    real = Graph(forward.shape).real
    masks = (torch.rand(8, *real.shape, generator=generator) < 0.5) & real
    kept = {}
    for kind in ("zero", "mean", "optimal"):
        made = make_ablation(forward, kind, reference, steps=60)
        kept[kind] = float(
            run_circuits(forward, reference, masks, metric="negative_kl", ablation=made)[0].mean()
        )
    assert kept["optimal"] > kept["mean"]
    assert kept["optimal"] > kept["zero"]
    again = make_ablation(forward, "optimal", reference, steps=60)
    assert (
        float(run_circuits(forward, reference, masks, metric="negative_kl", ablation=again)[0].mean())
        == kept["optimal"]
    )


def test_refusals(prepared, random_task) -> None:
    forward, reference, task, pair, _ = prepared
    with pytest.raises(MechlabError, match="resample"):
        make_ablation(forward, "resampl")
    with pytest.raises(MechlabError, match="reference"):
        make_ablation(forward, "mean")
    with pytest.raises(MechlabError, match="template"):
        make_ablation(forward, "mean-template", random_task())
    longer = make_ablation(forward, "mean-positional", random_task(pos=9))
    with pytest.raises(MechlabError, match="same length"):
        longer.values(pair)
    lacking = replace(reference, groups=torch.tensor([0, 0, 3, 3, 3, 3, 0]))
    with pytest.raises(MechlabError, match="template"):
        make_ablation(forward, "mean-template", lacking).values(pair)
    one = make_ablation(forward, "mean-template", replace(reference, groups=torch.zeros(7, dtype=torch.long)))
    with pytest.raises(MechlabError, match="templates the reference lacks"):
        one.values(pair)
    with pytest.raises(MechlabError, match="no template numbers"):
        one.values(replace(pair, task=replace(pair.task, groups=None)))
    with pytest.raises(MechlabError, match="metric has no gradient: accuracy"):
        make_ablation(forward, "optimal", reference, metric="accuracy")
    with pytest.raises(MechlabError, match="made from"):
        require_apart(task, task)
    require_apart(reference, task)
