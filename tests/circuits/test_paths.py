"""Path patching against sums written out by hand."""

from __future__ import annotations

import pytest
import torch

from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.paths import path_effects
from mechlab.circuits.runs import paired_runs
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def test_direct_paths_to_the_logits(architecture, random_module, random_task) -> None:
    module, task = random_module(architecture).double(), random_task()
    forward = DecomposedForward(module)
    graph = Graph(forward.shape)
    pair = next(iter(paired_runs(forward, task, logit_difference)))
    senders = ["embed", "a0.h1", "m1", "a2.h3"]
    found = path_effects(forward, task, senders, ["logits"], batch_size=4)
    for name, effect in zip(senders, found, strict=True):
        row = graph.source(name)
        x = pair.clean.streams[-1] + pair.corrupt.sources[row] - pair.clean.sources[row]
        logits = forward.run(x=x, start=3, positions=task.positions["end"]).logits
        torch.testing.assert_close(effect, pair.clean.metric - pair.metric(logits), **CLOSE)


def test_paths_through_mlps(random_module, random_task) -> None:
    module, task = random_module("gpt2").double(), random_task()
    forward = DecomposedForward(module)
    graph = Graph(forward.shape)
    pair = next(iter(paired_runs(forward, task, logit_difference)))
    sender = graph.source("a1.h2")
    found = path_effects(forward, task, ["a1.h2"], ["logits"], through_mlps=True)[0]
    # The stream that each later MLP reads: its own, with the sender's and earlier MLPs' changes.
    change = pair.corrupt.sources[sender] - pair.clean.sources[sender]
    for layer in (1, 2):
        block = module.transformer.h[layer]
        after = pair.clean.streams[layer + 1] - pair.clean.sources[graph.source(f"m{layer}")]
        new = block.mlp(block.ln_2(after + change))
        change = change + new - pair.clean.sources[graph.source(f"m{layer}")]
    logits = forward.run(x=pair.clean.streams[-1] + change, start=3, positions=task.positions["end"]).logits
    torch.testing.assert_close(found, pair.clean.metric - pair.metric(logits), **CLOSE)
    last = path_effects(forward, task, ["m2"], ["logits"], through_mlps=True)
    torch.testing.assert_close(last, path_effects(forward, task, ["m2"], ["logits"]), **CLOSE)


def test_a_source_that_acts_later_has_no_effect(random_module, random_task) -> None:
    forward = DecomposedForward(random_module("llama"))
    found = path_effects(forward, random_task(), ["a2.h0", "a0.h0"], ["a1.h0.q", "a1.h0.v"])
    assert (found[0] == 0).all()
    assert (found[1] != 0).any()


def test_refusals(random_module, random_task) -> None:
    forward = DecomposedForward(random_module("gpt2"))
    with pytest.raises(MechlabError, match="senders and receivers"):
        path_effects(forward, random_task(), [], ["logits"])
    with pytest.raises(MechlabError, match=r"a0\.h1"):
        path_effects(forward, random_task(), ["a0.h9"], ["logits"])
