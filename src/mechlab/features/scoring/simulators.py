"""Who predicts activations token by token: rules, and language models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.rules import Matcher
from mechlab.features.scoring.simulation import LEVELS, expected_level
from mechlab.features.text import Text
from mechlab.models.subject import Subject


@runtime_checkable
class Simulator(Protocol):
    """Predicts the activation on every token of some windows, in units of its own; NaN where it cannot."""

    def __call__(
        self, explanation: Explanation, text: Text, start: Int[np.ndarray, "window"], width: int
    ) -> Float[np.ndarray, "window pos"]:
        """Predictions for the rows ``start`` to ``start + width`` of each window."""
        ...


@dataclass(frozen=True)
class RuleSimulator:
    """The simulator that runs rules: exact, and free of charge."""

    matcher: Matcher

    def __call__(
        self, explanation: Explanation, text: Text, start: Int[np.ndarray, "window"], width: int
    ) -> Float[np.ndarray, "window pos"]:
        """What the rule predicts, in units of the activation. MechlabError without a rule."""
        if explanation.rule is None:
            raise MechlabError("explanation is no rule", repr(explanation.text), "simulate it with a model")
        if text is not self.matcher.text:
            raise MechlabError("matcher is of another text", len(text), "make one of the text that is scored")
        return self.matcher.predict(explanation.rule)[start[:, None] + np.arange(width)]


PROMPT = (
    "A neuron of a language model responds to something in text. Its activation on a token is a whole "
    "number from 0 (not active) to 10 (most active).\n\nThe neuron responds to: {explanation}\n\n"
    "Tokens and activations of a text, divided by a tab; not every activation is known:\n"
)


@dataclass(frozen=True)
class ModelSimulator:
    """A causal model that is asked for all tokens at once.

    The prompt lists every token as "token, tab, unknown"; at each "unknown" the model's own
    probabilities for the numbers 0 to 10 in its place give the expected level, so that one forward
    simulates a whole window (Bills et al. 2023, "all at once"). Predictions are levels, 0 to 10.

    Attributes:
        subject: any causal model whose tokenizer has a token for each digit.
        prompt: what comes before the list; holds "{explanation}".
    """

    subject: Subject
    prompt: str = PROMPT
    _numbers: dict[int, str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if "{explanation}" not in self.prompt:
            raise MechlabError("prompt has no place for the explanation", None, "put {explanation} in it")
        texts = [self.subject.token_text(t) for t in range(len(self.subject.tokenizer))]
        wanted = {str(level) for level in range(LEVELS + 1)}
        self._numbers.update({t: said for t, said in enumerate(texts) if said.strip() in wanted})
        missing = {str(level) for level in range(LEVELS)} - {said.strip() for said in self._numbers.values()}
        if missing:
            raise MechlabError(
                f"{self.subject.name} has no token for a level", min(missing), "simulate with another model"
            )

    @torch.no_grad()
    def __call__(
        self, explanation: Explanation, text: Text, start: Int[np.ndarray, "window"], width: int
    ) -> Float[np.ndarray, "window pos"]:
        """Expected levels. MechlabError when the prompt does not fit into the model's context."""
        found = np.zeros((len(start), width))
        for row, at in enumerate(start.tolist()):
            tokens, asked = self._tokens(explanation.text, text, text.tokens[at : at + width])
            logits = self.subject.logits(torch.tensor([tokens]))[0, asked].double().log_softmax(-1).cpu()
            for place, alternatives in enumerate(logits[:, list(self._numbers)].tolist()):
                told = dict.fromkeys(self._numbers.values(), 0.0)
                for said, logprob in zip(self._numbers.values(), alternatives, strict=True):
                    told[said] += float(np.exp(logprob))
                logs = {said: float(np.log(p)) if p > 0 else -np.inf for said, p in told.items()}
                found[row, place] = expected_level(logs)
        return found

    def _tokens(
        self, explanation: str, text: Text, window: Int[np.ndarray, "pos"]
    ) -> tuple[list[int], list[int]]:
        """The prompt's tokens, and the places whose next token is the first of an "unknown"."""
        tokenizer = self.subject.tokenizer
        tokens = self.subject.tokens(self.prompt.replace("{explanation}", explanation)).tolist()
        unknown = tokenizer.encode("unknown\n", add_special_tokens=False)
        asked = []
        for token in window.tolist():
            tokens += tokenizer.encode(text.vocabulary[token] + "\t", add_special_tokens=False)
            asked.append(len(tokens) - 1)
            tokens += unknown
        if len(tokens) > self.subject.n_ctx:
            raise MechlabError(
                "simulation prompt is longer than the model's context",
                f"{len(tokens)} tokens",
                f"{self.subject.name} takes {self.subject.n_ctx}; use narrower windows",
            )
        return tokens, asked
