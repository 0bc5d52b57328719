"""Charts from Python: what they draw is what they were given, and they can be saved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.activations.harvest import harvest
from mechlab.circuits.circuit import Circuit
from mechlab.dashboards.charts import (
    activation_histogram,
    density_against_score,
    faithfulness_curve,
    logit_bars,
    score_intervals,
    training_curves,
)
from mechlab.dashboards.figures import save_figure
from mechlab.data.corpus import open_corpus
from mechlab.data.tasks import make_task
from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.logits import logit_effects
from mechlab.features.scoring.scorecard import Scorecard, Scored
from mechlab.features.statistics import statistics_of
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary, vocabulary_of
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import train_sae
from mechlab.sae.topk import TopKConfig
from mechlab.scores import Score

NULL = Score("control", 0.5, 0.4, 0.6, 9, None, 0.5)


@pytest.fixture(scope="module")
def index() -> FeatureIndex:
    random = np.random.default_rng(0)
    text = text_of([random.integers(0, 3, 20).tolist() for _ in range(10)], Vocabulary(("a", "b", "c")))
    return index_of(text, {f: random.random(200) * (random.random(200) < 0.1 * (f + 1)) for f in range(3)})


def scored(feature: int, value: float, scorer: str = "detection") -> Scored:
    score = Score(scorer, value, value - 0.1, value + 0.1, 9, NULL, 0.5)
    return Scored(feature, "rules", scorer, score, 0.1, 0, 5, 5)


def test_histogram(index: FeatureIndex) -> None:
    statistics = statistics_of(index)
    [bars] = activation_histogram(statistics, 1).data
    assert list(bars.y) == statistics.histogram[1].tolist()
    assert sum(bars.y) == index.active[1]
    assert bars.x[0] - bars.width[0] / 2 == pytest.approx(0.0, abs=1e-9)
    assert bars.x[-1] + bars.width[-1] / 2 == pytest.approx(index.maximum[1])
    with pytest.raises(MechlabError):
        activation_histogram(statistics, 3)


def test_density_against_score(index: FeatureIndex) -> None:
    card = Scorecard((scored(2, 0.9), scored(0, 0.6), scored(1, 0.7, "fuzzing")), ())
    figure = density_against_score(index, card)
    [points] = figure.data
    assert list(points.text) == ["feature 2", "feature 0"]
    np.testing.assert_allclose(points.x, index.density[[2, 0]])
    assert list(points.y) == [0.9, 0.6]
    assert figure.layout.shapes[0].y0 == 0.5
    with pytest.raises(MechlabError, match="no feature has this score: simulation"):
        density_against_score(index, card, "simulation")


def test_scores_with_intervals_and_controls() -> None:
    bare = Score("plain", 0.3, 0.1, 0.4, 5)
    figure = score_intervals([scored(0, 0.8).score, bare], ["first", "second"])
    score, control = figure.data
    assert (list(score.x), list(score.y)) == ([0.8, 0.3], ["first", "second"])
    np.testing.assert_allclose(score.error_x.array, [0.1, 0.1])
    np.testing.assert_allclose(score.error_x.arrayminus, [0.1, 0.2])
    assert (list(control.x), list(control.y)) == ([0.5], ["first"])
    assert control.marker.symbol != score.marker.symbol
    assert len(score_intervals([bare]).data) == 1
    with pytest.raises(MechlabError, match="differ in number"):
        score_intervals([bare], [])


def test_logit_bars(tiny_model: Path) -> None:
    subject = load_model(tiny_model)
    effects = logit_effects(subject, torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), top=3)
    vocabulary = vocabulary_of(subject)
    figure = logit_bars(effects, 1, vocabulary)
    [bars] = figure.data
    values = [*effects.promoted_value[1].tolist(), *effects.suppressed_value[1].flip(0).tolist()]
    assert list(bars.x) == values == sorted(values, reverse=True)
    words = [repr(word) for word in effects.words(1, vocabulary)]
    assert list(figure.layout.yaxis.ticktext)[:3] == words
    assert set(bars.marker.pattern.shape) == {"", "/"}


def test_training_curves(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    site = "blocks.0.hook_resid_post"
    store = harvest(load_model(tiny_model), open_corpus(tiny_corpus), site, tmp_path / "h", tokens=2000)
    config = TopKConfig(site=site, d_sae=32, k=3, tokens=4096, batch_size=256)
    dictionary = train_sae(store, tmp_path / "sae", config)
    figure = training_curves(dictionary.artifact)
    assert [each.text for each in figure.layout.annotations] == [
        "training loss", "variance explained", "L0", "dead latents",
    ]  # fmt: skip
    loss = figure.data[0]
    assert loss.y[0] > loss.y[-1]
    assert loss.x[-1] <= 4096
    with pytest.raises(MechlabError, match="no training log"):
        training_curves(store.artifact)


@pytest.mark.slow
@pytest.mark.browser
def test_faithfulness_of_a_real_circuit(tmp_path: Path) -> None:
    from mechlab.circuits.find import find_circuit

    subject = load_model("fable")
    selection, held_out = (
        make_task("ioi", subject.tokenizer, n=16, seed=0, split=split) for split in ("validation", "test")
    )
    circuit: Circuit = find_circuit(subject, selection, held_out, method="eap", top=30, controls=3)
    figure = faithfulness_curve(circuit)
    by_score, by_size, own = figure.data
    points = [point for point in circuit.evaluation.cpr.points if point.n_top]
    assert list(by_score.x) == [point.n_top for point in points]
    assert list(by_score.y) == [point.faithfulness for point in points]
    assert by_score.line.dash != by_size.line.dash
    assert (own.x[0], own.y[0]) == (30, circuit.faithfulness.value)
    assert not math.isnan(own.error_y.array[0])
    assert save_figure(figure, tmp_path / "f.pdf").read_bytes().startswith(b"%PDF-")
