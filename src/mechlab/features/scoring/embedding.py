"""Embedding scores: is a text near its explanation, or near other texts of the same class?

Cheap, as nothing is generated: one vector for each context, one for each explanation. Sources:
Paulo et al. (2025), *Automatically interpreting millions of features in large language models*
(arXiv 2410.13928, embedding scorer); Paulo & Belrose (2025), *Evaluating SAE interpretability
without explanations* (arXiv 2507.08473, example embeddings).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.scoring.embedders import Embed
from mechlab.features.scoring.items import Items
from mechlab.features.scoring.metrics import auroc
from mechlab.features.text import Text
from mechlab.scores import LEVEL, Score

INSTRUCTION = "Instruct: Retrieve sentences that could be related to the explanation.\nQuery: "
"""What delphi puts before the explanation; models that are not trained on instructions take ""."""


@dataclass(frozen=True)
class EmbeddingJudge:
    """A judge: the cosine between the vectors of the explanation and of each window.

    Graded, so it is scored by AUROC; chance 0.5. Marks are not seen.

    Attributes:
        embed: texts → vectors (``sentence_embedder``, ``character_embedder``, or your own).
        instruction: put before the explanation.
    """

    embed: Embed
    instruction: str = INSTRUCTION

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        """Cosine for each item, between -1 and 1; NaN where a text has no vector."""
        query = _vectors(self.embed, [self.instruction + explanation.text])
        cosine: np.ndarray = (_vectors(self.embed, window_strings(text, items)) @ query.T)[:, 0]
        return cosine


def window_strings(text: Text, items: Items) -> list[str]:
    """What each item says."""
    return [text.vocabulary.string(text.tokens[at : at + items.width]) for at in items.start.tolist()]


@dataclass(frozen=True)
class ExampleEmbedding:
    """How well examples of a feature stand apart, with no explanation at all.

    With q an example left out, E+ the other active windows and E- the inactive ones,
    delta(q) = mean cos(q, E+) - mean cos(q, E-).

    Attributes:
        delta_active, delta_inactive: mean delta of active and of inactive windows; a feature whose
            examples hang together has delta_active > 0 > delta_inactive. Chance 0.
        margin: share of pairs of an active and an inactive window in which the active one has the
            larger delta (AUROC). Chance 0.5.
    """

    delta_active: Score
    delta_inactive: Score
    margin: Score

    @property
    def separates(self) -> bool:
        """Both signs are right, intervals included."""
        return self.delta_active.low > 0 and self.delta_inactive.high < 0


def example_embedding(text: Text, items: Items, embed: Embed, *, seed: int = 0) -> ExampleEmbedding:
    """The example-embedding score of a feature from the windows of a detection test.

    Deltas share the windows that they are taken against, so that they are no independent draws:
    intervals are from the jackknife over windows of both classes, which come from documents of their
    own (Arvesen 1969, *Jackknifing U-statistics*). The null of the deltas has the classes dealt out anew.

    Raises MechlabError when a class has fewer than two windows.
    """
    label = items.label
    if min(label.sum(), (~label).sum()) < 2:
        raise MechlabError(
            "too few windows to compare",
            f"{int(label.sum())} active, {int((~label).sum())} inactive",
            "two of each are needed",
        )
    vectors = _vectors(embed, window_strings(text, items))
    cosine = (vectors @ vectors.T).astype(np.float64)
    dealt = np.random.default_rng(seed).permutation(label)
    own, control = _measured(cosine, label), _measured(cosine, dealt)
    active, inactive = (
        replace(each, null=replace(null, name=f"{each.name}, classes dealt anew"))
        for each, null in zip(own[:2], control[:2], strict=True)
    )
    return ExampleEmbedding(active, inactive, own[2])


def _measured(
    cosine: Float[np.ndarray, "item item"], label: Bool[np.ndarray, "item"]
) -> tuple[Score, Score, Score]:
    """Both mean deltas and the margin; intervals from leaving out every window in turn."""

    def values(kept: Bool[np.ndarray, "item"]) -> tuple[float, float, float]:
        here = label[kept]
        if min(here.sum(), (~here).sum()) < 2:
            return math.nan, math.nan, math.nan
        delta = _deltas(cosine[np.ix_(kept, kept)], here)
        return float(delta[here].mean()), float(delta[~here].mean()), auroc("", delta, here, 0).value

    n = len(label)
    point = values(np.ones(n, bool))
    without = np.array([values(np.arange(n) != item) for item in range(n)])
    variance = np.zeros(3)
    for members in (without[label], without[~label]):
        variance += (len(members) - 1) / len(members) * ((members - members.mean(0)) ** 2).sum(0)
    reach = (NormalDist().inv_cdf((1 + LEVEL) / 2) * np.sqrt(variance)).tolist()
    found = [
        Score(name, value, value - wide, value + wide, n, chance=0.0)
        for name, value, wide in zip(("delta+", "delta-"), point, reach, strict=False)
    ]
    # Of independent answers, so that it does not collapse where every pair is in order.
    least = auroc("margin", _deltas(cosine, label), label, n)
    low, high = (min(least.low, point[2] - reach[2]), max(least.high, point[2] + reach[2]))
    if math.isnan(reach[2]):
        low, high = 0.0, 1.0
    return found[0], found[1], replace(least, low=max(low, 0.0), high=min(high, 1.0))


def _deltas(
    cosine: Float[np.ndarray, "item item"], label: Bool[np.ndarray, "item"]
) -> Float[np.ndarray, "item"]:
    """delta of every item, itself left out of its own class."""
    others = cosine - np.diag(np.diag(cosine))
    to_active = others @ label / (label.sum() - label)
    to_inactive = others @ ~label / ((~label).sum() - ~label)
    delta: np.ndarray = to_active - to_inactive
    return delta


def _vectors(embed: Embed, texts: list[str]) -> Float[np.ndarray, "text d"]:
    """Vectors of length 1; NaN for a text that the embedder says nothing about."""
    found = embed(texts)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    unit: np.ndarray = np.divide(found, length, out=np.full_like(found, np.nan), where=length > 0)
    return unit
