"""Judges that cheat: they look at what must not give the answer away, and must be at chance.

A scorer whose positives and negatives differ in anything but what is asked can be won without an
explanation. A ``Cheater`` sees one such thing and is even shown right answers to learn from; the
memoriser knows everything an explainer may have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechlab.features.explanations import Explanation
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.items import Items
from mechlab.features.text import Text

View = Callable[[Items], np.ndarray]
_BUCKETS = 16


def mark_places(items: Items) -> Float[np.ndarray, "item width"]:
    """Which places are marked."""
    marks = np.zeros((len(items), items.width), bool) if items.marks is None else items.marks
    seen: np.ndarray = marks.astype(np.float64)
    return seen


def mark_counts(items: Items) -> Float[np.ndarray, "item width_plus_1"]:
    """How many tokens are marked."""
    seen: np.ndarray = np.eye(items.width + 1)[mark_places(items).sum(1).astype(np.int64)]
    return seen


def lengths(items: Items) -> Float[np.ndarray, "item 1"]:
    """How long each window is."""
    return np.full((len(items), 1), float(items.width))


def places(items: Items) -> Float[np.ndarray, "item column"]:
    """Where in the order each item is asked."""
    at = np.arange(len(items))
    return np.column_stack([np.eye(_BUCKETS)[at * _BUCKETS // max(len(at), 1)], at % 2, at / max(len(at), 1)])


def documents(items: Items) -> Float[np.ndarray, "item column"]:
    """The number of each document: its size and its last digits."""
    return np.column_stack([items.document, np.eye(_BUCKETS)[items.document % _BUCKETS]]).astype(np.float64)


VIEWS: Mapping[str, View] = {
    "places of marks": mark_places,
    "number of marks": mark_counts,
    "length": lengths,
    "order": places,
    "document": documents,
}
"""What cheaters look at."""


@dataclass(frozen=True, eq=False)
class Cheater:
    """Answers from one view of the items alone, by a linear rule; ``learn`` makes one.

    Attributes:
        view: what it sees.
        weight, bias: yes where ``view · weight + bias > 0``.
    """

    view: View
    weight: Float[np.ndarray, "column"]
    bias: float

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        """1 or 0 per item."""
        yes: np.ndarray = self.view(items) @ self.weight + self.bias > 0
        return yes.astype(np.float64)


def learn(view: View, shown: Sequence[Items]) -> Cheater:
    """The cheater that has seen these items with their answers (diagonal discriminant analysis)."""
    seen = np.concatenate([view(items) for items in shown])
    label = np.concatenate([items.label for items in shown])
    yes, no = seen[label].mean(0), seen[~label].mean(0)
    weight = (yes - no) / (seen.var(0) + 1e-6)
    return Cheater(view, weight, -float((yes + no) @ weight) / 2)


@dataclass(frozen=True)
class Constant:
    """Says the same of everything.

    Attributes:
        answer: what it says.
    """

    answer: float

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        """The answer, for every item."""
        return np.full(len(items), self.answer)


class Memoriser:
    """Knows every token that an explainer may have seen, and whether the feature was active there.

    Says yes to windows with a token remembered as active, no to all that it does not know.

    Args:
        index: what the explainer saw.
    """

    def __init__(self, index: FeatureIndex) -> None:
        self._index = index

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        """1 or 0 per item."""
        row = self._index.entries(explanation.feature)[0]
        known = np.isin(_places(text, items.rows()), _places(self._index.text, row))
        asked = np.ones(known.shape, bool) if items.marks is None else items.marks
        # Any token of a window, but most of the marked ones.
        enough = np.zeros(len(items)) if items.marks is None else asked.sum(1) / 2
        yes: np.ndarray = (known & asked).sum(1) > enough
        return yes.astype(np.float64)


def _places(text: Text, rows: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """A number for the place of each row that is the same in any selection of the text."""
    place: np.ndarray = np.zeros(rows.shape, np.int64)
    for part in (text.document, text.context, text.position):
        # Wraps around; that two places share a number is as good as impossible.
        place = place * np.int64(6364136223846793005) + part[rows].astype(np.int64)
    return place
