"""Blocks of features against what each feature gives by itself."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dashboards.conftest import HOSTILE
from features.exchanged import random_index
from features.scored_features import KINDS, halves, true_rules
from mechlab.artifacts import open_artifact
from mechlab.dashboards.block_values import short
from mechlab.dashboards.feature_blocks import CHUNK, feature_blocks
from mechlab.dashboards.feature_contexts import NEAR, OF_EACH, QUANTILES, RADIUS, RANDOM, TOP
from mechlab.dashboards.feature_judged import DrillDown, balanced
from mechlab.dashboards.feature_material import gather_material
from mechlab.dashboards.feature_record import NEVER
from mechlab.dashboards.site import script_json
from mechlab.errors import MechlabError
from mechlab.features.building import load_index
from mechlab.features.contexts import shown, top_contexts
from mechlab.features.explanations import Explanation, Explanations, load_explanations
from mechlab.features.index import FeatureIndex, index_of
from mechlab.features.notes import Note, Notes
from mechlab.features.scoring.score import score_features
from mechlab.features.scoring.scorecard import Scorecard, Unscored, load_scores
from mechlab.features.statistics import load_statistics
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary
from mechlab.models.subject import load_model
from mechlab.sae.dictionary import load_sae


def blocks_of(index: FeatureIndex, **more: object) -> dict:
    """All blocks by name; checks that they are plain JSON, and the order of their names."""
    found = list(feature_blocks(gather_material(index, **more)))
    names = [name for name, _ in found]
    assert names == ["overview", *(f"features-{k}" for k in range(-(-index.n_features // CHUNK)))]
    for _, value in found:
        assert json.loads(json.dumps(value, allow_nan=False)) == value
    return dict(found)


def record_of(blocks: dict, feature: int) -> tuple[dict, list[str]]:
    block = blocks[f"features-{feature // CHUNK}"]
    return block["features"][str(feature)], block["strings"]


def spelled(context: dict, strings: list[str]) -> list[tuple[str, float, bool]]:
    """A context as text, activation and whether it is the centre."""
    active = dict(map(tuple, context["a"]))
    return [
        (strings[number], active.get(at, 0), at == context["c"]) for at, number in enumerate(context["t"])
    ]


def naive(index: FeatureIndex, feature: int, context) -> list[tuple[str, float, bool]]:
    return [
        (piece.text or f"<{index.text.vocabulary.ids([''])[0]}>", short(piece.activation, 3), piece.centre)
        for piece in shown(index, feature, context)
    ]


def rows_of(index: FeatureIndex, context: dict, strings: list[str]) -> slice:
    """The rows that a context claims to be from, checked by what they say; "at" is a token in its centre."""
    row = int(np.flatnonzero(index.text.document == context["d"])[0]) + context["at"]
    wanted = [strings[number] for number in context["t"]]
    far = RADIUS + 4  # a character is not cut in two
    for start in range(row, max(-1, row - far), -1):
        for stop in range(row + 1, row + far):
            pieces = index.text.vocabulary.pieces(index.text.tokens[start:stop])
            if [piece.text or f"<{24}>" for piece in pieces] == wanted:
                centre = pieces[context["c"]]
                if centre.start <= row - start < centre.stop:
                    return slice(start, stop)
    raise AssertionError((wanted, row))


@pytest.mark.parametrize("seed", range(8))
def test_records_are_what_each_feature_gives_by_itself(seed: int) -> None:
    index = random_index(seed, passages=20, features=9)
    blocks = blocks_of(index)
    columns = blocks["overview"]["columns"]
    for feature in range(index.n_features):
        dense = index.dense(feature)
        active = dense[dense > 0]
        record, strings = record_of(blocks, feature)
        assert columns["density"][feature] == short(float((dense > 0).mean()))
        assert columns["max"][feature] == short(float(dense.max()))
        if not len(active):
            assert columns["flags"][feature] == "dead"
            assert record == {"said": [], "why": NEVER} | (
                {"near": record["near"]} if "near" in record else {}
            )
            assert columns["tokens"][feature] == []
            continue
        assert columns["mean"][feature] == short(float(active.astype(np.float64).mean()))
        assert sum(record["hist"]["counts"]) == len(active)
        assert record["quantiles"][-1] == record["hist"]["max"] == columns["max"][feature]
        contexts = record["contexts"]
        wanted = top_contexts(index, feature, TOP, RADIUS)
        assert [spelled(each, strings) for each in contexts["top"]] == [
            naive(index, feature, each) for each in wanted
        ]
        peaks = [spelled(each, strings)[each["c"]][0] for each in contexts["top"]]
        assert columns["tokens"][feature] == list(dict.fromkeys(peaks))[:5]
        for each in (*contexts["top"], *contexts["random"]):
            rows = rows_of(index, each, strings)
            assert dict(map(tuple, each["a"]))[each["c"]] > 0
            assert {short(float(v), 3) for v in dense[rows][dense[rows] > 0]} >= {v for _, v in each["a"]}
        for each in contexts["top"]:
            first = int(np.flatnonzero(index.text.document == each["d"])[0])
            assert short(float(dense[first + each["at"]]), 3) == dict(map(tuple, each["a"]))[each["c"]]
        assert 0 < len(contexts["random"]) <= RANDOM


@pytest.mark.parametrize("seed", range(4))
def test_quantiles_are_of_the_ranks_of_peaks(seed: int) -> None:
    index = random_index(seed, passages=30, features=4)
    blocks = blocks_of(index)
    for feature in (0, 1, 3):
        dense, strongest = index.dense(feature), []
        for passage in range(len(index.text.bounds) - 1):
            here = dense[index.text.bounds[passage] : index.text.bounds[passage + 1]]
            if here.max() > 0:
                strongest.append(float(here.max()))
        strongest.sort(reverse=True)
        groups = record_of(blocks, feature)[0]["contexts"]["quantiles"]
        parts = [part.tolist() for part in np.array_split(np.array(strongest), QUANTILES)]
        assert [(g["low"], g["high"], g["share"]) for g in groups] == [
            (short(part[-1]), short(part[0]), short(len(part) / len(strongest))) for part in parts
        ]
        for group in groups:
            assert 0 < len(group["rows"]) <= OF_EACH
            for row in group["rows"]:
                peak = dict(map(tuple, row["a"]))[row["c"]]
                assert short(group["low"], 3) <= peak <= short(group["high"], 3)


@pytest.mark.parametrize("seed", range(4))
def test_near_misses_are_silent_where_the_neighbour_is_not(seed: int) -> None:
    index = random_index(seed, passages=30, features=9)
    blocks, found = blocks_of(index), 0
    for feature in index.live.tolist():
        record, strings = record_of(blocks, feature)
        near = record["contexts"].get("near", [])
        assert len(near) <= NEAR
        assert len({each["of"] for each in near}) == len(near)
        for each in near:
            found += 1
            rows = rows_of(index, each, strings)
            assert each["a"] == []
            assert not index.dense(feature)[rows].any()
            assert index.dense(each["of"])[rows].any()
            assert each["of"] in [other for other, _ in record["near"]["together"]]
    assert found > 5


def test_scores_and_what_is_said_reach_the_page() -> None:
    index, held = halves(seed=1)
    rules = true_rules(index, tuple(np.unique(index.text.document).tolist()))
    card = score_features(held, rules, ["detection", "fuzzing", "intruder"], fewest=5)
    said = Explanations(
        (*rules.items, Explanation(0, "llm:small:v1", "numbers <b>", None)), rules.documents, rules.n_features
    )
    notes = Notes(
        (Note(2, "looks right", "two words", "Ada", "now", "x"), Note(2, None, "a pair", "Ada", "now", "x"))
    )
    blocks = blocks_of(index, explanations=said, scores=card, notes=notes)
    overview = blocks["overview"]
    assert set(overview["scorers"]) == {"detection", "fuzzing", "intruder"}
    assert overview["columns"]["label"][2] == "a pair"
    for feature, kind in enumerate(KINDS):
        record, _ = record_of(blocks, feature)
        for scorer in overview["scorers"]:
            stored = card.of(scorer).get(feature)
            column = overview["columns"]["scores"][scorer]
            assert column["value"][feature] == (None if stored is None else short(stored.score.value))
            assert column["null"][feature] == (
                None if stored is None or stored.score.null is None else short(stored.score.null.value)
            )
            shown_scores = {each["name"]: each for each in record["said"][0]["scores"]}
            if stored is not None:
                one = shown_scores[scorer]
                assert (one["n"], one["positive"], one["negative"]) == (
                    stored.score.n,
                    stored.n_positive,
                    stored.n_negative,
                )
                assert one["low"] == short(stored.score.low)
        reasons = [each.reason for each in card.unscored if each.feature == feature]
        assert all(reason in record["said"][0]["why"] for reason in reasons), kind
    zero = record_of(blocks, 0)[0]["said"]
    assert [each["by"] for each in zero] == ["rules", "llm:small:v1"]
    assert zero[1] == {
        "text": "numbers <b>",
        "by": "llm:small:v1",
        "scores": [],
        "why": "nobody has scored it",
    }
    two, _ = record_of(blocks, 2)
    assert two["said"][-1]["text"] == "a pair"
    assert two["said"][-1]["author"] == "Ada"
    assert two["notes"] == [
        {"text": "looks right", "author": "Ada", "label": "two words"},
        {"text": "", "author": "Ada", "label": "a pair"},
    ]


def test_features_without_words_say_why() -> None:
    index = random_index(0, features=6)
    failed = Explanations((), (), 6, {1: "the server did not answer"})
    blocks = blocks_of(index, explanations=failed)
    assert record_of(blocks, 1)[0]["why"] == "the server did not answer"
    assert record_of(blocks, 2)[0]["why"] == NEVER
    assert record_of(blocks, 0)[0]["why"] == "nobody has explained it"
    assert blocks["overview"]["columns"]["said"] == [""] * 6
    assert blocks["overview"]["scorers"] == []


def test_scores_that_are_no_numbers_become_null() -> None:
    index, held = halves(seed=2)
    rules = true_rules(index)
    card = score_features(held, rules, ["detection"])
    first = card.scored[0]
    nan = type(first.score)("detection", math.nan, 0.0, 1.0, 3)
    broken = Scorecard(
        (type(first)(first.feature, "rules", "detection", nan, 0.1, 0, 1, 1),), (Unscored(1, "", "", "x"),)
    )
    blocks = blocks_of(index, explanations=rules, scores=broken)
    assert record_of(blocks, first.feature)[0]["said"][0]["scores"][0]["value"] is None


def test_a_feature_of_many_tokens_is_flagged_dense() -> None:
    text = random_index(0).text
    values = {0: np.ones(len(text)), 1: (np.arange(len(text)) == 3).astype(float)}
    flags = blocks_of(index_of(text, values))["overview"]["columns"]["flags"]
    assert flags == ["dense", ""]


def test_hostile_strings_come_back_unchanged() -> None:
    vocabulary = Vocabulary((*HOSTILE, ""))
    text = text_of([list(range(len(vocabulary)))] * 2 + [[1, 0, 2, 11, 4]], vocabulary)
    index = index_of(text, {0: (np.arange(len(text)) % 3).astype(float), 1: np.zeros(len(text))})
    said = Explanations((Explanation(0, HOSTILE[1], " ".join(HOSTILE)),), (), 2)
    blocks = blocks_of(index, explanations=said)
    written = {name: script_json(value) for name, value in blocks.items()}
    assert not any("<" in block or "\u2028" in block for block in written.values())
    block = json.loads(written["features-0"])
    assert set(block["strings"]) == {*HOSTILE, "<11>"}
    record = block["features"]["0"]
    assert record["said"][0]["text"] == " ".join(HOSTILE)
    longest = max(record["contexts"]["top"], key=lambda each: len(each["t"]))
    assert [block["strings"][number] for number in longest["t"]] == [*HOSTILE, "<11>"]


def test_no_features_and_no_text() -> None:
    text = text_of([], Vocabulary((" a",)))
    assert list(blocks_of(index_of(text, {}))) == ["overview"]
    blocks = blocks_of(index_of(text, {0: np.zeros(0), 1: np.zeros(0)}))
    assert blocks["overview"]["columns"]["flags"] == ["dead", "dead"]


def test_strings_that_come_most_often_have_the_smallest_numbers() -> None:
    blocks = blocks_of(random_index(3, passages=40))
    block = blocks["features-0"]
    counts = np.zeros(len(block["strings"]), int)
    for record in block["features"].values():
        for group in ("top", "near", "random"):
            for context in record.get("contexts", {}).get(group, []):
                np.add.at(counts, context["t"], 1)
        for quantile in record.get("contexts", {}).get("quantiles", []):
            for context in quantile["rows"]:
                np.add.at(counts, context["t"], 1)
    assert (np.diff(counts) <= 0).all()


def test_the_same_seed_gives_the_same_blocks() -> None:
    material = gather_material(random_index(5, passages=30))
    assert list(feature_blocks(material)) == list(feature_blocks(material))
    assert list(feature_blocks(material)) != list(feature_blocks(material, seed=1))


def test_explanations_of_another_index_are_refused() -> None:
    with pytest.raises(MechlabError, match="another size"):
        gather_material(random_index(0), explanations=Explanations((), (), 3))
    with pytest.raises(MechlabError, match="steering needs"):
        gather_material(random_index(0), steer=2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_run_is_small_and_quick(tmp_path: Path) -> None:
    command = (
        "-m mechlab run --task none --d-sae 512 --tokens 100000 --train-tokens 100000 --heldout-tokens 60000"
    )
    # A process of its own: here every call's types are checked, which takes long in training.
    subprocess.run(
        [sys.executable, *command.split(), "--out", str(tmp_path / "run")],
        check=True,
        timeout=1000,
    )
    index, path = load_index(tmp_path / "run" / "features"), tmp_path / "run"
    said, scores = load_explanations(path / "explanations"), load_scores(path / "scores")
    settings = open_artifact(path / "scores").manifest.config
    drill = DrillDown.from_settings(load_index(path / "heldout_features"), said, scores, settings)
    started = time.process_time()  # others may keep the machine busy
    material = gather_material(
        index,
        statistics=load_statistics(path / "features"),
        explanations=said,
        scores=scores,
        drill=drill,
        dictionary=load_sae(path / "sae"),
        subject=load_model("fable"),
    )
    found = {name: len(script_json(value)) for name, value in feature_blocks(material)}
    minutes = (time.process_time() - started) / 60
    assert index.n_features == 512
    assert sum(found.values()) / index.n_features <= 8000
    assert index.n_features / minutes >= 1000
    assert len(material.heads) > 400
    assert len(material.concepts) > 50
    scored = scores.of("detection")
    assert len(scored) > 350
    assert drill is not None
    for feature, stored in scored.items():
        judged = drill.of(feature)
        assert judged is not None
        assert balanced(judged.counts) == pytest.approx(stored.score.value, abs=1e-12)
