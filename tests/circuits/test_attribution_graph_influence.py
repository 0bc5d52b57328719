"""Influence, pruning and scores of attribution graphs, by hand and against dense inverses and sorts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from feature_models import clt_over, linear_forward, subject_of, transcoder_at
from torch import Tensor, nn

from mechlab.circuits.features.attribution_graph import attribution_graph
from mechlab.circuits.features.graph import FeatureGraph, FeatureNode, from_json
from mechlab.circuits.features.influence import (
    graph_scores,
    influence,
    normalised,
    prune,
    smallest_share,
    total_effects,
)
from mechlab.circuits.features.replacement import replacement_model
from mechlab.errors import MechlabError


def by_hand() -> FeatureGraph:
    """embed → f with 3, error → f with -1; f → logit with 4, error → logit with 1, embed → logit with 0."""
    nodes = (
        FeatureNode("embedding", "embed", -1, 0, 5),
        FeatureNode("error", "blocks.0.hook_mlp_out", 0, 0),
        FeatureNode("feature", "blocks.1.hook_mlp_out", 1, 0, 7, value=2.0),
        FeatureNode("logit", "logits", 2, 0, 9, value=5.0, score=1.0),
    )
    scores = torch.tensor([[3.0, 0.0], [-1.0, 1.0], [0.0, 4.0]])
    return FeatureGraph(nodes, torch.tensor([0, 1, 2]), torch.tensor([2, 3]), scores)


def test_by_hand() -> None:
    graph = by_hand()
    # feature: 4/5; embedding: 4/5 · 3/4; error: 1/5 + 4/5 · 1/4.
    torch.testing.assert_close(influence(graph), torch.tensor([0.6, 0.4, 0.8, 1.0]))
    scores = graph_scores(graph)
    assert scores.replacement == pytest.approx(0.6)
    # By influence 0.8 and 1: errors are 1/4 of the feature's input, 1/5 of the logit's.
    assert scores.completeness == pytest.approx(1 - (0.8 / 4 + 1.0 / 5) / 1.8)
    # Without the embedding the feature's 2 become -1, so the logit loses 4 · 3/2.
    torch.testing.assert_close(total_effects(graph), torch.tensor([[6.0], [1.0 - 2.0], [4.0]]))


def test_pruning_by_hand() -> None:
    pruned = prune(by_hand(), nodes=0.6, edges=1.0)
    assert [node.kind for node in pruned.nodes] == ["embedding", "feature", "logit"]
    assert [(e.source, e.reader, e.score) for e in pruned.edges()] == [
        ("embed@0", "blocks.1.hook_mlp_out/f7@0", 3.0),
        ("blocks.1.hook_mlp_out/f7@0", "logits/t9@0", 4.0),
    ]
    assert pruned.values("score").tolist() == [1.0, 1.0, 1.0]
    # Edge scores are 0.6, 0.2, 0.2, 0.8: the largest makes up 44 %, and the feature then has no input.
    bare = prune(by_hand(), nodes=1.0, edges=0.4)
    assert [node.kind for node in bare.nodes] == ["embedding", "logit"]
    whole = prune(by_hand(), nodes=1.0, edges=1.0)
    assert torch.equal(whole.scores, by_hand().scores)


@pytest.fixture(scope="module")
def graphs(random_module: Callable[..., nn.Module]) -> list[FeatureGraph]:
    tokens = torch.tensor([0, 7, 3, 3, 21, 9])
    found = []
    for name, dictionaries in (
        ("gpt2", [transcoder_at(layer, skip=True) for layer in range(3)]),
        ("neox", [clt_over([0, 1, 2])]),
        ("llama", [transcoder_at(0), transcoder_at(2)]),
    ):
        subject = subject_of(random_module(name, scale=0.2))
        found.append(attribution_graph(replacement_model(subject, dictionaries, tokens)))
    return found


def square(graph: FeatureGraph, matrix: Tensor) -> Tensor:
    """Node by node, as float64."""
    whole = torch.zeros(len(graph.nodes), len(graph.nodes), dtype=torch.float64)
    whole[graph.sources[:, None], graph.readers[None]] = matrix.double()
    return whole


def test_influence_equals_the_inverse(graphs: list[FeatureGraph]) -> None:
    for graph in graphs:
        matrix = square(graph, normalised(graph))
        paths = torch.linalg.inv(torch.eye(len(matrix), dtype=torch.float64) - matrix)
        weight = (graph.of_kind("logit") * graph.values("score")).double()
        torch.testing.assert_close(influence(graph).double(), paths @ weight, atol=1e-6, rtol=1e-4)
        # Every path ends at an embedding or an error.
        ends = float(influence(graph)[graph.of_kind("embedding", "error")].sum())
        assert ends == pytest.approx(1.0, abs=1e-4)
        scores = graph_scores(graph)
        assert 0 < scores.replacement < 1
        assert 0 < scores.completeness < 1


def test_total_effects_are_what_the_linear_model_loses(random_module: Callable[..., nn.Module]) -> None:
    subject = subject_of(random_module("gpt2", scale=0.2))
    tokens = torch.tensor([0, 7, 3, 3, 21, 9])
    replacement = replacement_model(subject, [transcoder_at(n, skip=True) for n in range(3)], tokens)
    graph = attribution_graph(replacement, [4, 11])
    effects = total_effects(graph)
    own = {layer: f.codes.values for layer, f in replacement.features.items()}
    used = {layer: values != 0 for layer, values in own.items()}

    def settled(gone: FeatureNode) -> Tensor:
        """Logits when one feature is gone and every later one follows its input."""
        codes = {layer: used[layer].float() for layer in own}
        for _ in range(replacement.n_layers):
            slot = replacement.features[gone.layer].codes.indices[gone.position] == gone.index
            codes[gone.layer][gone.position, slot] = 0
            found, logits = linear_forward(replacement, replacement.embedded, codes, replacement.errors)
            codes = {n: torch.where(used[n], found[n] / own[n].where(used[n], 1), 0) for n in own}
        return logits[-1]

    whole = replacement.logits[-1]
    features = graph.of_kind("feature").nonzero()[::9, 0].tolist()
    for number in features:
        lost = whole - settled(graph.nodes[number])
        lost = (lost - lost.mean())[[4, 11]]
        torch.testing.assert_close(effects[number], lost, atol=2e-4, rtol=1e-3)


def test_the_smallest_share_equals_a_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((50,), (13, 9)):
        for share in (0.0, 0.3, 0.8, 0.98, 1.0):
            scores = torch.rand(shape, generator=generator).pow(6)
            scores.view(-1)[::4] = 0
            kept = smallest_share(scores, share)
            order = scores.flatten().sort(descending=True).values.double()
            before = order.cumsum(0) - order
            wanted = int((before < share * float(order.sum()) - 1e-12).sum())
            assert int(kept.sum()) == min(wanted, int((scores > 0).sum()))
            assert share == 0 or scores[kept].min() >= scores[~kept].max()
    tied = smallest_share(torch.tensor([1.0, 2.0, 1.0]), 0.6)
    assert tied.tolist() == [True, True, True]


def test_pruning_keeps_the_shares_and_only_what_leads_somewhere(graphs: list[FeatureGraph]) -> None:
    for graph in graphs:
        found, inner = influence(graph), graph.of_kind("feature", "error")
        pruned = prune(graph, nodes=0.7, edges=0.9)
        kept = [name in pruned.names for name in graph.names]
        assert 0 < sum(kept) < len(kept)
        assert all(kept[i] for i in (~inner).nonzero()[:, 0].tolist())
        # Before what leads nowhere is dropped, the fewest that reach the share are taken.
        chosen = smallest_share(torch.where(inner, found, 0), 0.7)
        assert found[chosen].sum() >= 0.7 * found[inner].sum() - 1e-5
        assert all(bool(chosen[i]) or not inner[i] for i, k in enumerate(kept) if k)
        there = pruned.scores != 0
        for number, node in enumerate(pruned.nodes):
            row, column = int(pruned.rows[number]), int(pruned.columns[number])
            assert node.kind in ("embedding", "logit") or bool(there[row].any())
            assert node.kind != "feature" or bool(there[:, column].any())
        for edge in pruned.edges():
            row = graph.rows[graph.node(edge.source)]
            assert graph.scores[row, graph.columns[graph.node(edge.reader)]] == edge.score


def test_json_comes_back(graphs: list[FeatureGraph]) -> None:
    graph = prune(graphs[0])
    again = from_json(graph.to_json())
    assert again.nodes == graph.nodes
    assert torch.equal(again.scores, graph.scores)
    assert torch.equal(again.sources, graph.sources)
    assert torch.equal(again.readers, graph.readers)


def test_errors_say_what_is_wrong() -> None:
    graph = by_hand()
    with pytest.raises(MechlabError, match="share of nodes"):
        prune(graph, nodes=1.5)
    with pytest.raises(MechlabError, match="cannot be read"):
        from_json('{"nodes": []}')
    with pytest.raises(MechlabError, match=r"blocks\.1\.hook_mlp_out/f7@0"):
        graph.node("blocks.1.hook_mlp_out/f8@0")
    with pytest.raises(MechlabError, match="unknown kind"):
        graph.of_kind("features")
    loop = FeatureGraph(graph.nodes, graph.sources, graph.readers, graph.scores.clone())
    loop.scores[2, 0] = 1.0
    with pytest.raises(MechlabError, match="cycle"):
        influence(loop)
