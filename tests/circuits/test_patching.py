"""Exact patching against hooks on the Hugging Face module."""

from __future__ import annotations

import math

import pytest
import torch
from reading import difference

from mechlab.circuits.attribution import edge_scores, node_scores
from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.patching import HeadPatching, NodeEffect, head_patching, patch_nodes
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward


def captured(module, tokens, hook_point):
    """Logits at the end and the inputs that ``hook_point`` saw."""
    seen = []
    handle = hook_point.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    logits = module(tokens).logits[:, -1]
    handle.remove()
    return logits, seen[0]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("head", [0, 3])
def test_heads_equal_hooks_on_the_module(layer, head, random_module, random_task) -> None:
    module, task = random_module("gpt2", 1), random_task(1)
    point = module.transformer.h[layer].attn.c_proj
    columns = slice(head * 6, (head + 1) * 6)
    clean_logits, clean = captured(module, task.clean, point)
    corrupt_logits, corrupt = captured(module, task.corrupt, point)

    def patched(tokens, other):
        def replace_head(_m, args):
            mixed = args[0].clone()
            mixed[..., columns] = other[..., columns]
            return (mixed,)

        handle = point.register_forward_pre_hook(replace_head)
        logits = module(tokens).logits[:, -1]
        handle.remove()
        return difference(logits, task)

    noising = difference(clean_logits, task) - patched(task.clean, corrupt)
    denoising = patched(task.corrupt, clean) - difference(corrupt_logits, task)
    forward = DecomposedForward(module)
    row = Graph(forward.shape).source(f"a{layer}.h{head}")
    found = patch_nodes(forward, task, [row], metric=logit_difference)
    torch.testing.assert_close(found[0][0], noising, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1][0], denoising, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[2], difference(clean_logits, task), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[3], difference(corrupt_logits, task), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
def test_mlps_equal_hooks_on_the_module(architecture, layer, random_module, random_task) -> None:
    module, task = random_module(architecture, 2), random_task(2)
    layers = module.transformer.h if architecture == "gpt2" else module.base_model.layers
    outputs = []
    handle = layers[layer].mlp.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    clean = difference(module(task.clean).logits[:, -1], task)
    module(task.corrupt)
    handle.remove()
    handle = layers[layer].mlp.register_forward_hook(lambda _m, _i, _out: outputs[1])
    noised = difference(module(task.clean).logits[:, -1], task)
    handle.remove()
    forward = DecomposedForward(module)
    row = Graph(forward.shape).source(f"m{layer}")
    found = patch_nodes(forward, task, [row], metric=logit_difference, batch_size=4)
    torch.testing.assert_close(found[0][0], clean - noised, atol=1e-5, rtol=1e-4)


def test_table_is_ranked_by_attribution(random_module, random_task, as_subject) -> None:
    module, task = random_module("llama"), random_task()
    forward = DecomposedForward(module)
    scores = edge_scores(forward, task, method="eap")
    table = head_patching(as_subject(module), task, method="eap")
    short = head_patching(as_subject(module), task, scores=scores, method="eap", top=4)
    assert len(table.effects) == forward.shape.n_sources - 1
    for few, all_ in zip(short.effects, table.effects, strict=False):
        assert few.node == all_.node
        assert few.noising == pytest.approx(all_.noising, abs=1e-5)
    sizes = [abs(row.attribution) for row in table.effects]
    assert sizes == sorted(sizes, reverse=True)
    names = Graph(forward.shape).sources
    for row in table.effects:
        assert row.attribution == pytest.approx(float(node_scores(scores)[names.index(row.node)]))
    assert HeadPatching.from_dict(table.to_dict()) == table


def test_attribution_agrees_with_small_exact_effects(random_module, random_task, as_subject) -> None:
    """With little weight on every source the metric is nearly linear, and attribution nearly exact."""
    table = head_patching(as_subject(random_module("gpt2", scale=0.05)), random_task(n=20), method="eap-ig")
    assert table.rank_correlation() > 0.95
    assert table.rank_correlation("denoising") > 0.9


def test_rank_correlation() -> None:
    def table(pairs):
        return HeadPatching(
            tuple(NodeEffect("m0", float(e), float(-e), float(a)) for e, a in pairs), 1.0, 0.0, "eap"
        )

    assert table([(1, 1), (2, 5), (3, 9)]).rank_correlation() == pytest.approx(1)
    assert table([(1, 1), (2, 5), (3, 9)]).rank_correlation("denoising") == pytest.approx(-1)
    # Mid-ranks (1, 2.5, 2.5, 4) and (1, 4, 2.5, 2.5).
    assert table([(1, 1), (2, 3), (2, 2), (4, 2)]).rank_correlation() == pytest.approx(1 / 2)
    assert math.isnan(table([(1, 1), (2, 5)]).rank_correlation())
    assert math.isnan(table([(1, 1), (1, 5), (1, 2)]).rank_correlation())
    with pytest.raises(MechlabError, match="unknown effect"):
        table([]).rank_correlation("zeroing")


def test_embed_and_rows_beyond_the_model_are_refused(random_module, random_task) -> None:
    forward = DecomposedForward(random_module("gpt2"))
    for row in (0, forward.shape.n_sources):
        with pytest.raises(MechlabError, match=f"no head or MLP at row: {row}"):
            patch_nodes(forward, random_task(), [row], metric=logit_difference)


def test_several_positions_read() -> None:
    """A compiled model is read at every position; each node's effect is that of rewriting its output."""
    from mechlab.models.compiled import compile_program, compiled_task, program_named

    model = compile_program(program_named("reverse"))
    task, forward = compiled_task(model, 12), DecomposedForward(model)
    nodes = list(range(1, forward.shape.n_sources))
    noising, _, clean, corrupt = patch_nodes(forward, task, nodes, metric=logit_difference, batch_size=5)
    names = Graph(forward.shape).sources
    shares = (noising.mean(1) / (clean - corrupt).mean()).tolist()
    whole = dict(zip([names[node] for node in nodes], shares, strict=True))
    # The last head copies the tokens: under resampling all of the output passes through it.
    assert whole["a3.h0"] == pytest.approx(1.0, abs=1e-4)
    assert whole["a1.h0"] == pytest.approx(0.0, abs=1e-4)
