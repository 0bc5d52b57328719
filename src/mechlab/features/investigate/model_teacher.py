"""A model as teacher of one of its features: it is run on whatever the student asks about.

Beside activations it can show what the feature does: its ablation, a steering vector at matched
strength, its activation carried over from another text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError, near
from mechlab.features.investigate.fragments import Fragments, Passage
from mechlab.features.investigate.teachers import (
    PLAIN_TOOLS,
    Answer,
    Corpus,
    Query,
    answered,
    check_passage,
)
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add, project_out
from mechlab.interventions.strength import kl_divergence, strength_for_kl
from mechlab.models.subject import Subject
from mechlab.sae.splice import At, Placed, splicing

TOOLS = (*PLAIN_TOOLS, "ablation", "steering", "patching")
KL = 0.1
"""Nats per token that steering is matched to."""
_BATCH, _SHOWN = 256, 5


@dataclass(frozen=True, eq=False)
class Latent:
    """A feature of a dictionary: latent ``number`` of ``dictionary`` (a ``Dictionary``, or an ``At``)."""

    dictionary: Placed
    number: int

    @property
    def site(self) -> str:
        """Where it writes."""
        return self.dictionary.outputs[0]

    @property
    def vector(self) -> Float[Tensor, "dim"]:
        """What it writes there."""
        first = self.dictionary.sae.out_sizes[0]
        return self.dictionary.sae.W_dec[self.number, :first].detach()

    def read(self, subject: Subject, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """Its activation at every position."""
        sae = self.dictionary.sae
        values = read_sites(subject, tokens, list(self.dictionary.inputs))
        x = torch.cat([values[site].flatten(0, 1) for site in self.dictionary.inputs], dim=1)
        codes = sae.encode(x.to(sae.b_dec.dtype))
        found = torch.where(codes.indices == self.number, codes.values, 0).sum(1)
        return found.view(tokens.shape)

    def without(self, subject: Subject) -> AbstractContextManager[Any]:
        """While open, the model runs without it."""
        return splicing(subject, _placed(self.dictionary), ablate=[self.number])

    def held(self, subject: Subject, value: float) -> AbstractContextManager[Any]:
        """While open, its activation is ``value`` everywhere."""
        return splicing(subject, _placed(self.dictionary), clamp={self.number: value})


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction at a site: active where the value's coordinate along it exceeds ``threshold``.

    A neuron is the direction of its own axis.
    """

    site: str
    vector: Float[Tensor, "dim"]
    threshold: float = 0.0

    def read(self, subject: Subject, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
        """How far the coordinate exceeds the threshold, at every position; 0 where it does not."""
        value = read_sites(subject, tokens, [self.site])[self.site].float()
        unit = self.vector.to(value) / self.vector.to(value).norm()
        active: Tensor = (value @ unit - self.threshold).clamp(min=0)
        return active

    def without(self, subject: Subject) -> AbstractContextManager[Any]:
        """While open, the model runs with the direction projected out."""
        return editing(subject, self.site, project_out(self.vector))

    def held(self, subject: Subject, value: float) -> AbstractContextManager[Any]:
        """While open, the coordinate is ``threshold + value`` everywhere."""
        from mechlab.interventions.edits import clamp

        return editing(subject, self.site, clamp(self.vector, float(self.threshold + value)))


def _placed(dictionary: Placed) -> Placed:
    # A dictionary with its artifact refuses any model but its own, an 8-bit copy too.
    return At(dictionary.sae, dictionary.inputs, dictionary.outputs)


class FeatureTeacher:
    """Answers for one feature by running the model.

    Args:
        subject: the model, or a copy of it that is a weaker teacher.
        feature: what is asked about.
        fragments: the corpus that examples come from, in the model's tokens.
        seed: decides which examples are shown.
        floor: share of its largest activation on the corpus below which it counts as silent, as what a
            feature does at its weakest is seldom what it is about.
        known: activations on the corpus, where another teacher has computed them.

    Raises MechlabError when the feature does not exist or does not fit the model.
    """

    tools: tuple[str, ...] = TOOLS

    def __init__(
        self,
        subject: Subject,
        feature: Latent | Direction,
        fragments: Fragments,
        *,
        seed: int = 0,
        floor: float = 0.2,
        known: Sequence[Float[np.ndarray, "_"]] | None = None,
    ) -> None:
        if isinstance(feature, Latent) and not 0 <= feature.number < feature.dictionary.sae.d_sae:
            last = feature.dictionary.sae.d_sae - 1
            raise MechlabError("feature does not exist", feature.number, f"give a number from 0 to {last}")
        self.subject, self.feature, self.asked = subject, feature, 0
        self.vocabulary = fragments.vocabulary
        self._floor = 0.0
        self.known = list(known) if known is not None else self.activations(fragments.passages)
        self._floor = floor * max(float(values.max()) for values in self.known)
        self.known = [self._heard(values) for values in self.known]
        active = [number for number, values in enumerate(self.known) if (values > 0).any()]
        self._corpus = Corpus(fragments, active, np.random.default_rng(seed))

    def passage(self, text: str) -> Passage:
        """A text as tokens. MechlabError when it has none, too many, or words the model does not know."""
        ids = self.subject.tokens(text).tolist()
        made = tuple(ids[1:] if self.subject.bos is not None else ids)
        unknown = self.subject.tokenizer.unk_token_id
        if unknown is not None and unknown != self.subject.bos and unknown in made:
            raise MechlabError("text has words that the model does not know", repr(text), "use other words")
        self._check(made)
        return made

    def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """See ``Teacher``."""
        answers: list[Answer] = []
        for query in queries:
            if query.tool not in TOOLS:
                raise MechlabError("teacher has no such tool", query.tool, near(query.tool, TOOLS))
            self._check(query.passage, empty=query.tool in ("example", "random"))
            if query.tool in PLAIN_TOOLS:
                answers += answered(self, self._corpus, [query])
                continue
            (plain,) = answered(self, self._corpus, [replace(query, tool="activation", other=())])
            answers.append(replace(plain, query=query, effect=self._effect(query)))
        self.asked += sum(query.cost for query in queries)
        return answers

    def activations(self, passages: Sequence[Passage]) -> list[Float[np.ndarray, "_"]]:
        """See ``Teacher``."""
        found: list[np.ndarray] = []
        for start in range(0, len(passages), _BATCH):
            part = passages[start : start + _BATCH]
            with torch.no_grad():
                values = self.feature.read(self.subject, self._tokens(part)).double().cpu().numpy()
            skip = self.subject.bos is not None
            rows = zip(values, part, strict=True)
            found += [self._heard(row[skip : len(each) + skip]) for row, each in rows]
        return found

    def _heard(self, values: Float[np.ndarray, "token"]) -> Float[np.ndarray, "token"]:
        return np.where(values >= self._floor, values, 0.0)

    def _tokens(self, passages: Sequence[Passage]) -> Int[Tensor, "batch pos"]:
        lead = [] if self.subject.bos is None else [self.subject.bos]
        longest = max(len(each) for each in passages)
        # A causal model does not see the padding.
        rows = [[*lead, *each, *[each[-1]] * (longest - len(each))] for each in passages]
        return torch.tensor(rows, dtype=torch.long)

    def _check(self, passage: Passage, *, empty: bool = False) -> None:
        if not (empty and not passage):
            check_passage(passage, self.vocabulary)
        if len(passage) >= self.subject.n_ctx:
            most = self.subject.n_ctx - 1
            raise MechlabError("text to ask about is too long", f"{len(passage)} tokens", f"at most {most}")

    def _effect(self, query: Query) -> dict[str, Any]:
        tokens = self._tokens([query.passage])
        clean = self._distributions(tokens)
        about: dict[str, Any] = {}
        if query.tool == "ablation":
            context = self.feature.without(self.subject)
        elif query.tool == "steering":
            vector = self.feature.vector
            matched = strength_for_kl(self.subject, self.feature.site, vector, tokens, kl=KL)
            about = {"strength": matched.strength}
            context = editing(self.subject, self.feature.site, add(vector, matched.strength))
        else:
            check_passage(query.other, self.vocabulary)
            value = float(self.activations([query.other])[0].max())
            about = {"activation": value}
            context = self.feature.held(self.subject, value)
        with context:
            changed = self._distributions(tokens)
        moved = (changed - clean)[-1]
        kl = kl_divergence(clean, changed).mean()
        following = tokens[0, 1:, None]
        losses = [-float(each[:-1].gather(1, following).mean()) for each in (clean, changed)]
        return {
            **about,
            "kl": float(kl),
            "loss before": losses[0],
            "loss after": losses[1],
            "more likely next": self._texts(moved.topk(_SHOWN).indices),
            "less likely next": self._texts((-moved).topk(_SHOWN).indices),
        }

    def _distributions(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "pos d_vocab"]:
        return self.subject.logits(tokens)[0].float().log_softmax(-1).cpu()

    def _texts(self, tokens: Int[Tensor, "token"]) -> list[str]:
        return [self.vocabulary.texts[token] for token in tokens.tolist()]


@torch.no_grad()
def quantised(subject: Subject, bits: int = 8) -> Subject:
    """A copy of a model whose matrices are rounded to ``bits`` bits: a weaker teacher.

    Round to nearest, one scale for each row (its largest weight); values are kept as floats, so it
    runs anywhere. Vectors (biases, norms) stay as they are. Raises MechlabError outside 2 to 8 bits.
    """
    if not 2 <= bits <= 8:
        raise MechlabError("bits are out of range", bits, "give 2 to 8")
    module = copy.deepcopy(subject.module)
    levels = 2 ** (bits - 1) - 1
    for weight in module.parameters():
        if weight.ndim >= 2:
            scale = weight.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / levels
            weight.copy_((weight / scale).round() * scale)
    return Subject(f"{subject.name} ({bits} bits)", module, subject.tokenizer, subject.sites)
