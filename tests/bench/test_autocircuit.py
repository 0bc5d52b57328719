"""auto-circuit on a GPT-2 of ours: same logits, same scores, same effects of single edges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechlab.bench.autocircuit import NAME, AutoCircuit
from mechlab.bench.circuits import random_prompts
from mechlab.bench.models import gpt2_small_shaped
from mechlab.bench.peers import FOLDER, interpreter
from mechlab.circuits.attribution import edge_scores
from mechlab.circuits.graph import Graph
from mechlab.circuits.masked import Masked
from mechlab.circuits.metrics import logit_difference
from mechlab.circuits.runs import paired_runs
from mechlab.data.tasks import Task
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def subject() -> Subject:
    return gpt2_small_shaped("cpu", n_layer=3, n_head=4, n_embd=32, vocab_size=60)


@pytest.fixture(scope="module")
def task(subject: Subject) -> Task:
    return random_prompts(subject, n=5, n_ctx=9, seed=4)


@pytest.fixture(scope="module")
def peer(subject: Subject, task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoCircuit]:
    folder = ROOT / FOLDER
    if interpreter(NAME, folder) is None:
        pytest.skip(f"{NAME} is not built in {folder} (mechlab bench setup-peers)")
    with AutoCircuit(subject.module, task, tmp_path_factory.mktemp("peer"), CPU, folder) as peer:
        yield peer


def test_it_has_our_weights_and_our_edges(peer: AutoCircuit, subject: Subject, task: Task) -> None:
    with torch.no_grad():
        logits: Tensor = subject.module(task.clean).logits[:, -1]
    torch.testing.assert_close(peer.logits, logits, atol=1e-4, rtol=0)
    assert peer.n_edges == int(Graph(DecomposedForward(subject.module).shape).real.sum())
    assert peer.forward() > 0


def test_edge_attribution_is_the_same_for_every_edge(peer: AutoCircuit, subject: Subject, task: Task) -> None:
    ours = edge_scores(
        DecomposedForward(subject.module), task, method="eap", metric="logit_difference", batch_size=2
    )
    for _ in range(2):  # what it finds does not depend on what was asked before
        assert peer.eap() > 0
        assert float((peer.scores() - ours).norm() / ours.norm()) < 1e-5


def test_single_edges_have_the_same_effect(peer: AutoCircuit, subject: Subject, task: Task) -> None:
    forward = DecomposedForward(subject.module)
    real = Graph(forward.shape).real
    edges = real.nonzero()[::7]
    masks = real.repeat(len(edges), 1, 1)
    masks[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    [pair] = paired_runs(forward, task, logit_difference)
    masked = Masked(forward, pair.clean, pair.corrupt.sources, pair.task.positions["end"])
    exact = torch.stack([pair.metric(logits).mean() for logits in masked.logits(masks)])
    peer.ready()
    seconds, values = peer.edges([(source, reader) for source, reader in edges.tolist()])
    assert seconds > 0
    torch.testing.assert_close(values, exact, atol=1e-6, rtol=1e-5)
    assert float((exact - pair.clean.metric.mean()).abs().max()) > 1e-4
