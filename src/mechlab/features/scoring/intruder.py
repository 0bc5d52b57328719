"""The intruder test: which of n windows does not belong? No explanation is needed.

Every group has windows of one rank-quantile of the feature and one window without it, which
borrows the marks of an active one. The control has groups of the feature's windows only, one of
which is called the intruder: it cannot be told except by chance, 1/n.

Source: Paulo & Belrose (2025), *Evaluating SAE interpretability without explanations* (arXiv
2507.08473).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from mechlab.features.explanations import Explanation
from mechlab.features.scoring.fuzzing import SHARE, activations
from mechlab.features.scoring.held import Held
from mechlab.features.scoring.items import INTRUDER, Items
from mechlab.features.scoring.metrics import share, with_null
from mechlab.features.text import Text
from mechlab.scores import Score

GROUP = 5
"""Windows in each group."""


def intruder_items(held: Held, feature: int, generator: np.random.Generator) -> Items | str:
    """Groups of windows with one intruder, or why there are too few.

    ``group`` is the number of each group; the groups of the control have the negative numbers, -1 down.
    """
    active, width = held.active(feature), held.windows.width
    most = held.samples * GROUP
    windows, quantile = held.spread(active, most, generator)
    order = np.argsort(quantile, kind="stable")  # neighbours in rank stand together
    sets = len(windows) // GROUP
    groups = windows[order][: sets * GROUP].reshape(sets, GROUP)
    strangers = held.silent(active, sets, generator)
    sets = min(sets, len(strangers))
    if sets < held.fewest:
        return f"has windows for only {sets} groups of {GROUP} in held-out documents"
    groups, strangers = groups[:sets], strangers[:sets]
    values = activations(held.index, feature, held.windows.start[groups.ravel()], width)
    marks = (values >= SHARE * values.max(1, keepdims=True)).reshape(sets, GROUP, width)
    # The last of each group gives way to the stranger, which takes over its marks.
    tested = np.column_stack([groups[:, :-1], strangers])
    window = np.concatenate([tested.ravel(), groups.ravel()])
    number = np.arange(sets)
    items = Items(
        start=held.windows.start[window],
        width=width,
        label=np.tile(np.arange(GROUP) == GROUP - 1, 2 * sets),
        marks=np.concatenate([marks, marks]).reshape(-1, width),
        document=held.windows.document[window],
        group=np.repeat(np.concatenate([number, -1 - number]), GROUP),
        asks=INTRUDER,
    )
    return items.take(generator.permutation(len(window)))


def picked(name: str, items: Items, answer: Float[np.ndarray, "item"]) -> list[Score]:
    """Share of the groups in which the intruder has the highest answer, with its control.

    Windows that tie for the highest share the pick. A group with a missing answer does not count.
    """
    real = items.group >= 0
    null = _picked(f"{name}, no intruder", items, answer, ~real)
    return [with_null(_picked(name, items, answer, real), null)]


def _picked(
    name: str, items: Items, answer: Float[np.ndarray, "item"], which: Bool[np.ndarray, "item"]
) -> Score:
    right, groups = 0.0, 0
    for number in np.unique(items.group[which]).tolist():
        mine = items.group == number
        given, label = answer[mine], items.label[mine]
        if len(given) == GROUP and np.isfinite(given).all():
            top = given == given.max()
            right += float((top & label).sum() / top.sum())
            groups += 1
    return share(name, right, groups, chance=1 / GROUP)


class SimilarityJudge:
    """Picks the window whose tokens are least like those of its group; looks at no explanation.

    A window is a bag of tokens, each weighted by 1 / (1 + distance to the nearest marked token) and
    by its rarity in the text; likeness is the cosine to the sum of the other windows.
    """

    def __init__(self) -> None:
        self._rarity: tuple[Text, Float[np.ndarray, "token"]] | None = None

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        """Minus the likeness of every item to the others of its group."""
        order = np.argsort(items.group, kind="stable")
        items = items.take(order)
        tokens = text.tokens[items.rows()]
        known, column = np.unique(tokens, return_inverse=True)
        weight = self._rarities(text)[tokens] * _nearness(items)
        place = np.arange(len(items))[:, None] * len(known) + column.reshape(tokens.shape)
        size = len(items) * len(known)
        counts: np.ndarray = np.bincount(place.ravel(), weight.ravel(), size).astype(np.float64)
        bags = counts.reshape(len(items), len(known))
        bags /= _norm(bags)[:, None]
        _, first, size_of = np.unique(items.group, return_index=True, return_counts=True)
        # Of unit vectors b with sum s: cos(b, s - b) = (b·s - 1) / |s - b|, and |s - b|² = |s|² - 2 b·s + 1.
        sums = np.add.reduceat(bags, first)
        along = np.einsum("ij,ij->i", bags, np.repeat(sums, size_of, axis=0))
        rest = np.repeat((sums**2).sum(1), size_of) - 2 * along + 1
        unlike = np.empty(len(items))
        unlike[order] = (1 - along) / np.sqrt(np.maximum(rest, 1e-12))
        return unlike

    def _rarities(self, text: Text) -> Float[np.ndarray, "token"]:
        if self._rarity is None or self._rarity[0] is not text:
            count = np.bincount(text.tokens, minlength=len(text.vocabulary))
            self._rarity = text, np.log(len(text) / np.maximum(count, 1))
        return self._rarity[1]


def _nearness(items: Items) -> Float[np.ndarray, "item width"]:
    place = np.arange(items.width)
    if items.marks is None:
        return np.ones((len(items), items.width))
    gap = np.abs(place[:, None] - place)[None] + np.where(items.marks, 0, items.width)[:, None, :]
    nearness: np.ndarray = 1 / (1.0 + gap.min(2))
    return nearness


def _norm(bags: Float[np.ndarray, "item token"]) -> Float[np.ndarray, "item"]:
    norm: np.ndarray = np.maximum(np.sqrt(np.einsum("ij,ij->i", bags, bags)), 1e-12)
    return norm
