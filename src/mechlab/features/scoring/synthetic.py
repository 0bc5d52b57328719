"""Synthetic-text scores: does the feature respond to new texts that the explanation describes?

    score = ( mean f(Text+) - mean f(Text-) ) / σ

Text+ is written to match the explanation, Text- not to; σ is the standard deviation of f over the
corpus. The subject itself runs on the new texts, so that an explanation which only describes how
the corpus happens to be written is found out.

Source: Singh et al. (2023), *Explaining black box text modules in natural language with language
models* (SASC, arXiv 2305.09863), whose texts are written by a language model; for rules they can be
made without one (``rule_texts``). Null: texts made for another feature's explanation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import FeatureIndex
from mechlab.features.rules import Rule
from mechlab.features.scoring.metrics import balanced_accuracy, lenders, student, with_null
from mechlab.features.scoring.rule_texts import RuleTexts, rule_texts
from mechlab.features.scoring.scorecard import Scorecard, Scored, Unscored
from mechlab.features.text import Text
from mechlab.models.subject import Subject
from mechlab.sae.codes import scatter
from mechlab.sae.dictionary import Dictionary
from mechlab.scores import Score

TEXTS = 20

Activate = Callable[[Text, Sequence[int]], Float[np.ndarray, "row feature"]]
"""(text, features) → their activation on every row of a text that nobody has seen."""


def synthetic_score(
    positive: Float[np.ndarray, "positive"],
    negative: Float[np.ndarray, "negative"],
    sigma: float,
    *,
    null: Score | None = None,
) -> Score:
    """The score from what the feature gave on each text, in standard deviations over the corpus.

    The interval is over texts (Welch 1947; a bootstrap of ten texts a side is too narrow). Texts
    on which the feature gave NaN are left out. MechlabError unless ``sigma`` is positive.
    """
    if not sigma > 0:
        raise MechlabError("feature does not vary over the corpus", sigma, "leave it out, or use more text")
    on, off = (each[np.isfinite(each)].astype(np.float64) for each in (positive, negative))
    value = float(on.mean() - off.mean()) / sigma if len(on) and len(off) else math.nan
    reach = math.nan
    if min(len(on), len(off)) > 1:
        parts = [float(each.var(ddof=1)) / len(each) / sigma**2 for each in (on, off)]
        freedom = sum(parts) ** 2 / max(
            sum(v * v / (len(x) - 1) for v, x in zip(parts, (on, off), strict=True)), 1e-300
        )
        reach = student(max(freedom, 1.0)) * math.sqrt(sum(parts))
    return Score("synthetic", value, value - reach, value + reach, len(on) + len(off), null, 0.0)


def score_synthetic_rules(
    index: FeatureIndex,
    explanations: Explanations,
    activate: Activate,
    *,
    texts: int = TEXTS,
    width: int = 24,
    concepts: Mapping[str, Collection[str]] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scorecard:
    """Synthetic-text scores of rules, on texts of their own making.

    Two scorers, both at the tokens where the rule fires and where it is silent: "synthetic" is the
    difference in σ, "synthetic agreement" the balanced accuracy of "active" against "the rule fires".

    Args:
        index: gives the fragments that texts are made from, and each feature's σ over its rows.
        explanations: with rules; others have no score.
        activate: runs the features (``dictionary_activations``).
        texts: on either side, for each explanation.
        width: tokens of a text.
        progress: told (done, all) after each.
    """
    made: list[tuple[Explanation, RuleTexts, float]] = []
    unscored: list[Unscored] = []
    for explanation in explanations.items:
        generator = np.random.default_rng([seed, explanation.feature])
        try:
            sigma = _sigma(index, explanation.feature)
            texts_made = rule_texts(
                _rule(explanation), index.text, texts, generator, width=width, concepts=concepts
            )
            made.append((explanation, texts_made, sigma))
        except MechlabError as error:
            why = Unscored(explanation.feature, explanation.explainer, "synthetic", str(error))
            unscored.append(why)
    # Whose feature is run on whose texts, as a control.
    others = lenders([each.feature for each, _, _ in made], np.random.default_rng(seed))
    borrowers: dict[int, list[int]] = {}
    for place, other in enumerate(others or ()):
        borrowers.setdefault(other, []).append(place)
    measured: dict[tuple[int, bool], tuple[Score, Score]] = {}
    for at, (_, given, _) in enumerate(made):
        asked = [(at, False), *((place, True) for place in borrowers.get(at, ()))]
        features = [made[place][0].feature for place, _ in asked]
        on = activate(given.positive, features)[given.fires]
        off = activate(given.negative, features)[given.silent]
        for column, (place, control) in enumerate(asked):
            scale = made[place][2]
            measured[place, control] = _both(on[:, column], off[:, column], scale)
        if progress is not None:
            progress(at + 1, len(made))
    scored = []
    for at, (explanation, _, _) in enumerate(made):
        rate = float(index.density[explanation.feature])
        nulls = measured.get((at, True), (None, None))
        for one, null in zip(measured[at, False], nulls, strict=True):
            who = (explanation.feature, explanation.explainer, one.name)
            scored.append(Scored(*who, with_null(one, null), rate, 0, texts, texts))
    return Scorecard(tuple(scored), tuple(unscored), seed)


def dictionary_activations(subject: Subject, dictionary: Dictionary) -> Activate:
    """Latents of a dictionary on new text: the subject runs on every passage, BOS before it.

    MechlabError when the dictionary does not fit the subject.
    """
    dictionary.check(subject)

    @torch.no_grad()
    def activate(text: Text, features: Sequence[int]) -> Float[np.ndarray, "row feature"]:
        tokens, mask = padded(subject, text)
        real = mask.clone()
        real[:, 0] = True
        values = read_sites(subject, tokens, list(dictionary.inputs), real)
        rows = torch.cat([values[site][mask] for site in dictionary.inputs], dim=1)
        codes = scatter(dictionary.sae.encode(rows), dictionary.sae.d_sae)
        return codes[:, list(features)].double().cpu().numpy()

    return activate


def padded(subject: Subject, text: Text) -> tuple[Int[Tensor, "passage pos"], Bool[Tensor, "passage pos"]]:
    """Passages as a batch: token ids ``[passage, pos]``, BOS first, and True on the text's own tokens.

    Rows of the batch that the mask selects are the text's rows in order.
    """
    lengths = np.diff(text.bounds)
    ahead = 0 if subject.bos is None else 1
    tokens = torch.zeros(len(lengths), int(lengths.max(initial=0)) + ahead, dtype=torch.long)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, (start, length) in enumerate(zip(text.bounds[:-1].tolist(), lengths.tolist(), strict=True)):
        mask[row, ahead : ahead + length] = True
        tokens[row, ahead : ahead + length] = torch.from_numpy(
            text.tokens[start : start + length].astype(np.int64)
        )
    if subject.bos is not None:
        tokens[:, 0] = subject.bos
    return tokens, mask


def _both(
    on: Float[np.ndarray, "positive"], off: Float[np.ndarray, "negative"], sigma: float
) -> tuple[Score, Score]:
    label = np.arange(len(on) + len(off)) < len(on)
    active = np.concatenate([on, off]) > 0
    return (
        synthetic_score(on, off, sigma),
        balanced_accuracy("synthetic agreement", active, label, len(label)),
    )


def _rule(explanation: Explanation) -> Rule:
    if explanation.rule is None:
        raise MechlabError(
            "explanation is no rule", repr(explanation.text), "have a model write texts for it"
        )
    return explanation.rule


def _sigma(index: FeatureIndex, feature: int) -> float:
    """Standard deviation of the activation over all rows. MechlabError for a dead feature."""
    _, value = index.entries(feature)
    if not len(value):
        raise MechlabError("feature is dead on this text", feature, "use more text")
    n, wide = len(index.text), value.astype(np.float64)
    return float(np.sqrt(max((wide**2).sum() / n - (wide.sum() / n) ** 2, 0.0)))
