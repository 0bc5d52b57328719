"""Edges between features: the chain rule over sites, and an edge by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from feature_models import sae_at, subject_of
from torch import Tensor, nn

from mechlab.circuits.features.edges import feature_graph
from mechlab.circuits.features.effects import feature_effects
from mechlab.circuits.features.graph import FeatureNode, from_json
from mechlab.circuits.features.sites import top_nodes
from mechlab.data.tasks import Task
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.sae.splice import At

SITES = (
    "blocks.0.hook_resid_post",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_mlp_out",
    "blocks.1.hook_resid_post",
)
Make, MakeTask = Callable[..., nn.Module], Callable[..., Task]


@pytest.mark.parametrize(
    ("arch", "ablation", "by_position"),
    [("topk", "resample", False), ("jumprelu", "zero", False), ("topk", "zero", True)],
)
def test_edges_from_a_node_add_up_to_its_effect(
    random_module: Make, random_task: MakeTask, architecture: str, arch: str, ablation: str, by_position: bool
) -> None:
    """With every node that is active as a reader: the chain rule over the cuts."""
    subject, task = subject_of(random_module(architecture)), random_task(n=3, pos=5)
    dictionaries = [sae_at(site, arch, seed, d_sae=12) for seed, site in enumerate(SITES)]
    effects = feature_effects(
        subject, dictionaries, task, method="attribution", ablation=ablation, by_position=by_position
    )
    # Latents that only the corrupt run has are sources too, but nothing flows through them.
    nodes = top_nodes(subject, effects, 10_000)
    graph = feature_graph(subject, dictionaries, task, nodes, ablation=ablation, batch_size=2)
    assert graph.nodes[:-1] == nodes
    scores = torch.tensor([node.score for node in nodes])
    torch.testing.assert_close(graph.scores.sum(1), scores, atol=2e-4, rtol=2e-3)
    order = [SITES.index(node.site) for node in nodes]
    for row, column in graph.scores.nonzero().tolist():
        assert column == len(nodes) or order[row] < order[column]


def dense(at: At, x: Tensor) -> Tensor:
    """Codes of a JumpReLU dictionary, written out."""
    sae = at.sae
    pre = (x - sae.b_dec) @ sae.encoder.T + sae.b_enc
    return torch.where(pre > sae.threshold, pre, 0)


def test_an_edge_leaves_out_the_sites_in_between(random_module: Make, random_task: MakeTask) -> None:
    """By finite differences: sites between the two are held at their clean values."""
    module = random_module("gpt2").double()
    subject: Subject = subject_of(module)
    task = random_task(n=2, pos=5)
    low, held, high = (
        sae_at(site, "jumprelu", seed, d_sae=12) for seed, site in enumerate(SITES[:1] + SITES[2:])
    )
    for at in (low, held, high):
        at.sae.double()
    rows = torch.arange(2)
    seen: dict[str, Tensor] = {}

    def run(moved: Tensor | None, held_at: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        def at_low(x: Tensor) -> Tensor:
            seen["low"] = x
            return x if moved is None else x + moved

        def at_held(x: Tensor) -> Tensor:
            seen["held"] = x
            return x if held_at is None else held_at

        def at_high(x: Tensor) -> Tensor:
            seen["high"] = x.detach().requires_grad_()
            return seen["high"]

        with (
            editing(subject, low.inputs[0], at_low),
            editing(subject, held.inputs[0], at_held),
            editing(subject, high.inputs[0], at_high),
        ):
            logits = module(task.clean, use_cache=False).logits[:, -1]
        difference = logits[rows, task.answers] - logits[rows, task.wrong]
        (gradient,) = torch.autograd.grad(difference.sum(), seen["high"])
        return dense(high, seen["high"].detach()), gradient, seen["held"]

    codes, gradient, middle = run(None, None)
    here = dense(low, seen["low"])
    latent, reader = int(here.sum((0, 1)).argmax()), int(codes.sum((0, 1)).argmax())
    step = 1e-6 * here[..., latent, None] * low.sae.W_dec[latent]
    plus, minus = run(step, middle)[0], run(-step, middle)[0]
    slope = (plus - minus)[..., reader] / 2e-6
    expected = float((slope * (gradient @ high.sae.W_dec[reader])).sum()) / len(task)
    nodes = [
        FeatureNode("feature", low.inputs[0], 0, None, latent),
        FeatureNode("feature", high.inputs[0], 1, None, reader),
    ]
    graph = feature_graph(subject, [high, low, held], task, nodes, ablation="zero")
    assert abs(expected) > 1e-3
    assert float(graph.scores[0, 1]) == pytest.approx(expected, rel=1e-4)
    # Without the dictionary in between, its path counts as well.
    freed = feature_graph(subject, [high, low], task, nodes, ablation="zero")
    assert abs(float(freed.scores[0, 1]) - expected) > 1e-4


def test_the_graph_is_drawn_by_name_and_comes_back_from_json(
    random_module: Make, random_task: MakeTask
) -> None:
    subject, task = subject_of(random_module("neox")), random_task()
    dictionaries = [sae_at(site, seed=seed) for seed, site in enumerate(SITES)]
    nodes = top_nodes(subject, feature_effects(subject, dictionaries, task, steps=2, by_position=True), 12)
    graph = feature_graph(subject, dictionaries, task, tuple(reversed(nodes)))
    assert sorted(graph.names[:-1]) == sorted(node.name for node in nodes)
    assert graph.names[-1] == "logits"
    assert graph.nodes[-1].layer == 3
    edges = list(graph.edges())
    assert len(edges) == int((graph.scores != 0).sum()) > 10
    for edge in edges:
        assert edge.score == float(graph.scores[graph.node(edge.source), graph.node(edge.reader)])
    assert {edge.reader for edge in edges} >= {"logits"}
    again = from_json(graph.to_json())
    assert again.nodes == graph.nodes
    assert torch.equal(again.scores, graph.scores)


def test_a_node_needs_a_dictionary(random_module: Make, random_task: MakeTask) -> None:
    subject = subject_of(random_module("gpt2"))
    node = FeatureNode("feature", SITES[0], 0, None, 3)
    with pytest.raises(MechlabError, match="no dictionary at the node's site"):
        feature_graph(subject, [sae_at(SITES[1])], random_task(), [node])
