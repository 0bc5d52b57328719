"""Surprisal score: does the explanation make the text less of a surprise?

info(x, z) = log p(x | z) - log p(x | neutral), in nats, with p a causal language model: positive
when knowing z helps to predict x. Graded, so it is scored by AUROC; chance 0.5.

Source: Paulo et al. (2025), *Automatically interpreting millions of features in large language
models* (arXiv 2410.13928), who use a base model of 70 billion parameters and few-shot examples.
Small models hardly read explanations: expect little of one that is not trained on English, and of
``word_reader`` that it finds the words that are named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.scoring.embedding import window_strings
from mechlab.features.scoring.items import Items
from mechlab.features.scoring.readers import Reader
from mechlab.features.text import Text

NEUTRAL = "Various unrelated sentences."


@dataclass(frozen=True)
class SurprisalJudge:
    """A judge: how many nats the explanation takes off each window.

    Attributes:
        read: who reads (``model_reader``, ``word_reader``, or your own).
        neutral: the explanation that says nothing.
        template: what stands before a window; holds "{explanation}".
    """

    read: Reader
    neutral: str = NEUTRAL
    template: str = "The following is a description of some texts, and one of them.\n\n{explanation}\n\n"

    def __post_init__(self) -> None:
        if "{explanation}" not in self.template:
            raise MechlabError(
                "template has no place for the explanation", repr(self.template), "put {explanation} in it"
            )

    def __call__(self, explanation: Explanation, text: Text, items: Items) -> Float[np.ndarray, "item"]:
        """Nats for each item; NaN where explanation and window are more than the reader takes."""
        prefixes = (self._prefix(explanation.text), self._prefix(self.neutral))
        pairs = [(prefix, said) for said in window_strings(text, items) for prefix in prefixes]
        found = self.read(pairs).reshape(-1, 2)
        information: np.ndarray = found[:, 0] - found[:, 1]
        return information

    def _prefix(self, explanation: str) -> str:
        return self.template.replace("{explanation}", explanation)
