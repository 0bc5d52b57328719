"""The benchmark's variants do the same work; its figures have the shape that is promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mechlab.activations.capture import read_sites
from mechlab.bench.harvest import BARE, Load, bare, capture, compare, live, make_load, saelens, store_rows
from mechlab.bench.models import GPT2_SMALL, bench_model, flops_per_token, gpt2_small_shaped, truncated
from mechlab.bench.saelens import saelens_batches
from mechlab.bench.storage import compare_memory, compare_reading
from mechlab.cli.bench import _text
from mechlab.models.subject import Subject, load_model

MACHINE = {"flops": 1e11, "bytes": 1e10, "disk": 1e9}


@pytest.fixture(scope="module")
def small() -> Subject:
    return gpt2_small_shaped("cpu", n_layer=4, n_embd=32, n_head=4, vocab_size=100, n_positions=16)


@pytest.fixture(scope="module")
def load(small: Subject) -> Load:
    return make_load(small, batch=4, n_ctx=8, forwards=6, batch_rows=16)


def reference(load: Load, site: str) -> torch.Tensor:
    """One step's rows, in order, each forward by itself."""
    parts = [read_sites(load.subject, tokens, [site])[site] for tokens in load.batches()]
    return torch.cat(parts).flatten(0, 1)


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    order = sorted(range(len(rows)), key=lambda i: rows[i].tolist())
    return rows[order]


@pytest.mark.parametrize("which", ["gpt2", "fable", "llama"])
def test_the_bare_forward_ends_in_the_captured_site_bit_for_bit(
    which: str, small: Subject, stories_model: Path
) -> None:
    subject = {"gpt2": lambda: small, "fable": lambda: load_model("fable", device="cpu")}.get(
        which, lambda: load_model(stories_model, device="cpu")
    )()
    before = subject.fingerprint
    tokens = torch.randint(0, subject.module.config.vocab_size, (3, 8))
    for block in range(subject.module.config.num_hidden_layers):
        site = f"blocks.{block}.hook_resid_post"
        with torch.no_grad():
            bare_end = truncated(subject, block)(tokens, use_cache=False).last_hidden_state
        assert torch.equal(bare_end, read_sites(subject, tokens, [site])[site])
    del subject.__dict__["fingerprint"]  # cached
    assert subject.fingerprint == before


def test_the_bare_forward_runs_the_blocks_that_count_and_no_other(small: Subject) -> None:
    ran: list[int] = []
    blocks = small.module.transformer.h
    handles = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(blocks)]
    truncated(small, 1)(torch.zeros(1, 4, dtype=torch.long))
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_flops_against_a_count_by_hand(small: Subject) -> None:
    d, n_ctx = 32, 8
    per_block = 2 * (3 * d * d + d * d + 4 * d * d + 4 * d * d) + 2 * n_ctx * d
    assert flops_per_token(small, 1, n_ctx) == 2 * per_block


def test_the_gpt2_shape_is_gpt2_small() -> None:
    config = bench_model(GPT2_SMALL, "cpu").module.config
    assert (config.n_layer, config.n_embd, config.n_head, config.vocab_size) == (12, 768, 12, 50257)


def test_bench_models_have_no_bos() -> None:
    assert bench_model("fable", "cpu").bos is None
    assert load_model("fable", device="cpu").bos is not None


def test_every_variant_reports_the_rows_of_a_step(load: Load) -> None:
    assert load.rows == 6 * 4 * 8
    for variant in (
        bare(load), capture(load, [load.site]), capture(load, load.sites), live(load, load.sites),
        saelens(load, [load.site], mixed=True), saelens(load, [load.site], mixed=False),
    ):  # fmt: skip
        assert variant.step() == load.rows
        assert variant.step() == load.rows


def test_a_stored_step_holds_the_rows_of_its_forwards(load: Load, tmp_path: Path) -> None:
    store = store_rows(load, load.sites, tmp_path / "store")
    assert store.n_rows == load.rows
    for site in load.sites:
        assert torch.equal(store.activations(site), reference(load, site))


@pytest.mark.parametrize("n_sites", [1, 4])
def test_saelens_computes_the_same_rows(load: Load, n_sites: int) -> None:
    sites = list(load.sites)[-n_sites:]
    batches = saelens_batches(load.subject, load.tokens, sites, batch=4, batch_rows=16, buffer=4, mix=0.0)
    taken = [next(batches) for _ in range(load.rows // 16)]
    for site in sites:
        rows = torch.cat([each[site] for each in taken])
        assert torch.equal(sorted_rows(rows), sorted_rows(reference(load, site)))
    # It hooks a copy: nothing is left on the subject's own module.
    assert all(not module._forward_hooks for module in load.subject.module.modules())


def test_compare_and_reading_report_every_figure(load: Load, tmp_path: Path) -> None:
    found = compare(load, tmp_path, repeats=1, machine=MACHINE, capture_goal=0.97)
    assert set(found["variants"]) > {BARE, "capture, 1 site", "store, 4 sites", "live, 1 site"}
    assert found["variants"][BARE]["ratio"] == 1.0
    for each in found["variants"].values():
        assert each["tokens_per_s"] > 0
        assert each["ratio_range"][0] <= each["ratio"] <= each["ratio_range"][1]
    assert found["goals"][0]["goal"] == 0.97
    assert all(each["met"] == (each["value"] >= each["goal"]) for each in found["goals"])
    reading = compare_reading(load, tmp_path, repeats=1, buffer=64)
    assert len(reading["goals"]) == 2
    assert all(rate > 0 for rate in reading["bytes_per_s"].values())
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    memory = {"rows": [10, 100], "peak_bytes": [None, 5], "goals": []}
    environment = {
        "gpu": None,
        "cpu": "c",
        "cores": 2,
        "threads": 1,
        "torch": "t",
        "sae-lens": "s",
        "load": 0.1,
    }
    payload = {
        "environment": environment, "machine": MACHINE, "models": {"tiny": found}, "reading": [reading],
        "memory": memory,
    }  # fmt: skip
    json.dumps(payload)
    text = _text(payload)
    assert all(variant in text for variant in found["variants"])
    assert "unknown" in text


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    found = compare_memory(tmp_path, rows=500, device="cpu")
    assert found["rows"] == [500, 5000]
    assert all(peak is None or peak > 1e7 for peak in found["peak_bytes"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_the_same_code_runs_on_a_card(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    subject = gpt2_small_shaped("cuda", n_layer=4, n_embd=32, n_head=4, vocab_size=100, n_positions=16)
    load = make_load(subject, batch=4, n_ctx=8, forwards=4)
    found = compare(load, tmp_path, repeats=1, machine=MACHINE)
    assert all(each["peak_bytes"] is not None for each in found["variants"].values())
