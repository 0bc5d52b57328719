"""Intervention score: can the explanation be recovered from what the model writes when steered?

The feature's direction is added at a strength found for a fixed KL, the model goes on with some
prompts x, with (G_I) and without (G), and a scorer model says how much likelier the explanation
z has become:

    S(z) = E_x [ log p(z | G_I(x)) - log p(z | G(x)) ],  in nats

It measures what a feature does to the output, which contexts of activation do not show. Both runs
are given the same noise, so that they differ by the edit alone.

Source: Paulo et al. (2025), *Automatically interpreting millions of features in large language
models* (arXiv 2410.13928), section 3.3.5. They keep the best of five explanations; here each is
scored as it is. Null: random directions, each at equal KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.features.continuations import continuations
from mechlab.features.explanations import Explanation
from mechlab.features.scoring.readers import Reader
from mechlab.features.vocabulary import Vocabulary, vocabulary_of
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add
from mechlab.interventions.positions import Positions
from mechlab.interventions.strength import strength_for_kl
from mechlab.models.subject import Subject
from mechlab.scores import Score, mean, score

Plausibility = Callable[[list[str], str], Float[np.ndarray, "passage"]]
"""(passages, explanation) → for each passage log p(explanation | passage), up to a constant."""


@dataclass(frozen=True, eq=False)
class Steered:
    """What a model wrote with and without a direction added.

    Attributes:
        vocabulary: of the model.
        clean, steered: generated tokens: as it is, and with the direction.
        random: generated tokens with each of some random directions, as long as the vector, at equal KL.
        strength, random_strengths: multiples of the vectors.
        kl: nats per token that the direction has.
    """

    vocabulary: Vocabulary
    clean: Int[Tensor, "prompt new"]
    steered: Int[Tensor, "prompt new"]
    random: Int[Tensor, "control prompt new"]
    strength: float
    random_strengths: tuple[float, ...]
    kl: float


def steer(
    subject: Subject,
    site: str,
    vector: Float[Tensor, "dim"],
    prompts: Int[Tensor, "prompt pos"],
    *,
    kl: float = 0.5,
    new_tokens: int = 8,
    temperature: float = 1.0,
    positions: Positions = None,
    controls: int = 3,
    seed: int = 0,
) -> Steered:
    """Generate with a direction added, with random ones at equal KL, and with none.

    Args:
        site: where the vector is added: a feature's own site.
        vector: the feature's decoder row, or any direction.
        prompts: token ids of one length, BOS included where the model has one.
        kl: mean over the prompts' tokens of KL(clean || edited), in nats.
        positions: columns that are edited; all by default, generated ones included.
        controls: number of random directions; one of them may happen to mean something.

    Raises MechlabError without controls, for prompts that leave no room, and whatever
    ``strength_for_kl`` raises.
    """
    if controls < 1:
        raise MechlabError("number of controls must be positive", controls, "use at least 1 random direction")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(controls, len(vector), generator=generator).to(vector)
    others = drawn / drawn.norm(dim=1, keepdim=True) * vector.norm()

    def written() -> Int[Tensor, "prompt new"]:
        noise = torch.Generator().manual_seed(seed + 1)
        return continuations(subject, prompts, new_tokens, temperature=temperature, generator=noise)

    runs, found = [], []
    for push in (vector, *others):
        found.append(strength_for_kl(subject, site, push, prompts, kl=kl, positions=positions))
        with editing(subject, site, add(push, found[-1].strength), positions):
            runs.append(written())
    strengths = [each.strength for each in found]
    random = torch.stack(runs[1:])
    words = vocabulary_of(subject)
    return Steered(words, written(), runs[0], random, strengths[0], tuple(strengths[1:]), found[0].kl)


def intervention_score(
    explanation: Explanation, steered: Steered, plausibility: Plausibility, *, seed: int = 0
) -> Score:
    """S(z) in nats, with the same under random directions at equal KL as its null.

    The interval is over prompts. Passages for which the scorer has no answer (NaN) are left out.
    """
    runs = [steered.clean, steered.steered, *steered.random]
    passages = [steered.vocabulary.string(row) for run in runs for row in run.numpy()]
    told = plausibility(passages, explanation.text).reshape(len(runs), -1)
    return _compared("intervention", told[1] - told[0], (told[2:] - told[0]).mean(0), seed)


def promotion_score(words: Sequence[str], steered: Steered, *, seed: int = 0) -> Score:
    """How much more often the words that a feature is said to promote are written when steered.

    Share of generated tokens that are one of the words, steered less clean; no scorer model needed.
    The interval is over prompts; the null are random directions at equal KL.

    Args:
        words: texts of tokens (``Vocabulary.texts``), such as the top of a direct logit attribution.

    Raises MechlabError when none of them is a token.
    """
    ids = torch.from_numpy(steered.vocabulary.ids(words))
    if not len(ids):
        shown = ", ".join(map(repr, words[:5]))
        raise MechlabError("no word is a token of the model", shown, "leading spaces belong to tokens")
    clean, pushed, other = (
        torch.isin(each, ids).double().mean(-1).numpy()
        for each in (steered.clean, steered.steered, steered.random)
    )
    return _compared("promotion", pushed - clean, (other - clean).mean(0), seed)


def plausibility_of(
    read: Reader,
    *,
    template: str = '<PASSAGE>\n{passage}\n</PASSAGE>\nThe passage contains an amplified amount of "',
) -> Plausibility:
    """A reader as scorer: log p(explanation | passage), summed over its tokens.

    Args:
        read: ``model_reader`` of any causal model, not necessarily the one steered (a small one
            recognises words at best), or ``word_reader``.
        template: what comes before the explanation; holds "{passage}".
    """
    if "{passage}" not in template:
        raise MechlabError("template has no place for the passage", repr(template), "put {passage} in it")

    def plausibility(passages: list[str], explanation: str) -> Float[np.ndarray, "passage"]:
        return read([(template.replace("{passage}", passage), explanation) for passage in passages])

    return plausibility


def _compared(
    name: str, values: Float[np.ndarray, "prompt"], control: Float[np.ndarray, "prompt"], seed: int
) -> Score:
    null = _mean(f"{name}, random directions", control, seed)
    return replace(_mean(name, values, seed), null=null)


def _mean(name: str, values: Float[np.ndarray, "prompt"], seed: int) -> Score:
    usable = values[np.isfinite(values)].astype(np.float64)
    return score(name, np.stack([usable, np.ones(len(usable))], axis=1), mean, seed=seed, chance=0.0)
