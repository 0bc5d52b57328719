"""The benchmark of circuit discovery on small sizes: figures, floors, goals, a peer that is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mechlab.bench.circuits import (
    CURVE,
    EAP,
    EAP_IG,
    EDGES,
    FORWARD,
    LOGIT_EDGES,
    EdgeTests,
    compare_attribution,
    curve_circuits,
    floors,
    random_prompts,
    time_acdc,
    without_each,
)
from mechlab.bench.models import gpt2_small_shaped
from mechlab.circuits.evaluate import run_circuits
from mechlab.circuits.graph import Graph
from mechlab.cli.bench_circuits import goals
from mechlab.cli.main import main
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return gpt2_small_shaped("cpu", n_layer=3, n_head=4, n_embd=32, vocab_size=60)


def test_random_prompts_differ_and_are_read_at_the_end(subject: Subject) -> None:
    task = random_prompts(subject, n=5, n_ctx=7, seed=1)
    assert task.clean.shape == task.corrupt.shape == (5, 7)
    assert (task.clean != task.corrupt).any(1).all()
    assert task.positions["end"].tolist() == [6] * 5
    again = random_prompts(subject, n=5, n_ctx=7, seed=1)
    assert torch.equal(task.clean, again.clean)


def test_tests_of_edges_are_the_whole_model_without_one_edge(subject: Subject) -> None:
    forward, task = DecomposedForward(subject.module), random_prompts(subject, n=4, n_ctx=6)
    graph = Graph(forward.shape)
    edges = graph.real.nonzero()[::11]
    masks = without_each(graph, edges)
    assert ((graph.real & ~masks).sum((1, 2)) == 1).all()
    assert not masks[torch.arange(len(edges)), edges[:, 0], edges[:, 1]].any()
    tests = EdgeTests(forward, task, edges)
    tests.ready()
    assert tests() == len(edges)
    values, _, _ = run_circuits(forward, task, masks, metric="logit_difference")
    torch.testing.assert_close(tests.values, values.mean(1))


def test_floors_count_multiplications(subject: Subject) -> None:
    """By hand: 12·32² = 12,288 for a block, of 3; 32·60 = 1,920 to unembed one of 6 positions … all."""
    task = random_prompts(subject, n=4, n_ctx=6)
    graph = Graph(DecomposedForward(subject.module).shape)
    edges = torch.tensor([[0, 0], [0, graph.reader("a2.h0.q")], [0, graph.reader("logits")]])
    found = floors(subject, task, edges, steps=2)
    whole, once, product = 3 * 12_288 + 1_920, 1_920 / 6, graph.n_edges * 32
    assert found[EDGES] == pytest.approx(((3 + 1 + 0) / 3 * 12_288 + once) / whole)
    assert found[LOGIT_EDGES] == pytest.approx(once / whole)
    assert found[EAP] == pytest.approx((9 * 12_288 + 3 * once + product) / whole)
    assert found[EAP_IG] == pytest.approx((18 * 12_288 + 6 * once + 2 * product) / whole)


def test_the_curve_has_ten_growing_circuits(subject: Subject) -> None:
    graph = Graph(DecomposedForward(subject.module).shape)
    masks = curve_circuits(graph, torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(0)))
    sizes = masks.sum((1, 2)).tolist()
    assert len(sizes) == 10
    assert sizes == sorted(sizes)
    assert sizes[-1] == graph.n_edges


def test_a_missing_peer_is_reported_as_missing(subject: Subject, tmp_path: Path) -> None:
    found = compare_attribution(
        subject, random_prompts(subject, n=3, n_ctx=5), tmp_path, repeats=1, steps=2, n_edges=7, device=CPU,
        peer_folder=tmp_path,
    )  # fmt: skip
    assert found["missing"] == ["auto-circuit"]
    assert found["errors"] is None
    assert set(found["variants"]) == {FORWARD, EAP, EAP_IG, CURVE, EDGES, LOGIT_EDGES}
    assert found["variants"][FORWARD]["forwards"] == 1
    assert all(each["seconds"] > 0 for each in found["variants"].values())
    names = [goal["name"] for goal in goals(found | {"config": {"steps": 2}}, "cpu")]
    assert len(names) == 3
    assert not any("auto-circuit" in name for name in names)


def test_goals_compare_the_right_way_round() -> None:
    cost = {"seconds": 1.0, "forwards": 2.0, "peak_bytes": 10}
    payload = {
        "config": {"steps": 5},
        "variants": dict.fromkeys((FORWARD, EAP, EAP_IG, CURVE, EDGES, LOGIT_EDGES), cost)
        | {f"auto-circuit, {name}": cost for name in ("EAP", "single edges", "edges into the logits")},
        "ratios": {
            "ours, EAP-IG / ours, EAP": 7.0,
            "ours, EAP / auto-circuit, EAP": 0.2,
            "ours, single edges / auto-circuit, single edges": 0.1,
            "ours, edges into the logits / auto-circuit, edges into the logits": 0.1,
        },
        "errors": {"logits": 1e-6, "EAP": 1e-3},
        "acdc": {"runs": {"as it comes": {"seconds": 61.0}}, "same": True},
    }
    missed = {goal["name"] for goal in goals(payload, "cpu") if not goal["met"]}
    assert missed == {
        "ours, EAP / auto-circuit, EAP",
        "EAP's peak memory / auto-circuit's",
        "EAP: relative L2 error",
        "ACDC on IOI, s",
    }
    assert "EAP, plain forwards" not in {goal["name"] for goal in goals(payload, "cuda")}


@pytest.mark.slow
def test_acdc_ahead_is_acdc_one_by_one() -> None:
    found = time_acdc(prompts=8, threshold=0.05, device="cpu")
    assert found["same"]
    one, several = (found["runs"][name] for name in ("one by one", "16 ahead"))
    assert one["calls"] == one["circuits"] < several["circuits"]
    assert several["calls"] < one["calls"] / 2
    assert 0 < found["kept"] < found["edges"] == 479


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--edges", "0"], "edges must be at least 1"),
        (["--n-ctx", "1"], "n_ctx must be at least 2"),
        (["--repeat", "3"], "--repeats"),
        (["--device", "cuda:99"], "device is not there"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "circuits", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_a_small_run_ends_in_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--model fable --batch 2 --n-ctx 8 --repeats 1 --edges 4 --acdc-prompts 0 --no-peers --device cpu"
    with pytest.raises(SystemExit) as stop:
        main(["bench", "circuits", *words.split(), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert stop.value.code == (0 if found["met"] else 1)
    assert found["missing"] == []
    assert found["n_edges"] == 479
