"""Intervention scores of many features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanations
from mechlab.features.scoring.intervention import (
    Plausibility,
    intervention_score,
    promotion_score,
    steer,
)
from mechlab.features.scoring.scorecard import Scorecard, Scored, Unscored
from mechlab.features.text import Text
from mechlab.features.windows import divide
from mechlab.models.subject import Subject
from mechlab.scores import Score


def score_interventions(
    subject: Subject,
    site: str,
    vectors: Mapping[int, Float[Tensor, "dim"]],
    explanations: Explanations,
    prompts: Int[Tensor, "prompt pos"],
    *,
    plausibility: Plausibility | None = None,
    promoted: Mapping[int, Sequence[str]] | None = None,
    kl: float = 0.5,
    new_tokens: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scorecard:
    """Scores "intervention" (with a scorer model) and "promotion" (with words) of every explained feature.

    Args:
        site, vectors: where features are added, and their directions.
        prompts: as for ``steer``; ``prompts_of`` takes them from held-out text.
        plausibility: ``reader`` or ``llm_reader``; without one there is no "intervention".
        promoted: feature → words that it is said to promote, for "promotion".
        progress: told (done, all) after each feature.

    Features without a direction, and such as cannot be steered to that KL, are unscored with the reason.
    """
    scored: list[Scored] = []
    unscored: list[Unscored] = []
    features = sorted({each.feature for each in explanations.items})
    for at, feature in enumerate(features):
        said, words = explanations.of(feature), (promoted or {}).get(feature)
        found: list[tuple[str, Score]] = []
        promotion: list[tuple[str, Score]] = []
        try:
            if feature not in vectors:
                raise MechlabError("feature has no direction to steer along", feature, "give its vector")
            steered = steer(subject, site, vectors[feature], prompts, kl=kl, new_tokens=new_tokens, seed=seed)
            if words is not None:
                promotion.append(("", promotion_score(words, steered, seed=seed)))
        except MechlabError as error:
            unscored += [Unscored(feature, each.explainer, "intervention", str(error)) for each in said]
            said = ()
        for each in said:
            if plausibility is None:
                break
            try:
                found.append((each.explainer, intervention_score(each, steered, plausibility, seed=seed)))
            except MechlabError as error:  # an explanation too long for the scorer model, say
                unscored.append(Unscored(feature, each.explainer, "intervention", str(error)))
        for explainer, score in found + promotion:
            # Every prompt has a passage with the feature and one without it.
            failed = len(prompts) - score.n
            scored.append(Scored(feature, explainer, score.name, score, 0.5, failed, score.n, score.n))
        if progress is not None:
            progress(at + 1, len(features))
    return Scorecard(tuple(scored), tuple(unscored), seed)


def prompts_of(
    subject: Subject, text: Text, count: int, length: int, generator: np.random.Generator
) -> Int[Tensor, "prompt pos"]:
    """Prompts of ``length`` tokens, and BOS: the beginnings of random passages of a text.

    Raises MechlabError when fewer than ``count`` passages are long enough.
    """
    windows = divide(text, length)
    starts = windows.start[np.isin(windows.start, text.bounds[:-1])]
    if len(starts) < count:
        raise MechlabError("text has too few passages", f"{len(starts)} of {length} tokens", f"give {count}")
    drawn = np.sort(generator.choice(starts, count, replace=False))
    tokens = torch.from_numpy(text.tokens[drawn[:, None] + np.arange(length)].astype(np.int64))
    if subject.bos is None:
        return tokens
    return torch.cat([torch.full((count, 1), subject.bos), tokens], dim=1)
