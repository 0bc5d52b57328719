"""Scores that run the last MLP only where the task reads, against scores that run it everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mechlab.circuits.ablation import make_ablation
from mechlab.circuits.attribution import edge_scores
from mechlab.circuits.attribution.beside import run_beside
from mechlab.models.forward import DecomposedForward

CLOSE = {"atol": 1e-7, "rtol": 1e-6}


@pytest.mark.parametrize("method", ["eap", "eap-corrupt", "eap-mean", "eap-ig"])
@pytest.mark.parametrize("reads", [[4], [1, 4, 4]])
def test_narrow_runs_score_as_whole_ones(architecture, method, reads, random_module, random_task) -> None:
    forward = DecomposedForward(random_module(architecture).double())
    task = random_task(n=5, pos=6)
    if len(reads) > 1:  # several positions, one of them read twice
        ends = torch.tensor(reads).expand(5, -1)
        answers, wrong = torch.randint(20, (2, 5, len(reads)), generator=torch.Generator().manual_seed(1))
        task = replace(task, positions={"end": ends}, answers=answers, wrong=wrong)
    for kind in ("resample", "mean"):
        ablation = make_ablation(forward, kind, random_task(seed=9, n=4, pos=6))
        settings = {"method": method, "steps": 3, "ablation": ablation, "batch_size": 2}
        narrow = edge_scores(forward, task, **settings)
        whole = edge_scores(forward, task, by_position=True, **settings).sum(-1)
        assert whole.abs().max() > 0
        torch.testing.assert_close(narrow, whole, **CLOSE)
        by_prompt = edge_scores(forward, task, by_prompt=True, **settings)
        torch.testing.assert_close(by_prompt.mean(0), whole, **CLOSE)


@pytest.mark.parametrize("narrow", [False, True])
def test_two_runs_as_one(architecture, narrow, random_module, random_task) -> None:
    forward, task = DecomposedForward(random_module(architecture).double()), random_task(n=4, pos=6)
    clean, corrupt, ends = forward.embed(task.clean), forward.embed(task.corrupt), task.positions["end"]
    found, written = run_beside(forward, clean, corrupt, ends, narrow=narrow)
    alone = forward.run(x=clean, positions=ends, trace=True, leaves=True, narrow=narrow)
    other = forward.run(x=corrupt, positions=ends, trace=True, narrow=narrow)
    torch.testing.assert_close(found.logits, alone.logits, **CLOSE)
    for mine, theirs, wrote in zip(found.traces, alone.traces, [*written, None], strict=True):
        assert (mine.stage, mine.positions is None) == (theirs.stage, theirs.positions is None)
        torch.testing.assert_close(mine.x, theirs.x, **CLOSE)
        if wrote is not None:
            torch.testing.assert_close(mine.wrote, theirs.wrote, **CLOSE)
            torch.testing.assert_close(
                torch.autograd.grad(mine.wrote.pow(2).sum(), mine.parts),
                torch.autograd.grad(theirs.wrote.pow(2).sum(), theirs.parts),
                **CLOSE,
            )
    for wrote, theirs in zip(written, other.traces[:-1], strict=True):
        torch.testing.assert_close(wrote, theirs.wrote, **CLOSE)
