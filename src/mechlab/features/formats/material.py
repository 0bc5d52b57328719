"""What an export says of features beyond their index: logits, neighbours, explanations and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rated:
    """A score of an explanation.

    Attributes:
        scorer: what was measured, as ``mechlab.scores`` names it ("detection", "fuzzing").
        value: the score.
        judge: who judged ("rules", a model's name).
        details: interval, n, null control and the like; plain JSON values.
    """

    scorer: str
    value: float
    judge: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """An explanation or a person's note.

    Attributes:
        text: in English.
        explainer: "rules", "llm:MODEL:PROMPT", "self", "ngrams", "person".
        author: the person, where one wrote it.
        ratings: how it scored.
    """

    text: str
    explainer: str
    author: str = ""
    ratings: tuple[Rated, ...] = ()

    @property
    def model(self) -> str | None:
        """Name of the language model that wrote it; None where none did."""
        return self.explainer.split(":", 2)[1] if self.explainer.startswith("llm:") else None


@dataclass(frozen=True)
class Material:
    """All by feature; a feature that is left out has none.

    Attributes:
        top_logits, bottom_logits: tokens that the feature raises or lowers most, with the effect on
            the logit, strongest first.
        logit_histogram: counts and centres of bins over all tokens' logit effects.
        together: other features that are active on the same tokens, with Jaccard's index, closest first.
        correlated: the same with Pearson's correlation of the activations over all tokens, strongest first.
        similar: other features with the cosine of their directions, strongest first.
        vector: the direction that the feature writes.
        said: explanations and notes.
    """

    top_logits: Mapping[int, Sequence[tuple[str, float]]] = field(default_factory=dict)
    bottom_logits: Mapping[int, Sequence[tuple[str, float]]] = field(default_factory=dict)
    logit_histogram: Mapping[int, tuple[Sequence[int], Sequence[float]]] = field(default_factory=dict)
    together: Mapping[int, Sequence[tuple[int, float]]] = field(default_factory=dict)
    correlated: Mapping[int, Sequence[tuple[int, float]]] = field(default_factory=dict)
    similar: Mapping[int, Sequence[tuple[int, float]]] = field(default_factory=dict)
    vector: Mapping[int, Sequence[float]] = field(default_factory=dict)
    said: Mapping[int, Sequence[Said]] = field(default_factory=dict)


NOTHING = Material()
