"""What a model says when a feature is turned up or down: made beforehand, for pages without a model.

At every position of the prompt and of what follows, at the places where the dictionary writes,

    x' = x + strength · maximum · d

with d the feature's decoder row and maximum the largest activation that its index holds; strength 0 is the
model as it is. Continuations are greedy. The size of the change is

    KL(clean || steered) in nats per token, the mean over all tokens of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.features.continuations import continuations
from mechlab.features.index import FeatureIndex
from mechlab.features.vocabulary import Vocabulary
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject
from mechlab.sae.splice import Placed

STRENGTHS = (-1.0, 0.0, 1.0, 2.0, 4.0)
NEW_TOKENS, PROMPTS, PROMPT_TOKENS = 12, 3, 8
# Numbers in the logits of one batch.
_BUDGET = 2**25
# Passages of each part of the text that are looked at for a prompt.
_TRIED = 16


@dataclass(frozen=True)
class Steered:
    """One feature at one strength.

    Attributes:
        strength: in multiples of the feature's largest activation.
        kl: nats per token.
        texts: continuation of every prompt, leading spaces kept.
    """

    strength: float
    kl: float
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Steering:
    """Samples of several features on the same prompts, feature → one for each strength, ascending."""

    prompts: tuple[str, ...]
    of: Mapping[int, tuple[Steered, ...]]


@torch.no_grad()
def steering_samples(
    subject: Subject,
    dictionary: Placed,
    index: FeatureIndex,
    features: Sequence[int],
    *,
    prompts: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    new_tokens: int = NEW_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> Steering:
    """Continuations and KL of every feature at every strength, many features in one batch.

    Args:
        index: of the dictionary's features: says how strong they get.
        prompts: by default the beginnings of some passages of the index.
        strengths: 0 is always among them.
        progress: told how many features are done, and of how many.

    Raises MechlabError for a feature that does not exist or is dead, no prompt, one that leaves no room
    in the model's context, and sites that cannot be edited.
    """
    said = tuple(prompts) if prompts is not None else opening_prompts(index, subject)
    if not said:
        raise MechlabError("no prompt to steer on", None, "give prompts=")
    for feature in features:
        if not len(index.entries(feature)[0]):
            raise MechlabError("feature is never active, so it has no strength", feature, "steer live ones")
    levels = sorted({0.0, *(float(each) for each in strengths)})
    tokens = [subject.tokens(prompt) for prompt in said]
    words = index.text.vocabulary
    plain = [_Plain.of(subject, words, each, new_tokens) for each in tokens]
    unchanged = tuple(each.text for each in plain)
    directions = dictionary.sae.W_dec.detach()
    if index.about.get("signs"):
        directions = torch.cat([directions, -directions])
    moved = [level for level in levels if level != 0]
    longest = max(len(each) for each in tokens) + new_tokens
    room = _BUDGET // (longest * len(subject.tokenizer) * max(len(moved), 1))
    found: dict[int, tuple[Steered, ...]] = {}
    for start in range(0, len(features), max(1, room)):
        some = list(features[start : start + max(1, room)])
        most = torch.tensor([float(index.maximum[feature]) for feature in some])
        rows = most.to(directions)[:, None] * directions[torch.tensor(some, device=directions.device)]
        # Feature by feature, all strengths of each.
        vectors = (rows[:, None] * torch.tensor(moved).to(rows)[:, None]).flatten(0, 1)
        texts: list[list[str]] = []
        effect, counted = np.zeros(len(vectors)), 0
        for each, clean in zip(tokens, plain, strict=True):
            with _added(subject, dictionary, vectors):
                many = each[None].expand(len(vectors), -1)
                effect += clean.divergence(subject.logits(many))
                made = continuations(subject, many, new_tokens, temperature=0.0)
                texts.append([words.string(row) for row in made.numpy()])
            counted += len(each)
        kl = effect / counted
        for place, feature in enumerate(some):
            samples = [Steered(0.0, 0.0, unchanged)]
            for at, level in enumerate(moved, start=place * len(moved)):
                samples.append(Steered(level, max(0.0, float(kl[at])), tuple(column[at] for column in texts)))
            found[feature] = tuple(sorted(samples, key=lambda sample: sample.strength))
        if progress is not None:
            progress(len(found), len(features))
    return Steering(said, found)


def opening_prompts(index: FeatureIndex, subject: Subject) -> tuple[str, ...]:
    """Beginnings of passages spread evenly over the text, no two alike; none where a model cannot go on."""
    text, room = index.text, subject.n_ctx - NEW_TOKENS - 1
    length = min(PROMPT_TOKENS, room)
    if not subject.causal or length < 1:
        return ()
    found: list[str] = []
    for part in np.array_split(np.flatnonzero(np.diff(text.bounds) >= length), PROMPTS):
        for passage in part[:_TRIED]:
            start = int(text.bounds[passage])
            prompt = text.vocabulary.string(text.tokens[start : start + length])
            # Written and read again it can have more tokens.
            if prompt.strip() and prompt not in found and len(subject.tokens(prompt)) <= room + 1:
                found.append(prompt)
                break
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Plain:
    """What the untouched model makes of a prompt."""

    logs: Float[Tensor, "pos d_vocab"]
    text: str

    @classmethod
    def of(cls, subject: Subject, words: Vocabulary, tokens: Int[Tensor, "pos"], new_tokens: int) -> _Plain:
        logits = subject.logits(tokens[None])[0].float()
        made = continuations(subject, tokens[None], new_tokens, temperature=0.0)
        return cls(logits.log_softmax(-1), words.string(made[0].numpy()))

    def divergence(self, logits: Float[Tensor, "row pos d_vocab"]) -> Float[np.ndarray, "row"]:
        """KL(clean || steered) of every row, summed over the tokens."""
        steered = logits.float().log_softmax(-1)
        found = (self.logs.exp() * (self.logs - steered)).sum(-1).double().sum(-1)
        return found.cpu().numpy()


@contextmanager
def _added(subject: Subject, dictionary: Placed, vectors: Float[Tensor, "row d_out"]) -> Iterator[None]:
    """While open, every row of a batch has its own vector added where the dictionary writes."""
    with ExitStack() as stack:
        parts = torch.split(vectors, list(dictionary.sae.out_sizes), dim=1)
        for site, part in zip(dictionary.outputs, parts, strict=True):
            stack.enter_context(editing(subject, site, _adding(part)))
        yield


def _adding(part: Float[Tensor, "row d"]) -> Callable[[Tensor], Tensor]:
    return lambda value: value + part[:, None].to(value)
