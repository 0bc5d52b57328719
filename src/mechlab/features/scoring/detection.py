"""Detection: can an explanation tell windows with the feature from windows without it?

The positives are spread over the rank-quantiles of the feature's active windows; no two windows of
a class are of one document. Hard detection takes near misses for negatives: windows without the
feature in which neighbours of it are active, so that an explanation that names only what they have
in common falls to chance. The same answers also say what the explanation is worth on the strongest
windows as against the rest, and how precise it would be at the true base rate.

Source: Paulo et al. (2024), *Automatically interpreting millions of features in large language
models* (arXiv 2410.13928).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.features.scoring.held import QUANTILES, Active, Held
from mechlab.features.scoring.items import NEAR_MISS, RANDOM, Items
from mechlab.features.scoring.metrics import auroc, balanced_accuracy, difference, precision_at, share
from mechlab.scores import Score


def detection_items(held: Held, feature: int, generator: np.random.Generator) -> Items | str:
    """Windows with and without a feature, or why there are too few."""
    active = held.active(feature)
    negatives = held.silent(active, held.samples, generator)
    return _items(held, active, negatives, RANDOM, "is not active in", generator)


def hard_items(held: Held, feature: int, generator: np.random.Generator) -> Items | str:
    """Windows with a feature and windows that are near misses, or why there are too few."""
    negatives = held.near_misses(feature, held.samples, generator)
    why = "has a neighbour active without it in"
    return _items(held, held.active(feature), negatives, NEAR_MISS, why, generator)


def _items(
    held: Held,
    active: Active,
    negatives: Int[np.ndarray, "negative"],
    kind: int,
    absence: str,
    generator: np.random.Generator,
) -> Items | str:
    positives, quantile = held.spread(active, held.samples, generator)
    if len(positives) < held.fewest:
        return f"is active in windows of only {len(positives)} held-out documents"
    if len(negatives) < held.fewest:
        return f"{absence} windows of only {len(negatives)} held-out documents"
    window = np.concatenate([positives, negatives])
    items = Items(
        start=held.windows.start[window],
        width=held.windows.width,
        label=np.arange(len(window)) < len(positives),
        marks=None,
        document=held.windows.document[window],
        group=np.concatenate([quantile, np.full(len(negatives), kind)]),
    )
    return items.take(generator.permutation(len(window)))


def accuracy(name: str, items: Items, answer: Float[np.ndarray, "item"], graded: bool) -> list[Score]:
    """Balanced accuracy of yes and no, AUROC of degrees. Answers are numbers, none is missing."""
    n = len(np.unique(items.document))
    if graded:
        return [auroc(name, answer, items.label, n)]
    return [balanced_accuracy(name, answer > 0.5, items.label, n)]


def by_quantile(items: Items, answer: Float[np.ndarray, "item"], graded: bool) -> list[Score]:
    """Detection of every rank-quantile against all negatives, and of the top one less the others.

    "top minus rest" is half the difference in the share found, which is that of the balanced
    accuracies, as the negatives are the same; of degrees, those above the median are called found.
    """
    found = []
    for quantile in range(QUANTILES):
        chosen = ~items.label | (items.group == quantile)
        name = f"detection of quantile {quantile + 1}"
        if (items.label & chosen).any():
            found += accuracy(name, items.take(chosen), answer[chosen], graded)
    yes = _yes(answer, graded)
    top, rest = (_share("", yes, items.label & which) for which in (items.group == 0, items.group > 0))
    if top.n and rest.n:
        full = difference("top minus rest", top, rest)
        found.append(Score(full.name, full.value / 2, full.low / 2, full.high / 2, full.n, chance=0.0))
    return found


def precision(items: Items, answer: Float[np.ndarray, "item"], graded: bool, base_rate: float) -> list[Score]:
    """Share of the windows called active that are, were they drawn as they come in the corpus."""
    yes = _yes(answer, graded)
    hits, false = _share("hits", yes, items.label), _share("false alarms", yes, ~items.label)
    return [precision_at("precision", hits, false, base_rate, len(np.unique(items.document)))]


def _yes(answer: Float[np.ndarray, "item"], graded: bool) -> Bool[np.ndarray, "item"]:
    above: np.ndarray = answer > (np.median(answer) if graded else 0.5)
    return above


def _share(name: str, yes: Bool[np.ndarray, "item"], of: Bool[np.ndarray, "item"]) -> Score:
    return share(name, int((yes & of).sum()), int(of.sum()))
