"""Sweeps against one cell at a time, and against what patching must give at its ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reading import masked_logits
from torch import Tensor

from mechlab.circuits.graph import Graph
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.patching import patch_nodes
from mechlab.circuits.runs import paired_runs
from mechlab.circuits.sweeps import patch
from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward, Stage

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture(scope="module")
def prepared(random_module, random_task, as_subject):
    def make(architecture: str):
        module = random_module(architecture).double()
        task = random_task(n=5, pos=6)
        task.positions["late"] = torch.tensor([2, 3, 3, 2, 4])
        return as_subject(module), task

    return make


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_heads_and_mlps_equal_node_patching(architecture, direction, prepared) -> None:
    subject, task = prepared(architecture)
    forward = DecomposedForward(subject.module)
    names = Graph(forward.shape).sources
    for what in ("heads", "mlps"):
        found = patch(subject, task, what, direction=direction, batch_size=3)
        rows = [names.index(name) for name in found.rows]
        exact = patch_nodes(forward, task, rows, metric=logit_difference)
        torch.testing.assert_close(found.effects[:, 0], exact[direction == "denoising"], **CLOSE)


@pytest.mark.parametrize("by", ["position", "name"])
def test_cells_equal_one_hook_each(architecture, by, prepared) -> None:
    subject, task = prepared(architecture)
    forward = DecomposedForward(subject.module)
    pair = next(iter(paired_runs(forward, task, logit_difference)))
    found = patch(subject, task, "heads", by=by, batch_size=2)
    for row, name in list(enumerate(found.rows))[::3]:
        layer, head = (int(part) for part in name[1:].split(".h"))
        for column, where in enumerate(found.columns):
            places = task.positions[where] if by == "name" else torch.full((len(task),), int(where))

            def write(
                stage: Stage, outputs: Tensor, at: tuple = (layer, head), places: Tensor = places
            ) -> Tensor:
                if stage.kind == "attention" and stage.layer == at[0]:
                    for prompt, place in enumerate(places.tolist()):
                        source = stage.writes.start + at[1]
                        outputs[at[1], prompt, place] = pair.corrupt.sources[source, prompt, place]
                return outputs

            run = forward.run(task.clean, positions=task.positions["end"], write=write)
            expected = pair.clean.metric - pair.metric(run.logits)
            torch.testing.assert_close(found.effects[row, column], expected, **CLOSE)


def test_queries_keys_values_equal_all_their_edges(architecture, prepared) -> None:
    subject, task = prepared(architecture)
    forward = DecomposedForward(subject.module)
    pair = next(iter(paired_runs(forward, task, logit_difference)))
    graph = Graph(forward.shape)
    for by in ("all", "position"):
        found = patch(subject, task, "qkv", by=by)
        for row, name in list(enumerate(found.rows))[::4]:
            for column, where in enumerate(found.columns):
                mask = torch.ones(1, *graph.real.shape, task.clean.shape[1], dtype=torch.bool)
                mask[0, :, graph.reader(name), slice(None) if by == "all" else int(where)] = False
                logits = masked_logits(forward, pair.clean, pair.corrupt.sources, mask, task.positions["end"])
                expected = pair.clean.metric - pair.metric(logits[0])
                torch.testing.assert_close(found.effects[row, column], expected, **CLOSE)


def test_the_whole_stream_is_the_other_run(architecture, prepared) -> None:
    subject, task = prepared(architecture)
    found = patch(subject, task, "layers")
    torch.testing.assert_close(found.recovered, torch.ones_like(found.recovered), **CLOSE)
    back = patch(subject, task, "layers", direction="denoising", layers=[2])
    assert back.rows == ("resid_pre.2",)
    torch.testing.assert_close(back.recovered, torch.ones_like(back.recovered), **CLOSE)
    by_position = patch(subject, task, "layers", by="position")
    # Prompts differ at positions 2 and 3 only, and nothing is read before them.
    assert by_position.recovered[0, [0, 1, 4, 5]].abs().max() < 1e-12
    assert by_position.recovered[0, [2, 3]].abs().min() > 0


def test_summary_and_figure(prepared) -> None:
    subject, task = prepared("gpt2")
    found = patch(subject, task, "attention", by="name")
    assert found.columns == ("end", "late")
    score = found.score("a1", "late")
    assert score.value == pytest.approx(float(found.recovered[1, 1]))
    assert score.low < score.value < score.high
    assert found.to_dict()["rows"] == ["a0", "a1", "a2"]
    assert found.figure().data[0].z.shape == (3, 2)


def test_refusals(prepared) -> None:
    subject, task = prepared("gpt2")
    for arguments, said in (
        ({"what": "head"}, "heads"),
        ({"by": "positions"}, "position"),
        ({"direction": "noise"}, "noising"),
        ({"layers": [3]}, "0 … 2"),
    ):
        with pytest.raises(MechlabError, match=said):
            patch(subject, task, **arguments)
    with pytest.raises(MechlabError, match="a0"):
        patch(subject, task, "attention").score("a9")
    with pytest.raises(MechlabError, match="same in both runs"):
        patch(subject, replace(task, corrupt=task.clean), "attention")
