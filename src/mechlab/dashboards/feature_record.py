"""One feature as JSON: everything its page shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from mechlab.dashboards.block_values import short
from mechlab.dashboards.feature_contexts import Chosen
from mechlab.dashboards.feature_judged import Judged
from mechlab.dashboards.feature_material import FeatureMaterial
from mechlab.features.contexts import Context
from mechlab.features.explanations import PERSON, Explanation
from mechlab.features.index import FeatureIndex
from mechlab.features.notes import person_explanations
from mechlab.features.scoring.scorecard import Scored
from mechlab.scores import Score

NEVER = "never fired on the text that was explained"


class Strings:
    """The strings of one block: each is written once, and the most frequent have the shortest numbers."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._count: Counter[int] = Counter()
        self._lists: list[list[int]] = []
        self._pairs: list[list[Any]] = []

    def numbers(self, texts: Iterable[str]) -> list[int]:
        """A list of numbers for texts; the numbers are final only after ``finish``."""
        known = self._number
        found = [known.setdefault(text, len(known)) for text in texts]
        self._count.update(found)
        self._lists.append(found)
        return found

    def pairs(self, texts: Iterable[str], values: Iterable[float | None]) -> list[list[Any]]:
        """[number, value] for every text, in the same way."""
        found = [[number, value] for number, value in zip(self.numbers(texts), values, strict=True)]
        self._pairs += found
        return found

    def finish(self) -> list[str]:
        """The table. Lists that were handed out now hold the numbers in it."""
        texts = list(self._number)
        order = sorted(range(len(texts)), key=lambda number: (-self._count[number], number))
        place = {number: at for at, number in enumerate(order)}
        for each in self._lists:
            each[:] = [place[number] for number in each]
        for pair in self._pairs:
            pair[0] = place[pair[0]]
        return [texts[number] for number in order]


class Recorder:
    """Turns what is known of features into records; ``Strings`` belong to one block."""

    def __init__(self, material: FeatureMaterial) -> None:
        """Sort what is said by feature."""
        self._material = material
        self._said: dict[int, list[Explanation]] = {}
        for each in material.explanations.items:
            self._said.setdefault(each.feature, []).append(each)
        self._scored: dict[tuple[int, str], list[Scored]] = {}
        for one in material.scores:
            self._scored.setdefault((one.feature, one.explainer), []).append(one)
        self._why: dict[tuple[int, str], list[str]] = {}
        for left in material.scores.unscored:
            reason = f"{left.scorer}: {left.reason}" if left.scorer else left.reason
            self._why.setdefault((left.feature, left.explainer), []).append(reason)
        for label in person_explanations(material.notes):
            here = self._said.setdefault(label.feature, [])
            if all(each.explainer != PERSON or each.text != label.text for each in here):
                here.append(label)
        document = material.index.text.document
        numbers, first = np.unique(document, return_index=True)
        self._first_row = dict(zip(numbers.tolist(), first.tolist(), strict=True))

    def first(self, feature: int) -> Explanation | None:
        """What is said of a feature first."""
        return next(iter(self._said.get(feature, ())), None)

    def scores(self, feature: int, explainer: str) -> list[Scored]:
        """Scores of one explanation, and those that need none."""
        own = self._scored.get((feature, explainer), [])
        return own if not explainer else [*own, *self._scored.get((feature, ""), [])]

    def record(self, feature: int, chosen: Chosen, judged: Judged | None, strings: Strings) -> dict[str, Any]:
        """The record of one feature; what there is nothing of is left out."""
        material, statistics = self._material, self._material.statistics
        found: dict[str, Any] = {"said": self._all_said(feature)}
        if not found["said"]:
            found["why"] = self._silence(feature)
        if chosen.top:
            found["hist"] = {
                "counts": statistics.histogram[feature].tolist(),
                "max": short(float(statistics.maximum[feature])),
            }
            found["quantiles"] = [short(each) for each in statistics.quantile[feature].tolist()]
            found["contexts"] = self._contexts(feature, chosen, strings)
        if judged is not None:
            assert material.drill is not None
            found["confusion"] = {"by": judged.explainer, **judged.counts}
            found["judged"] = [
                {
                    "yes": window.yes,
                    "label": window.label,
                    **context_record(material.drill.index, feature, window.context, strings),
                }
                for window in judged.windows
            ]
        if material.logits is not None:
            effects, words = material.logits, material.index.text.vocabulary
            sides = {
                "up": (effects.promoted[feature], effects.promoted_value[feature]),
                "down": (effects.suppressed[feature], effects.suppressed_value[feature]),
            }
            found["logits"] = {
                side: strings.pairs(
                    (words[token] or f"<{token}>" for token in ids.tolist()),
                    (short(value) for value in values.tolist()),
                )
                for side, (ids, values) in sides.items()
            }
        near = self._near(feature)
        if near:
            found["near"] = near
        if material.steering is not None and feature in material.steering.of:
            found["steer"] = [
                {
                    "strength": sample.strength,
                    "kl": short(sample.kl),
                    "rows": [
                        {"prompt": prompt, "text": text}
                        for prompt, text in zip(material.steering.prompts, sample.texts, strict=True)
                    ],
                }
                for sample in material.steering.of[feature]
            ]
        if feature in material.concepts:
            found["concepts"] = [
                {"name": each.name, "f1": short(each.f1), "precision": short(each.precision),
                 "recall": short(each.recall)}
                for each in material.concepts[feature]
            ]  # fmt: skip
        notes = [
            {"text": note.text or "", "author": note.author, "label": note.label or ""}
            for note in material.notes.of(feature)
        ]
        if notes:
            found["notes"] = notes
        return found

    def _all_said(self, feature: int) -> list[dict[str, Any]]:
        found = []
        for place, each in enumerate(self._said.get(feature, ())):
            one: dict[str, Any] = {"text": each.text, "by": each.explainer}
            if "author" in each.about:
                one["author"] = str(each.about["author"])
            scores = self._scored.get((feature, each.explainer), [])
            if place == 0:  # what is measured of the feature alone stands with what is said first
                scores = [*scores, *self._scored.get((feature, ""), [])]
            one["scores"] = [score_record(score) for score in scores]
            why = [*self._why.get((feature, each.explainer), ()), *self._why.get((feature, ""), ())]
            if why or not scores:
                one["why"] = "; ".join(why) or "nobody has scored it"
            found.append(one)
        return found

    def _silence(self, feature: int) -> str:
        """Why nothing is said of a feature."""
        if not self._material.index.active[feature]:
            return NEVER
        return self._material.explanations.failed.get(feature, "nobody has explained it")

    def _contexts(self, feature: int, chosen: Chosen, strings: Strings) -> dict[str, Any]:
        index = self._material.index

        def shown(context: Context) -> dict[str, Any]:
            found = context_record(index, feature, context, strings)
            # Where its centre stands in the document, in tokens: what is shown may join several of them.
            return {**found, "at": context.start + context.centre - self._first_row[context.document]}

        groups = {
            "top": [shown(context) for context in chosen.top],
            "quantiles": [
                {
                    "low": short(group.low),
                    "high": short(group.high),
                    "share": short(group.share),
                    "rows": [shown(context) for context in group.contexts],
                }
                for group in chosen.quantiles
            ],
            "near": [{**shown(context), "of": other} for other, context in chosen.near],
            "random": [shown(context) for context in chosen.random],
        }
        return {name: group for name, group in groups.items() if group}

    def _near(self, feature: int) -> dict[str, Any]:
        material, found = self._material, {}
        if material.similar is not None:
            found["cosine"] = _pairs(material.similar.feature[feature], material.similar.value[feature])
        if material.together is not None:
            found["together"] = _pairs(material.together.feature[feature], material.together.value[feature])
        if feature in material.heads:
            found["heads"] = [[name, short(value)] for name, value in material.heads[feature]]
        return {name: pairs for name, pairs in found.items() if pairs}


def context_record(index: FeatureIndex, feature: int, context: Context, strings: Strings) -> dict[str, Any]:
    """A context: document, place of its centre, numbers of its strings, and where the feature is active."""
    ids = context.tokens(index).tolist()
    row, value = index.entries(feature)
    first, last = np.searchsorted(row, np.array([context.start, context.stop], row.dtype))
    active = zip((row[first:last] - context.start).tolist(), value[first:last].tolist(), strict=True)
    vocabulary = index.text.vocabulary
    if vocabulary.partial.keys().isdisjoint(ids):  # nothing to join, as nearly always
        texts = [vocabulary.texts[token] or f"<{token}>" for token in ids]
        centre, places = context.centre, dict(active)
    else:
        pieces = vocabulary.pieces(context.tokens(index))
        texts = [piece.text or f"<{ids[piece.start]}>" for piece in pieces]
        of_token = [at for at, piece in enumerate(pieces) for _ in range(piece.start, piece.stop)]
        centre, places = of_token[context.centre], {}
        for at, strength in active:
            places[of_token[at]] = max(strength, places.get(of_token[at], 0.0))
    return {
        "d": context.document,
        "c": centre,
        "t": strings.numbers(texts),
        "a": [[at, short(strength, 3)] for at, strength in places.items()],
    }


def score_record(scored: Scored) -> dict[str, Any]:
    """A score with its interval, its control and what it was measured on."""
    score = scored.score
    return {
        "name": scored.scorer,
        **_interval(score),
        "n": score.n,
        "chance": short(score.chance),
        "null": None if score.null is None else _interval(score.null),
        "base_rate": short(scored.base_rate),
        "positive": scored.n_positive,
        "negative": scored.n_negative,
        "failed": scored.failed,
    }


def _interval(score: Score) -> dict[str, Any]:
    return {"value": short(score.value), "low": short(score.low), "high": short(score.high)}


def _pairs(features: Any, values: Any) -> list[list[Any]]:
    pairs = zip(features.tolist(), values.tolist(), strict=True)
    return [[other, short(value, 3)] for other, value in pairs if other >= 0]
