"""What an export says of features, collected from explanations, scores, notes, a dictionary and the index."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.features.explanations import PERSON, Explanation
from mechlab.features.formats.folder import chosen
from mechlab.features.formats.material import Material, Rated, Said
from mechlab.features.index import FeatureIndex
from mechlab.features.logits import dictionary_directions, logit_effects
from mechlab.features.neighbours import alike, co_occurring
from mechlab.features.notes import Notes
from mechlab.features.scoring.scorecard import Scored
from mechlab.models.subject import Subject
from mechlab.sae.dictionary import Dictionary

_LOGITS, _NEIGHBOURS = 20, 10


def collect(
    index: FeatureIndex,
    *,
    features: Sequence[int] | None = None,
    explanations: Iterable[Explanation] = (),
    scores: Iterable[Scored] = (),
    notes: Notes | None = None,
    judge: str = "",
    dictionary: Dictionary | None = None,
    subject: Subject | None = None,
    neighbours: bool = False,
) -> Material:
    """Material for the writers of this package.

    Args:
        features: those that logits and vectors are wanted of; all by default.
        scores: of these explanations; what needs no explanation is left out.
        notes: a person's; a label and every note become explanations of theirs.
        judge: who gave the scores.
        dictionary, subject: for logit effects, similar features and vectors; both or none.
        neighbours: whether to look for features that are active on the same tokens.

    Raises MechlabError where the dictionary does not write to the residual stream.
    """
    said = _said(explanations, scores, notes, judge)
    wanted = chosen(index, features)
    together = _together(index, wanted) if neighbours else {}
    correlated = {feature: _correlated(index, feature, near) for feature, near in together.items()}
    if dictionary is None or subject is None:
        return Material(together=together, correlated=correlated, said=said)
    signs = bool(index.about.get("signs"))
    directions = dictionary_directions(subject, dictionary, signs=signs)
    top = min(_LOGITS, len(subject.tokenizer))
    effects = logit_effects(subject, directions[wanted], top=top)
    vocabulary = index.text.vocabulary

    def pairs(tokens: Tensor, values: Tensor) -> dict[int, list[tuple[str, float]]]:
        rows = zip(wanted, tokens.tolist(), values.tolist(), strict=True)
        return {
            feature: [
                (_token(vocabulary.pieces(np.array([t]))[0].text, t), v)
                for t, v in zip(ids, row, strict=True)
            ]
            for feature, ids, row in rows
        }

    return Material(
        top_logits=pairs(effects.promoted, effects.promoted_value),
        bottom_logits=pairs(effects.suppressed, effects.suppressed_value),
        together=together,
        correlated=correlated,
        similar=_similar(directions),
        vector={feature: directions[feature].tolist() for feature in wanted},
        said=said,
    )


def _said(
    explanations: Iterable[Explanation], scores: Iterable[Scored], notes: Notes | None, judge: str
) -> dict[int, list[Said]]:
    rated: dict[tuple[int, str], list[Rated]] = {}
    for each in scores:
        if each.explainer and math.isfinite(each.score.value):
            counts = {
                name: getattr(each, name) for name in ("base_rate", "failed", "n_positive", "n_negative")
            }
            rated.setdefault((each.feature, each.explainer), []).append(
                Rated(each.scorer, each.score.value, judge, {**each.score.to_dict(), **counts})
            )
    found: dict[int, list[Said]] = {}
    for one in explanations:
        ratings = tuple(rated.get((one.feature, one.explainer), ()))
        found.setdefault(one.feature, []).append(Said(one.text, one.explainer, ratings=ratings))
    for note in notes.items if notes else ():
        # Of labels the last one counts.
        if note.label and notes is not None and notes.labels.get(note.feature) == note.label:
            here = found.setdefault(note.feature, [])
            if not any(each.explainer == PERSON and each.text == note.label for each in here):
                here.append(Said(note.label, PERSON, note.author))
        if note.text:
            found.setdefault(note.feature, []).append(Said(note.text, PERSON, note.author))
    return found


def _together(index: FeatureIndex, features: Sequence[int]) -> dict[int, list[tuple[int, float]]]:
    near = co_occurring(index, top=_NEIGHBOURS)
    all_of_them = _pairs(near.feature, near.value)
    return {feature: all_of_them[feature] for feature in features if all_of_them[feature]}


def _correlated(
    index: FeatureIndex, feature: int, others: Sequence[tuple[int, float]]
) -> list[tuple[int, float]]:
    """Pearson's correlations with other features over all tokens, silent ones included."""
    n, (row, value) = max(len(index.text), 1), index.entries(feature)
    x, found = value.astype(np.float64), []
    for other, _ in others:
        its_row, its_value = index.entries(other)
        y = its_value.astype(np.float64)
        _, mine, its = np.intersect1d(row, its_row, assume_unique=True, return_indices=True)
        covariance = (x[mine] @ y[its] - x.sum() * y.sum() / n) / n
        spread = math.sqrt(((x @ x) - x.sum() ** 2 / n) * ((y @ y) - y.sum() ** 2 / n)) / n
        if spread > 0:
            found.append((other, float(covariance / spread)))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _similar(directions: Float[Tensor, "feature d_model"]) -> dict[int, list[tuple[int, float]]]:
    if len(directions) < 2:
        return {}
    near = alike(directions, top=_NEIGHBOURS)
    return _pairs(near.feature.cpu().numpy(), near.value.cpu().double().numpy())


def _pairs(
    other: Int[np.ndarray, "feature top"], value: Float[np.ndarray, "feature top"]
) -> dict[int, list[tuple[int, float]]]:
    rows = enumerate(zip(other.tolist(), value.tolist(), strict=True))
    return {f: [(o, v) for o, v in zip(*row, strict=True) if o >= 0] for f, row in rows}


def _token(text: str, token: int) -> str:
    return text or f"<{token}>"
