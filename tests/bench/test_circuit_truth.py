"""Circuit discovery against known circuits: what is known to be so, and a null at chance."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mechlab.bench.circuit_ioi import ioi_circuits, ioi_goals, of_size
from mechlab.bench.circuit_truth import MODELS, SCORERS, against_truth, known_model, truth_goals
from mechlab.bench.truth import run_truth
from mechlab.circuits.ablation import Ablation
from mechlab.circuits.graph import Graph
from mechlab.circuits.search.prune import top_edges
from mechlab.cli.main import main
from mechlab.errors import MechlabError
from mechlab.models.forward import Shape


@pytest.mark.parametrize(("name", "published"), [("reverse", 0.2), ("proportion", 0.6)])
def test_acdc_and_attribution_on_compiled_models(name: str, published: float) -> None:
    wanted = ("eap", "eap-ig", "single edges", "acdc")
    found = against_truth(name, prompts=27, wanted=wanted)
    rows = {(row["method"], row["ablation"]): row for row in found["methods"]}
    assert len(rows) == 8
    for method in wanted:
        assert rows[method, "resample"]["resample"]["edge"] == pytest.approx(1)
        # No more of this truth can matter when inputs are resampled.
        assert rows[method, "resample"]["zero"]["edge_pessimistic"] == pytest.approx(published)
        assert rows[method, "resample"]["zero"]["edge"] == pytest.approx((1 + published) / 2)
    assert rows["acdc", "zero"]["zero"]["edge_pessimistic"] == pytest.approx(1)
    assert rows["eap", "resample"]["calls"] <= 3
    goals = truth_goals({name: found})
    assert len(goals) == 8
    assert all(goal["met"] for goal in goals)


def test_a_search_on_the_trained_model() -> None:
    found = against_truth("imposed", prompts=32, wanted=("eap-ig", "hisp"))
    (ig, _, *_) = found["methods"]
    assert set(found["truths"]) == {"resample"}
    assert ig["resample"]["edge"] >= 0.95
    assert abs(found["random"]["resample"]["edge"] - 0.5) < 0.05


@pytest.mark.slow
def test_gates_on_nodes_rank_edges_by_their_weaker_end() -> None:
    known = known_model("reverse", prompts=27, seed=0, device="cpu")
    graph = Graph(known.forward.shape)
    scores = SCORERS["subnetwork probing, nodes"](known, Ablation("resample"), 0)
    into_idle = scores[0, graph.reader("m1")]
    into_used = scores[0, graph.reader("a3.h0.v")]
    assert float(into_used) > 0.9 > 0.1 > float(into_idle)


def test_goals_are_missed_where_figures_fall_short() -> None:
    row: dict[str, Any] = {"edge": 0.9, "edge_pessimistic": 0.5}
    rows = [
        {"method": method, "ablation": kind, "resample": row, "zero": row}
        for method, kind in (("eap", "resample"), ("acdc", "resample"), ("acdc", "zero"))
    ]
    null = {"edge": 0.6, "error": 0.01}
    goals = truth_goals({"reverse": {"methods": rows, "random": {"resample": null}}})
    assert len(goals) == 5
    assert not any(goal["met"] for goal in goals)


def test_a_circuit_of_a_size_holds_as_many_edges_on_a_path() -> None:
    graph = Graph(Shape(n_layers=3, n_heads=4, n_key_value_heads=4, parallel=False))
    scores = torch.randn(graph.real.shape, generator=torch.Generator().manual_seed(0))
    grown = [graph.connected(top_edges(graph, scores, count)) for count in range(graph.n_edges + 1)]
    for wanted in (1, 10, 40, 200):
        first = next(mask for mask in grown if mask.sum() >= wanted)
        assert torch.equal(of_size(graph, scores, wanted), first)


@pytest.mark.slow
def test_the_bundled_models_circuit() -> None:
    found = ioi_circuits(prompts=24, held_out=24, subsets=2)
    assert set(found["circuits"]) == {"acdc", "eap-ig"}
    assert all(goal["met"] for goal in ioi_goals(found))
    assert "name mover" in found["circuits"]["acdc"]["classes"]


def test_unknown_tables_are_told() -> None:
    with pytest.raises(MechlabError, match=r"unknown table: revers .*reverse"):
        run_truth(part="circuits", tables_wanted=("revers",))
    with pytest.raises(MechlabError, match=r"unknown part: circuit .*circuits"):
        run_truth(part="circuit")


@pytest.mark.slow
def test_the_command_says_what_is_circular(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "truth", "--part", "circuits", "--tables", "proportion"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "circular" in text
    with pytest.raises(SystemExit):
        main([*words, "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"proportion", "goals", "met"}
    assert {row["method"] for row in found["proportion"]["methods"]} == set(SCORERS)
    assert "proportion" in MODELS
