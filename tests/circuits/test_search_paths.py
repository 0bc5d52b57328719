"""Path search: effects of single paths, written out, and the circuits that follow from them."""

from __future__ import annotations

import pytest
import torch
from naive import corrupt_sources, naive_logits
from torch import Tensor

from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.search.paths import path_search
from mechlab.errors import MechlabError
from mechlab.models.compiled.subject import compiled_subject
from mechlab.models.compiled.task import compiled_task
from mechlab.models.compiled.truth import truth
from mechlab.models.forward import DecomposedForward, Stage


def direct_logits(forward, task, found: Tensor, row: int, column: int) -> Tensor:
    """The clean run, with one source corrupt for one reader, changes passed on along found edges only."""
    clean = forward.run(task.clean, keep=True).sources
    change = torch.zeros_like(clean)
    corrupt = corrupt_sources(forward, task)
    streams: dict[int, Tensor] = {}

    def record(stage: Stage, stream: Tensor) -> Tensor:
        streams[stage.readers.start] = stream
        return stream

    def write(stage: Stage, outputs: Tensor) -> Tensor:
        change[stage.writes] = outputs - clean[stage.writes]
        return outputs

    def read(stage: Stage, stream: Tensor) -> Tensor:
        own = streams[stage.readers.start].expand(stage.readers.stop - stage.readers.start, *stream.shape)
        passed = found[: stage.upstream, stage.readers].to(stream)
        own = own + torch.einsum("sr,sbpd->rbpd", passed, change[: stage.upstream])
        if stage.readers.start <= column < stage.readers.stop:
            own[column - stage.readers.start] += corrupt[row] - clean[row]
        return own

    forward.run(task.clean, read=record)
    logits = forward.run(task.clean, positions=task.positions["end"], read=read, write=write).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize(("seed", "paths"), [(0, "full"), (0, "direct"), (1, "direct")])
def test_effects_are_those_of_single_paths(architecture, seed, paths, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture, seed)), random_task(seed, n=3, pos=5)
    result = path_search(forward, task, paths=paths, share=0.3, batch_size=2)
    graph = Graph(forward.shape)
    whole = forward.run(task.clean, positions=task.positions["end"]).logits
    found = torch.zeros_like(graph.real)
    edges = []
    for step in result.record["steps"]:
        reader = graph.reader(step["reader"])
        sources = graph.real[:, reader].nonzero().flatten().tolist()
        edges += [(row, reader, found.clone()) for row in sources]
        for name, effect in step["kept"]:
            found[graph.source(name), reader] = True
            assert effect == pytest.approx(float(result.scores[graph.source(name), reader]))
    picked = torch.randperm(len(edges), generator=torch.Generator().manual_seed(seed))[:15].tolist()
    for row, column, before in (edges[i] for i in picked):
        if paths == "direct":
            logits = direct_logits(forward, task, before, row, column)
        else:
            mask = graph.real.clone()
            mask[row, column] = False
            other = corrupt_sources(forward, task)
            logits = naive_logits(forward, task.clean, task.positions["end"], other, mask)
        lost = (logit_difference(whole, task, whole) - logit_difference(logits, task, whole)).mean()
        torch.testing.assert_close(result.scores[row, column], lost, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("paths", ["full", "direct"])
def test_circuit_follows_from_its_evidence(paths, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("llama", 2)), random_task(2)
    result = path_search(forward, task, paths=paths, share=0.1, most=3)
    graph, record = Graph(forward.shape), result.record
    least = 0.1 * abs(record["gap"])
    kept = [(name, step["reader"]) for step in record["steps"] for name, _ in step["kept"]]
    mask = graph.mask(kept)
    assert torch.equal(graph.connected(mask), result.mask)
    assert result.n_top == len(kept) > 0
    assert result.calls == len(record["steps"])
    assert record["steps"][0]["reader"] == "logits"
    in_circuit = mask.any(1)
    for step in record["steps"]:
        effects = [abs(effect) for _, effect in step["kept"]]
        assert effects == sorted(effects, reverse=True)
        assert len(effects) <= 3
        assert all(effect >= least for effect in effects)
        assert len(effects) == 3 or step["best_left"] < least
        column = graph.reader(step["reader"])
        assert step["reader"] == "logits" or bool(in_circuit[graph.feeds[column]].any())


@pytest.mark.parametrize("program", ["reverse", "proportion"])
@pytest.mark.parametrize("paths", ["full", "direct"])
def test_planted_edges_are_recovered(program, paths) -> None:
    model = compiled_subject(program, device="cpu").module
    forward, task = DecomposedForward(model), compiled_task(model, 32)
    result = path_search(forward, task, paths=paths, share=0.02, metric="negative_l2")
    assert torch.equal(result.mask, truth(model, "resample"))


def test_mistakes_are_named(random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module("gpt2")), random_task()
    with pytest.raises(MechlabError, match="share of the gap"):
        path_search(forward, task, share=0.0)
    with pytest.raises(MechlabError, match="most sources per reader"):
        path_search(forward, task, most=-1)
    with pytest.raises(MechlabError, match="did you mean direct"):
        path_search(forward, task, paths="dirct")
    with pytest.raises(MechlabError, match="same in both runs"):
        path_search(forward, task.__class__(**{**vars(task), "corrupt": task.clean}))
