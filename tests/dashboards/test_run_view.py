"""The block of a run against what it was made from, and its view in a real browser."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dashboards.conftest import HOSTILE
from mechlab.activations.harvest import harvest
from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.dashboards.run_block import run_block, training_history
from mechlab.dashboards.site import LIMIT, Site
from mechlab.data.corpus import open_corpus
from mechlab.features.scoring.scorecard import Scorecard, Scored, Unscored
from mechlab.files import write_atomic
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import train_sae
from mechlab.sae.evaluate import Evaluation
from mechlab.sae.topk import TopKConfig
from mechlab.scores import Score

SITE_NAME = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def made(
    tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    """A store and a dictionary trained on it."""
    folder = tmp_path_factory.mktemp("run")
    store = harvest(load_model(tiny_model), open_corpus(tiny_corpus), SITE_NAME, folder / "h", tokens=3000)
    trained = train_sae(
        store, folder / "sae", TopKConfig(site=SITE_NAME, d_sae=32, k=3, tokens=8192, batch_size=256)
    )
    return {"activations": open_artifact(folder / "h"), "sae": trained.artifact}


def a_score(name: str, value: float, null: float | None = None) -> Score:
    control = None if null is None else Score("control", null, null - 0.1, null + 0.1, 7, None, 0.5)
    return Score(name, value, value - 0.05, value + 0.05, 12, control, None if null is None else 0.5)


EVALUATION = Evaluation(
    tokens=900,
    documents=12,
    **{
        name: a_score(name, 0.5 + place / 20)
        for place, name in enumerate(
            (
                "l0",
                "fve",
                "fve_per_token",
                "ce_recovered",
                "ce_recovered_zero",
                "kl_recovered",
                "kl_recovered_zero",
            )
        )
    },
    ce={},
    kl={},
    dead=0.25,
    dense=0.0,
)
SCORES = Scorecard(
    tuple(Scored(f, "rules", "detection", a_score("detection", 0.8, 0.5), 0.1, 0, 5, 5) for f in range(3)),
    (Unscored(3, "rules", "detection", "too few"),),
)


def whole(artifacts: dict[str, Artifact], **changes: Any) -> dict[str, Any]:
    how: dict[str, Any] = {
        "command": "mechlab run --seed 3 --out 'my run'",
        "config": {"model": "tiny", "k": None, "train": {"d_sae": 32, "lr": 0.1}},
        "inputs": {"model": "ab" * 32},
        "timings": {"harvest": 1.25, "train": 20.0},
        "evaluation": EVALUATION,
        "scores": SCORES,
        "artifacts": artifacts,
    }
    return run_block(**{**how, **changes})


def test_the_block_says_what_the_parts_say(made: dict[str, Artifact]) -> None:
    block = whole(made)
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    by_name = {(row["name"], row.get("note", "")): row for row in block["results"]}
    assert by_name["CE loss recovered", "against mean ablation"]["value"] == EVALUATION.ce_recovered.value
    assert (
        by_name["CE loss recovered", "against zero ablation"]["value"] == EVALUATION.ce_recovered_zero.value
    )
    dead = by_name["Dead latents", ""]
    assert (dead["value"], dead["low"], dead["n"], dead["unit"]) == (0.25, None, 900, "tokens")
    detection = by_name["Detection", "mean over features of rules; 1 without"]
    total = SCORES.totals()[0].mean
    assert total.null is not None
    assert detection["value"] == pytest.approx(total.value, abs=1e-4)
    assert detection["null"]["value"] == pytest.approx(total.null.value, abs=1e-4)
    assert (detection["n"], detection["unit"]) == (3, "features")
    assert block["config"] == [
        ["model", "tiny"], ["k", "not set"], ["train.d_sae", "32"], ["train.lr", "0.1"],
    ]  # fmt: skip
    parts = {part["name"]: part for part in block["artifacts"]}
    manifest = made["sae"].manifest
    assert parts["sae"]["fingerprint"] == manifest.fingerprint
    assert parts["sae"]["bytes"] == sum((made["sae"].path / name).stat().st_size for name in manifest.files)
    assert dict(block["versions"]).keys() == manifest.versions.keys()
    assert block["timings"] == [["harvest", 1.25], ["train", 20.0]]


def test_the_training_log_is_the_trainer_s(made: dict[str, Artifact]) -> None:
    rows = [json.loads(line) for line in made["sae"].file("metrics.jsonl").read_text().splitlines()]
    [history] = whole(made)["training"]
    assert history["name"] == "sae"
    assert history["step"] == [row["step"] for row in rows]
    assert len(rows) > 3
    assert history["fve"] == pytest.approx([row["fve"] for row in rows], rel=1e-3)
    assert history["loss"][0] > history["loss"][-1]
    assert history["batch"] == 256
    assert training_history(made["activations"]) == {}


def test_a_broken_line_of_the_log_is_passed_over(tmp_path: Path) -> None:
    with writing(tmp_path / "d", "dictionary", config={}, seed=0, inputs={}) as writer:
        lines = '{"step": 0, "loss": NaN, "fve": 0.5}\n{"step": 1, "lo\n{"step": 2, "loss": 1, "fve": 0.75}\n'
        write_atomic(writer.work / "metrics.jsonl", lines)
        artifact = writer.commit(["metrics.jsonl"])
    assert training_history(artifact) == {"step": [0, 2], "loss": [None, 1.0], "fve": [0.5, 0.75]}


def test_nothing_is_made_up() -> None:
    block = run_block()
    assert all(not value for value in block.values())
    empty = replace(EVALUATION, fve=Score("fve", math.nan, math.nan, math.nan, 0))
    assert run_block(evaluation=empty)["results"][1]["value"] is None


@pytest.fixture
def visit(visit_site, made):
    def go(limit=LIMIT, **changes):
        block = whole(changes.pop("artifacts", made), **changes)
        site = Site("A site", ("run",), {"model": "tiny"}, lambda: iter([("run", block)]))
        tab = visit_site(site, "#/run", limit=limit)
        tab.wait_for_selector(".run section")
        return tab

    return go


@pytest.mark.browser
@pytest.mark.parametrize("limit", [LIMIT, 0])
def test_the_page_shows_results_command_curves_and_times(visit, limit):
    tab = visit(limit)
    row = tab.locator(".run tr", has_text="Detection").inner_text()
    for piece in ("0.800", "3 features", "0.500 (", "mean over features of rules"):
        assert piece in row
    assert tab.locator(".command code").inner_text() == "mechlab run --seed 3 --out 'my run'"
    assert tab.locator(".curves figure svg[role=img]").count() >= 3
    names = [tab.locator(".curves svg").nth(n).get_attribute("aria-label") for n in range(2)]
    assert "training loss against rows trained on" in names[0]
    assert "L0, active latents per token 3" in tab.locator(".run").inner_text()  # constant, so not drawn
    assert "20.0" in tab.locator(".run [aria-label=Timings] tr", has_text="train").first.inner_text()
    assert tab.locator(".run tr", has_text="train.d_sae").inner_text().split() == ["train.d_sae", "32"]
    assert "ab" * 32 in tab.locator(".run").inner_text()


@pytest.mark.browser
def test_the_command_can_be_copied_by_keyboard(visit):
    tab = visit()
    button = tab.get_by_role("button", name="Copy")
    button.focus()
    tab.keyboard.press("Enter")
    tab.locator(".command button", has_text="Copied").or_(
        tab.locator(".command button", has_text="Selected")
    ).wait_for()
    assert tab.evaluate("String(getSelection())").strip() == "mechlab run --seed 3 --out 'my run'"


@pytest.mark.browser
def test_a_run_without_a_log_says_so_and_hostile_text_is_text(visit):
    everything = " ".join(HOSTILE)
    tab = visit(
        artifacts={},
        command=everything,
        config={everything: everything},
        inputs={everything: everything},
        timings={everything: 1.0},
    )
    assert "No training log is stored" in tab.locator(".run").inner_text()
    assert "<script>window.hit=1</script>" in tab.locator(".command").inner_text()
    assert tab.evaluate("window.hit") is None
    assert tab.locator("main img").count() == 0


@pytest.mark.browser
def test_narrow_screens_do_not_scroll_sideways(visit):
    tab = visit()
    tab.set_viewport_size({"width": 380, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
