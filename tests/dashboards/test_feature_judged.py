"""The items behind a detection score: drawn and judged once more, they add up to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features.scored_features import NOISE, features_of, halves, random_text, true_rules
from mechlab.dashboards.feature_blocks import feature_blocks
from mechlab.dashboards.feature_judged import DrillDown
from mechlab.dashboards.feature_material import gather_material
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.rules import Clause, Matcher, Rule, Token
from mechlab.features.scoring.metrics import balanced_accuracy
from mechlab.features.scoring.score import score_features


def wrong_rules(index, documents=()) -> Explanations:
    """True rules, of a wrong word for some features: there are mistakes of both kinds to see."""
    items = []
    for each in true_rules(index, documents).items:
        items.append(each)
        if each.feature in (0, 1, NOISE):
            rule = Rule((Clause((Token((" w30", " w3", " w5")),), 2.0),))
            items.append(Explanation(each.feature, "person", rule.sentence(), rule))
    return Explanations(tuple(items), documents, index.n_features)


@pytest.mark.parametrize(("seed", "width", "samples"), [(0, 32, 50), (1, 16, 50), (7, 24, 12)])
def test_counts_reproduce_the_stored_score(seed: int, width: int, samples: int) -> None:
    index, held = halves(seed)
    said = wrong_rules(index, tuple(np.unique(index.text.document).tolist()))
    card = score_features(held, said, ["fuzzing", "detection"], seed=seed, width=width, samples=samples)
    settings = {"judge": "rules", "samples": samples, "width": width}
    # The whole index: what explainers saw is left out again.
    drill = DrillDown.from_settings(features_of(random_text(seed=seed), seed), said, card, settings)
    assert drill is not None
    kinds = set()
    for feature, stored in card.of("detection", "rules").items():
        judged = drill.of(feature)
        assert judged is not None
        assert judged.explainer == "rules"
        counts = judged.counts
        assert counts["tp"] + counts["fn"] == stored.n_positive
        assert counts["fp"] + counts["tn"] == stored.n_negative
        yes = np.repeat([True, False, True, False], [counts[cell] for cell in ("tp", "fn", "fp", "tn")])
        label = np.repeat([True, True, False, False], [counts[cell] for cell in ("tp", "fn", "fp", "tn")])
        again = balanced_accuracy("detection", yes, label, stored.score.n)
        assert (again.value, again.low, again.high) == pytest.approx(
            (stored.score.value, stored.score.low, stored.score.high), abs=1e-12
        )
        kinds |= {(window.yes, window.label) for window in judged.windows}
    assert len(card.of("detection", "rules")) >= 7
    assert kinds == {(True, True), (False, True), (True, False), (False, False)}


def test_windows_are_what_they_are_said_to_be() -> None:
    index, held = halves(3)
    said = wrong_rules(index)
    drill = DrillDown(held, said, score_features(held, said, ["detection"]))
    matcher, seen = Matcher(held.text), 0
    for feature in range(index.n_features):
        judged = drill.of(feature)
        if judged is None:
            continue
        rule = next(each.rule for each in said.of(feature) if each.explainer == judged.explainer)
        fires, active = matcher.predict(rule) > 0, held.dense(feature)
        cells = [("tp", True, True), ("fn", False, True), ("fp", True, False), ("tn", False, False)]
        for cell, yes, label in cells:
            here = [window for window in judged.windows if (window.yes, window.label) == (yes, label)]
            assert len(here) <= judged.counts[cell]
            assert bool(here) == bool(judged.counts[cell])
            for window in here:
                rows = slice(window.context.start, window.context.stop)
                assert bool(fires[rows].any()) == yes
                assert bool((active[rows] > 0).any()) == label
                assert (held.text.document[rows] == window.context.document).all()
                if label:
                    assert active[window.context.row] == active[rows].max()
                elif yes:
                    assert fires[window.context.row]
                seen += 1
    assert seen > 20


def test_a_score_that_does_not_come_out_the_same_has_no_items() -> None:
    index, held = halves(0)
    said = wrong_rules(index)
    card = score_features(held, said, ["detection"])
    other = DrillDown(held, said, card, width=8)
    lost = [feature for feature in card.of("detection") if other.of(feature) is None]
    assert NOISE in lost
    moved = replace(card, scored=tuple(replace(e, score=replace(e.score, value=0.123)) for e in card.scored))
    assert DrillDown(held, said, moved).of(0) is None
    assert DrillDown.from_settings(held, said, card, {"judge": "llm:small"}) is None
    assert DrillDown.from_settings(held, said, card, {"concepts": {"x": [" w1"]}}) is None
    wordless = Explanations((Explanation(0, "llm:a:b", "words"),), (), index.n_features)
    assert DrillDown(held, wordless, card).of(0) is None


def test_the_page_has_counts_and_windows() -> None:
    index, held = halves(4)
    said = wrong_rules(index)
    card = score_features(held, said, ["detection"])
    drill = DrillDown(held, said, card)
    block = dict(feature_blocks(gather_material(index, explanations=said, scores=card, drill=drill)))[
        "features-0"
    ]
    for feature, stored in card.of("detection", "rules").items():
        record = block["features"][str(feature)]
        counts = record["confusion"]
        assert counts["by"] == "rules"
        share = counts["tp"] / (counts["tp"] + counts["fn"]) + counts["tn"] / (counts["tn"] + counts["fp"])
        assert share / 2 == pytest.approx(stored.score.value, abs=1e-12)
        for row in record["judged"]:
            assert len(row["t"]) == 32
            assert bool(row["a"]) == row["label"]
            assert "at" not in row  # it is no place in the text of the page
