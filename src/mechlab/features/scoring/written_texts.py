"""Synthetic-text scores of explanations in plain words, on texts that somebody wrote for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.features.scoring.metrics import derangement, with_null
from mechlab.features.scoring.synthetic import Activate, synthetic_score
from mechlab.features.text import text_of
from mechlab.features.vocabulary import vocabulary_of
from mechlab.features.windows import divide
from mechlab.models.subject import Subject
from mechlab.scores import Score

Module = Callable[[list[str]], Float[np.ndarray, "text"]]
"""Texts → one number each: whatever is to be explained (SASC's "text module")."""


@dataclass(frozen=True)
class Texts:
    """Texts that an explanation describes, and texts that it does not."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def feature_module(subject: Subject, activate: Activate, feature: int) -> Module:
    """A feature as a function of texts: its largest activation on any token.

    A text without tokens gives 0. MechlabError for a text longer than the model's context.
    """
    vocabulary = vocabulary_of(subject)
    ahead = 0 if subject.bos is None else 1

    def module(texts: list[str]) -> Float[np.ndarray, "text"]:
        rows = [subject.tokens(each)[ahead:].numpy() for each in texts]
        longest = max(map(len, rows), default=0) + ahead
        if longest > subject.n_ctx:
            raise MechlabError(
                "text is longer than the model's context", f"{longest} tokens", f"at most {subject.n_ctx}"
            )
        found = np.zeros(len(texts))
        full = [place for place, row in enumerate(rows) if len(row)]
        if full:
            text = text_of([rows[place] for place in full], vocabulary)
            values = activate(text, [feature])[:, 0]
            found[full] = np.maximum.reduceat(values, text.bounds[:-1])
        return found

    return module


def score_written(
    index: FeatureIndex,
    written: Mapping[int, Texts],
    module_of: Callable[[int], Module],
    *,
    width: int = 16,
    seed: int = 0,
) -> dict[int, Score]:
    """Synthetic-text scores of features from texts that a language model (or a person) wrote.

    Args:
        index: gives each feature's σ: that of its largest activation over windows of the corpus.
        written: feature → texts for its explanation (``mechlab.features.llm.write_texts``).
        module_of: feature → function of texts (``feature_module``).
        width: tokens of the windows; about as many as the texts have.

    The null of a feature are the texts that were written for another one. Raises MechlabError for a
    feature that is dead on the index.
    """
    windows = divide(index.text, width)
    features = sorted(written)
    lent = derangement(len(features), np.random.default_rng(seed)) if len(features) > 1 else None
    found = {}
    for at, feature in enumerate(features):
        _, peak = windows.peaks(*index.entries(feature))
        values = np.concatenate([peak.astype(np.float64), np.zeros(max(len(windows) - len(peak), 0))])
        sigma = float(values.std()) if len(values) else 0.0
        module = module_of(feature)

        def scored(texts: Texts, module: Module = module, sigma: float = sigma) -> Score:
            return synthetic_score(_values(module, texts.positive), _values(module, texts.negative), sigma)

        null = None if lent is None else scored(written[features[int(lent[at])]])
        found[feature] = with_null(scored(written[feature]), null)
    return found


def _values(module: Module, texts: Sequence[str]) -> Float[np.ndarray, "text"]:
    return np.asarray(module(list(texts)), np.float64) if texts else np.zeros(0)
