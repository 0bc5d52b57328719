"""The benchmarks of training steps and of ground truth, on small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mechlab.bench.sae import OurStep, ReferenceStep, Shape, compare_losses, compare_steps, make_problem
from mechlab.bench.truth import SINGLE_SITE, config_of, run_truth, toy
from mechlab.cli.bench_sae import parse_shape, parse_widths, sae
from mechlab.cli.main import main
from mechlab.errors import MechlabError

CPU = torch.device("cpu")
SHAPE = Shape(d=24, f=96, b=64, k=4)


@pytest.mark.parametrize("search", ["float32", "bfloat16"])
def test_our_step_equals_the_reference_step(tmp_path: Path, search: str) -> None:
    problem = make_problem(SHAPE, tmp_path, batches=8)
    ours, reference = OurStep(problem, CPU, search), ReferenceStep(problem, CPU)
    before = ours.fve(problem.held_out)
    for _ in range(60):
        ours()
        reference()
    assert ours.fve(problem.held_out) == pytest.approx(reference.fve(problem.held_out), abs=2e-3)
    assert ours.fve(problem.held_out) > before + 0.05


@pytest.mark.slow
def test_steps_are_compared_with_the_floor_and_a_peer(tmp_path: Path) -> None:
    found = compare_steps(SHAPE, tmp_path, repeats=2, dead_share=0.1, device=CPU, peers=("sae-lens",))
    assert found["missing"] == []
    for name in ("bare encoder product", "ours, float32", "sae-lens, as it comes", "sae-lens, sparse codes"):
        assert found["variants"][name]["seconds"] > 0
    assert found["variants"]["bare encoder product"]["times_product"] == 1
    missing = compare_steps(
        SHAPE, tmp_path, repeats=1, dead_share=0.0, device=CPU, peers=("sparsify",), peer_folder=tmp_path
    )
    assert missing["missing"] == ["sparsify"]


def test_losses_at_equal_steps(tmp_path: Path) -> None:
    found = compare_losses(SHAPE, tmp_path, steps=40, device=CPU, peers=("sae-lens",))
    assert found["ours, float32"] == pytest.approx(found["reference"], abs=2e-3)
    assert found["sae-lens"] > 0


def test_shapes() -> None:
    assert parse_shape("d768-F24576-B4096-k32") == Shape(768, 24576, 4096, 32)
    for wrong in ("768", "d8-F4-B2-k5", "d8-F4-B0-k1"):
        with pytest.raises(MechlabError, match="shape"):
            parse_shape(wrong)


def test_widths_and_rows_are_looked_at_before_anything_is_measured() -> None:
    assert parse_widths("64, 128,", Shape(8, 16, 4, 2)) == [64, 128]
    assert parse_widths("", Shape(8, 16, 4, 2)) == []
    for wrong in ("many", "-4", "1"):
        with pytest.raises(MechlabError, match=f"width is out of range: {wrong} "):
            parse_widths(f"64,{wrong}", Shape(8, 16, 4, 2))
    with pytest.raises(MechlabError, match="pass_tokens is out of range: -5"):
        sae(["--pass-tokens", "-5"], "mechlab bench sae")


@pytest.mark.slow
def test_the_command_prints_goals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "bench sae --shape d16-F64-B32-k2 --small d8-F32-B32-k2 --steps 5 --repeats 1 --widths 64,128 "
        "--rows 32 --pass-tokens 0 --no-peers --json"
    )
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert stopped.value.code == (0 if payload["met"] else 1)
    assert {part["dead_share"] for part in payload["steps"]} == {0.0, 0.1}
    assert set(payload["growth"]) == {"64", "128"}
    assert payload["goals"]


def test_every_architecture_has_settings() -> None:
    for name in SINGLE_SITE:
        config = config_of(name, d_sae=32, active=4)
        assert config.arch == name
    assert toy().batch(1000, 0, 0)[0].shape == (1000, 32)


@pytest.mark.slow
def test_topk_and_matryoshka_recover_the_toy(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_truth(part="sae", tables_wanted=("toy",))
    for arch, figures in found["toy"].items():
        assert figures["mmcs_features"] > 0.9, arch
        assert figures["control"]["mmcs_features"] < 0.6
    assert found["met"]
    with pytest.raises(MechlabError, match="unknown part: sea"):
        run_truth(part="sea")
    with pytest.raises(MechlabError, match="unknown table: tow"):
        run_truth(part="sae", tables_wanted=("tow",))
