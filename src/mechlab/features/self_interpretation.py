"""The subject explains its own vectors: a vector is put in the place of a word of a prompt.

A prompt asks about placeholder tokens; at one layer their hidden states are overwritten by the
vector, and what the model goes on with is its own account of the vector. Two prompts are common:

- identity (Patchscopes, Ghandeharioun et al. 2024, arXiv 2401.06102): pairs "cat->cat; …" that end in
  the placeholder, after which the model writes the token that it takes the vector for;
- a request (SelfIE, Chen et al. 2024, arXiv 2403.10949): "[INST] _ _ _ [/INST] Sure, I will
  summarise", for models that follow instructions.

How much of an account is due to the vector is its *relevance*: the mean over its tokens of p(token)
with the vector less p(token) without, both given the tokens before it (SelfIE's treatment effect). An
account with a relevance near 0 would have been given anyhow. Models speak only what they were
trained on: a small one names tokens at best, and the bundled one can only say words of its stories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.features.continuations import continuations
from mechlab.features.explanations import Explanation
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject

EXPLAINER = "self"


@dataclass(frozen=True)
class Prompt:
    """A question about placeholders.

    Attributes:
        before, after: text around them.
        placeholder: stands where the vector goes; its first token is taken, ``count`` times.
        count: number of placeholders.
    """

    before: str
    after: str = ""
    placeholder: str = "?"
    count: int = 1

    def tokens(self, subject: Subject) -> tuple[Int[Tensor, "pos"], list[int]]:
        """Token ids, BOS first, and the places of the placeholders. MechlabError without any."""
        held = subject.tokenizer.encode(self.placeholder, add_special_tokens=False)
        if self.count < 1 or not held:
            raise MechlabError("prompt has no placeholder", self.placeholder, "give a word, and count >= 1")
        begin = subject.tokens(self.before).tolist()
        end = subject.tokenizer.encode(self.after, add_special_tokens=False) if self.after else []
        places = list(range(len(begin), len(begin) + self.count))
        return torch.tensor(begin + held[-1:] * self.count + end), places


IDENTITY = Prompt("cat->cat; 135->135; hello->hello; ")
SUMMARY = Prompt("[INST] ", " [/INST] Sure, I will summarise the message: it is about", "_", 5)


@dataclass(frozen=True)
class Account:
    """What the model said of one vector.

    Attributes:
        text: its words.
        tokens: their ids.
        relevance: by token, p(token) with the vector less p(token) without, between -1 and 1.
        site: where the vector was put.
        scale: multiple of the vector that was put there.
    """

    text: str
    tokens: tuple[int, ...]
    relevance: tuple[float, ...]
    site: str
    scale: float

    @property
    def mean_relevance(self) -> float:
        """Over its tokens."""
        return sum(self.relevance) / len(self.relevance)


def account(
    subject: Subject,
    vector: Float[Tensor, "dim"],
    site: str,
    *,
    prompt: Prompt = IDENTITY,
    new_tokens: int = 8,
    scale: float | None = 1.0,
) -> Account:
    """What the subject says of a vector, greedily.

    Args:
        vector: in the space of ``site``: a decoder row, a hidden state, a probe's direction.
        site: where it takes the placeholder's place, such as "blocks.2.hook_resid_post".
        scale: length of what is put in, as a multiple of the length that the placeholders' values have
            there; None: the vector as it is (a hidden state has a length of its own).

    Raises MechlabError for a vector of length zero or another size than the site, a prompt without a
    placeholder, and one that leaves no room.
    """
    tokens, places = prompt.tokens(subject)
    if not float(vector.norm()) > 0:
        raise MechlabError("vector has length zero", list(vector.shape), "pass a direction")
    factor = 1.0
    if scale is not None:
        usual = read_sites(subject, tokens[None], [site])[site][0, places].norm(dim=-1).mean()
        factor = scale * float(usual) / float(vector.norm())
    if len(vector) != subject.site(site).dim:
        raise MechlabError("vector has another size than the site", len(vector), f"{site} has another")
    put = factor * vector

    def change(value: Float[Tensor, "batch pos dim"]) -> Float[Tensor, "batch pos dim"]:
        return put.to(value).expand_as(value)

    with editing(subject, site, change, places):
        said = continuations(subject, tokens[None], new_tokens, temperature=0.0)
        with_vector = _probabilities(subject, tokens, said[0])
    without = _probabilities(subject, tokens, said[0])
    text = subject.tokenizer.decode(said[0], skip_special_tokens=True)
    relevance = tuple((with_vector - without).tolist())
    return Account(text, tuple(said[0].tolist()), relevance, site, factor)


def explain_self(
    subject: Subject,
    vectors: Mapping[int, Float[Tensor, "dim"]],
    site: str,
    *,
    prompt: Prompt = IDENTITY,
    new_tokens: int = 8,
    scale: float | None = 1.0,
) -> list[Explanation]:
    """The subject's own accounts of features, as explanations with their relevance in ``about``.

    Args as for ``account``; ``vectors`` maps features to their directions.
    """
    found = []
    for feature, vector in sorted(vectors.items()):
        said = account(subject, vector, site, prompt=prompt, new_tokens=new_tokens, scale=scale)
        about: dict[str, Any] = {
            "site": site,
            "scale": said.scale,
            "relevance": said.mean_relevance,
            "prompt": f"{prompt.before}{' '.join([prompt.placeholder] * prompt.count)}{prompt.after}",
            "tokens": list(said.tokens),
        }
        found.append(Explanation(feature, EXPLAINER, said.text.strip(), about=about))
    return found


@torch.no_grad()
def _probabilities(
    subject: Subject, tokens: Int[Tensor, "pos"], said: Int[Tensor, "new"]
) -> Float[Tensor, "new"]:
    """Of each token said, given the prompt and what was said before it."""
    logits = subject.logits(torch.cat([tokens, said])[None])[0, len(tokens) - 1 : -1]
    return logits.double().softmax(-1).cpu().gather(-1, said[:, None])[:, 0]
