"""The main job on the bundled model: every stage for real, small."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import mechlab as ml
from mechlab.artifacts import open_artifact
from mechlab.circuits.circuit import Circuit
from mechlab.features.explanations import load_explanations
from mechlab.features.scoring.scorecard import load_scores
from mechlab.models.subject import load_model
from mechlab.pipeline.config import RunConfig
from mechlab.pipeline.job import Run

STAGES = (
    "activations",
    "heldout",
    "sae",
    "evaluation",
    "circuit",
    "features",
    "heldout_features",
    "explanations",
    "scores",
)
SMALL = {"tokens": 60_000, "train_tokens": 300_000, "heldout_tokens": 20_000, "d_sae": 128, "k": 8}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ml.run(out=tmp_path_factory.mktemp("runs") / "fable", **SMALL)


@pytest.mark.slow
def test_summary_is_true_to_the_artifacts(done: Run) -> None:
    summary = done.summary
    assert summary == json.loads((done.path / "summary.json").read_text())
    assert (summary["model"], summary["site"]) == ("fable", "blocks.2.hook_resid_post")
    circuit = Circuit.load(done.path / "circuit")
    assert summary["circuit"]["n_edges"] == circuit.n_edges == int(circuit.mask.sum())
    assert summary["circuit"]["faithfulness"] == circuit.faithfulness.value
    evaluation = json.loads((done.path / "evaluation" / "evaluation.json").read_text())
    assert summary["sae"]["fve"] == evaluation["fve"]["value"]
    scores = load_scores(done.path / "scores")
    totals = {total.scorer: total.mean.value for total in scores.totals()}
    assert summary["features"]["detection_mean"] == totals["detection"]
    assert summary["features"]["fuzzing_mean"] == totals["fuzzing"]
    assert summary["features"]["scored"] == len(scores.of("detection"))
    for stage in STAGES:
        open_artifact(done.path / stage).verify()


@pytest.mark.slow
def test_the_numbers_mean_something(done: Run) -> None:
    sae, circuit, features = (done.summary[key] for key in ("sae", "circuit", "features"))
    assert sae["fve"] > 0.6
    assert sae["ce_recovered"] > 0.9
    assert 0.85 < circuit["faithfulness"] < 1.15
    assert abs(circuit["faithfulness_null"]) < 0.2
    assert circuit["n_edges"] < 100
    assert {"name mover", "S-inhibition"} == set(Circuit.load(done.path / "circuit").classes.values())
    low, _ = features["detection_interval"]
    assert low > 0.6
    assert abs(features["detection_null"] - 0.5) < 0.05


@pytest.mark.slow
def test_the_artifacts_name_what_they_are_made_of(done: Run) -> None:
    model = load_model("fable").fingerprint
    manifests = {
        name: open_artifact(done.path / name).manifest
        for name in ("activations", "sae", "features", "explanations")
    }
    assert manifests["activations"].inputs["model"] == manifests["sae"].inputs["model"] == model
    assert manifests["sae"].inputs["activations"] == manifests["activations"].fingerprint
    assert manifests["features"].inputs["dictionary"] == manifests["sae"].fingerprint
    assert manifests["explanations"].inputs["index"] == manifests["features"].fingerprint
    run = open_artifact(done.path).manifest
    assert run.kind == "run"
    assert run.config["site"] == "blocks.2.hook_resid_post"
    assert run.inputs["model"] == model


@pytest.mark.slow
def test_explanations_never_saw_what_they_are_scored_on(done: Run) -> None:
    from mechlab.activations.store import open_store

    seen = set(load_explanations(done.path / "explanations").documents)
    assert seen
    assert seen.isdisjoint(open_store(done.path / "heldout").column("document").tolist())


@pytest.mark.slow
def test_the_page_shows_the_run(done: Run) -> None:
    assert done.dashboard == done.path / "dashboard" / "index.html"
    page, blocks = done.dashboard.read_text(), _blocks(done.dashboard)
    head, run = json.loads(blocks["site"]), json.loads(blocks["run"])
    assert head["title"] == "fable at blocks.2.hook_resid_post"
    assert head["views"] == ["features", "circuit", "tokens", "run"]
    assert json.loads(blocks["circuit"])["size"]["found"] == done.summary["circuit"]["n_edges"]
    overview = json.loads(blocks["overview"])
    detection = [each for each in overview["columns"]["scores"]["detection"]["value"] if each is not None]
    assert len(detection) == done.summary["features"]["scored"]
    assert sum(detection) / len(detection) == pytest.approx(
        done.summary["features"]["detection_mean"], abs=1e-3
    )
    assert run["command"].startswith("mechlab run --out ")
    assert "https://" not in page.split("</head>")[0]


def _blocks(page: Path) -> dict[str, str]:
    return dict(
        re.findall(r'<script type="application/json" id="b-([^"]+)">(.*?)</script>', page.read_text())
    )


@pytest.mark.slow
def test_a_page_that_was_taken_away_is_made_again(done: Run) -> None:
    old = _blocks(done.dashboard)
    shutil.rmtree(done.dashboard.parent)
    again = ml.run(out=done.path, **SMALL)
    assert again.summary == done.summary
    new = _blocks(done.dashboard)
    assert old.keys() == new.keys()
    assert [name for name in old if new[name] != old[name]] in ([], ["run"])  # which tells the seconds


def test_the_command_on_the_page_makes_the_run_again() -> None:
    config = RunConfig(model="fable", k=8, out=Path("runs/x y"), overwrite=True)
    assert config.command() == "mechlab run --out 'runs/x y' --k 8"
    assert RunConfig().command() == "mechlab run"


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ml.MechlabError, match=r"unknown setting: tokns \(did you mean tokens"):
        ml.run(tokns=5)
    with pytest.raises(ml.MechlabError, match="setting tokens is wrong: many"):
        ml.run(tokens="many")


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_of_a_real_run_opens_offline(done: Run) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    problems: list[str] = []
    requests: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab: Any = browser.new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(done.dashboard.resolve().as_uri())
        tab.wait_for_selector("tbody tr")
        for view in ("circuit", "tokens", "run", "features"):
            tab.locator(f"#nav a[data-view={view}]").click()
            tab.wait_for_selector(f".view-{view} h2")
        tab.goto(done.dashboard.resolve().as_uri() + "#/feature/3")
        tab.wait_for_selector("h2:has-text('Feature 3')")
        assert tab.locator("[role=alert]:not(:empty)").count() == 0
        browser.close()
    assert problems == []
    assert {url.split("#")[0] for url in requests if not url.startswith("data:")} == {
        done.dashboard.resolve().as_uri()
    }
