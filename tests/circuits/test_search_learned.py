"""Learned gates: the hard concrete distribution, soft masks, planted edges."""

from __future__ import annotations

import pytest
import torch

from mechlab.circuits.ablation import Ablation, make_ablation
from mechlab.circuits.graph import Graph
from mechlab.circuits.search.acdc import acdc
from mechlab.circuits.search.learned import (
    edge_pruning,
    hard_concrete,
    open_probability,
    subnetwork_probing,
)
from mechlab.circuits.search.paths import path_search
from mechlab.errors import MechlabError
from mechlab.models.compiled.subject import compiled_subject
from mechlab.models.compiled.task import compiled_task
from mechlab.models.compiled.truth import truth
from mechlab.models.forward import DecomposedForward


def test_hard_concrete_distribution() -> None:
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    for value in (-3.0, 0.0, 2.0):
        log_alpha = torch.full_like(uniform, value)
        gates = hard_concrete(log_alpha, uniform)
        assert gates.min() >= 0
        assert gates.max() <= 1
        share = float((gates > 0).float().mean())
        assert share == pytest.approx(float(open_probability(log_alpha)[0]), abs=5e-3)
        # The mirror image: z < 1 at ln α is as likely as z > 0 at −ln α.
        assert float((gates < 1).float().mean()) == pytest.approx(
            float(open_probability(-log_alpha)[0]), abs=5e-3
        )
    middle = hard_concrete(torch.zeros(1), torch.full((1,), 0.5))
    assert float(middle) == pytest.approx(0.5)
    # By hand: σ(1 / (2/3)) · 1.2 − 0.1
    assert float(hard_concrete(torch.ones(1), torch.full((1,), 0.5))) == pytest.approx(0.88109, abs=1e-4)


@pytest.fixture(scope="module")
def proportion():
    model = compiled_subject("proportion", device="cpu").module
    return model, DecomposedForward(model), compiled_task(model, 32)


@pytest.mark.parametrize("kind", ["resample", "zero"])
def test_planted_edges_are_recovered(kind, proportion) -> None:
    model, forward, task = proportion
    planted, graph = truth(model, kind), Graph(forward.shape)
    settings = {"metric": "negative_l2", "ablation": Ablation(kind), "steps": 120, "batch_size": 32}
    probing = subnetwork_probing(forward, task, penalty=0.03, **settings)
    sparsity = 1 - int(planted.sum()) / graph.n_edges
    pruning = edge_pruning(forward, task, target=sparsity, **settings)
    for found in (probing, pruning):
        assert torch.equal(found.mask, planted), found.method
        assert found.scores[planted].min() > found.scores[graph.real & ~planted].max()
        assert not found.scores[~graph.real].any()
        assert found.calls == 120
    # Gates closed: the last step expects fewer of them open than the first.
    assert probing.record["history"][0][2] > 0.9 > probing.record["history"][-1][2]
    # The Lagrangian reaches its target.
    assert pruning.record["history"][-1][2] == pytest.approx(1 - sparsity, abs=0.15)


def test_nodes_share_a_gate(proportion) -> None:
    model, forward, task = proportion
    found = subnetwork_probing(
        forward, task, level="node", penalty=0.03, metric="negative_l2", steps=60, batch_size=32
    )
    graph = Graph(forward.shape)
    for row, name in enumerate(graph.sources):
        values = found.scores[row][graph.real[row]]
        assert torch.equal(values, values[:1].expand_as(values)), name
    assert (found.scores[0][graph.real[0]] == 1).all()  # "embed" has no gate
    needed = truth(model, "resample").any(1)
    assert torch.equal(found.mask.any(1), needed)


def test_same_seed_same_gates(architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture)), random_task(n=6)
    settings = {"steps": 3, "batch_size": 4}
    first, same, other = (
        edge_pruning(forward, task, target=0.5, seed=seed, **settings) for seed in (1, 1, 2)
    )
    assert torch.equal(first.scores, same.scores)
    assert first.record == same.record
    assert not torch.equal(first.scores, other.scores)
    assert first.n_top == round(0.5 * Graph(forward.shape).n_edges)
    assert first.n_edges <= first.n_top


def test_no_penalty_keeps_every_edge(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2")), random_task()
    found = subnetwork_probing(forward, task, penalty=0.0, steps=3)
    assert torch.equal(found.mask, Graph(forward.shape).real)


def test_mistakes_are_named(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2")), random_task()
    with pytest.raises(MechlabError, match="did you mean node"):
        subnetwork_probing(forward, task, level="nodes")
    with pytest.raises(MechlabError, match="at least one step"):
        subnetwork_probing(forward, task, steps=0)
    with pytest.raises(MechlabError, match="target sparsity"):
        edge_pruning(forward, task, target=1.0)
    with pytest.raises(MechlabError, match="unknown metric"):
        edge_pruning(forward, task, metric="kl")
    with pytest.raises(MechlabError, match="metric has no gradient: accuracy"):
        edge_pruning(forward, task, metric="accuracy")
    with pytest.raises(MechlabError, match="learning rate"):
        subnetwork_probing(forward, task, rate=-1.0)
    with pytest.raises(MechlabError, match="loss of step 0 is not finite"):
        subnetwork_probing(forward, task, penalty=float("nan"))


def test_gates_leave_the_model_s_own_gradients_alone(random_module, random_task) -> None:
    module = random_module("gpt2").requires_grad_(True)
    edge_pruning(DecomposedForward(module), random_task(), steps=2)
    make_ablation(DecomposedForward(module), "optimal", random_task(), steps=2)
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, architecture, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, scale=0.1).to(dtype)), random_task()
    optimal = make_ablation(forward, "optimal", random_task(1), steps=2)
    for ablation in (None, optimal):
        found = edge_pruning(forward, task, target=0.5, ablation=ablation, steps=2)
        assert found.n_top == round(0.5 * Graph(forward.shape).n_edges)
        assert found.scores.dtype == torch.float32


@pytest.mark.gpu
def test_searches_on_cuda(random_module, random_task) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    module, task = random_module("llama"), random_task()

    def search() -> list[torch.Tensor]:
        forward = DecomposedForward(module)
        gated = edge_pruning(forward, task, target=0.5, steps=5)
        return [acdc(forward, task, 0.1).mask, path_search(forward, task, paths="direct").mask, gated.scores]

    on_cpu = search()
    module.cuda()
    try:
        for mine, theirs in zip(search(), on_cpu, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-2, rtol=0.0)
    finally:
        module.cpu()
