"""The windows behind a detection score: which of them an explanation got right, and which not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from mechlab.features.contexts import Context
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.rules import Matcher
from mechlab.features.scoring.asking import draw
from mechlab.features.scoring.held import SAMPLES, hold
from mechlab.features.scoring.items import Items
from mechlab.features.scoring.rules import RuleJudge
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.features.windows import WIDTH

CELLS = ("tp", "fn", "fp", "tn")
# Of mistakes more are shown.
_SHOWN = {"tp": 2, "fn": 3, "fp": 3, "tn": 2}
_SAME = 1e-9


@dataclass(frozen=True)
class Window:
    """One item of a detection test.

    Attributes:
        yes: what the rule says; label: whether the feature is active in it.
        context: its tokens; the centre is the strongest one, of a negative the first on which the rule
            fires, else the middle.
    """

    yes: bool
    label: bool
    context: Context


@dataclass(frozen=True)
class Judged:
    """How one explanation did in its detection test.

    Attributes:
        explainer: who gave it.
        counts: of all items: true positives, false negatives, false positives, true negatives.
        windows: some items of each cell, in this order, as they were drawn.
    """

    explainer: str
    counts: Mapping[str, int]
    windows: tuple[Window, ...]


class DrillDown:
    """Draws the items of stored detection scores once more, and puts them to the rules again.

    Items follow from the seed, so they are those of the score. A feature whose stored score does not
    come out the same (a language model judged, other settings) has no drill-down rather than another's.
    """

    def __init__(
        self,
        index: FeatureIndex,
        explanations: Explanations,
        scores: Scorecard,
        *,
        samples: int = SAMPLES,
        width: int = WIDTH,
    ) -> None:
        """Prepare the text that was scored on.

        Args:
            index: that was scored; documents that explainers saw are left out.
            samples, width: as ``score_features`` was given them (``from_settings`` reads them).

        Raises MechlabError when no passage is as long as a window.
        """
        seen = np.isin(index.text.document, np.array(explanations.documents, np.int64))
        self.index = index.restrict(~seen) if seen.any() else index
        # Fewest 1: what was too few then has no stored score, so it is never asked for.
        self._held = hold(self.index, width=width, samples=samples, fewest=1, seed=scores.seed)
        self._judge = RuleJudge(Matcher(self.index.text))
        self._seed = scores.seed
        by_feature: dict[int, list[tuple[Explanation, float]]] = {}
        stored = {
            (each.feature, each.explainer): each.score.value for each in scores if each.scorer == "detection"
        }
        for explanation in explanations.items:
            value = stored.get((explanation.feature, explanation.explainer))
            if explanation.rule is not None and value is not None:
                by_feature.setdefault(explanation.feature, []).append((explanation, value))
        self._scored = by_feature

    @classmethod
    def from_settings(
        cls,
        index: FeatureIndex,
        explanations: Explanations,
        scores: Scorecard,
        settings: Mapping[str, Any],
    ) -> DrillDown | None:
        """The same with the settings that the manifest of the scores holds; None where rules did not judge.

        Raises MechlabError when no passage is as long as a window.
        """
        if settings.get("judge", "rules") != "rules" or settings.get("concepts"):
            return None
        samples, width = settings.get("samples", SAMPLES), settings.get("width", WIDTH)
        return cls(index, explanations, scores, samples=int(samples), width=int(width))

    def of(self, feature: int) -> Judged | None:
        """The items of the feature's first explanation whose score comes out as stored; None without."""
        for explanation, value in self._scored.get(feature, ()):
            asked, _ = draw(self._held, "detection", [explanation], self._seed)
            if not asked:
                continue
            items = asked[0].items
            yes = self._judge(explanation, self.index.text, items) > 0.5
            counts = confusion(yes, items.label)
            if abs(balanced(counts) - value) < _SAME:
                return self._judged(explanation, items, yes, counts)
        return None

    def _judged(
        self, explanation: Explanation, items: Items, yes: Bool[np.ndarray, "item"], counts: Mapping[str, int]
    ) -> Judged:
        assert explanation.rule is not None
        hits = self._judge.rows(explanation.rule)
        row, value = self.index.entries(explanation.feature)
        windows = []
        for cell in CELLS:
            which = np.flatnonzero((yes == (cell in ("tp", "fp"))) & (items.label == (cell in ("tp", "fn"))))
            for item in which[: _SHOWN[cell]]:
                start = int(items.start[item])
                stop = start + items.width
                active = _within(row, start, stop)
                fires = _within(hits, start, stop)
                if active.stop > active.start:
                    at = int(row[active][int(np.argmax(value[active]))])
                elif fires.stop > fires.start:
                    at = int(hits[fires.start])
                else:
                    at = start + items.width // 2
                document = int(items.document[item])
                context = Context(start, stop, at - start, at, document)
                windows.append(Window(bool(yes[item]), bool(items.label[item]), context))
        return Judged(explanation.explainer, counts, tuple(windows))


def confusion(yes: Bool[np.ndarray, "item"], label: Bool[np.ndarray, "item"]) -> dict[str, int]:
    """Items in each of ``CELLS``."""
    cells = (yes & label, ~yes & label, yes & ~label, ~yes & ~label)
    return {cell: int(which.sum()) for cell, which in zip(CELLS, cells, strict=True)}


def balanced(counts: Mapping[str, int]) -> float:
    """Balanced accuracy; 0 / 0 counts as 0."""
    positive, negative = counts["tp"] + counts["fn"], counts["tn"] + counts["fp"]
    return (counts["tp"] / max(positive, 1) + counts["tn"] / max(negative, 1)) / 2


def _within(rows: Int[np.ndarray, "row"], start: int, stop: int) -> slice:
    """Which of ascending rows lie in a window."""
    first, last = np.searchsorted(rows, np.array([start, stop], rows.dtype))
    return slice(int(first), int(last))
