"""What a model expects after each token of a stored text, and how features raise or lower that.

The direct contribution of feature f to the logit of token t, at a position where it has activation a:

    c(f, t) = a · fold(d_f) · (u_t − ū) / σ

with d_f what the feature adds to the residual stream per unit of activation, u_t the column of the
unembedding, ū its mean over the vocabulary, fold(·) the final norm's linear part and σ that norm's
denominator at the position (see ``mechlab.features.logits``, which leaves σ out). The unit is logits
above the mean logit. It is an approximation of what the feature does: σ is held at the value it has
with the feature there, and what later layers make of the feature is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch import Tensor

from mechlab.activations.capture import check_tokens, read_sites
from mechlab.errors import MechlabError
from mechlab.features.logits import centred_unembedding, dictionary_directions
from mechlab.features.text import Text
from mechlab.models.subject import Subject
from mechlab.models.weights import AnyNorm, read_weights
from mechlab.sae.splice import Placed

GUESSES = 5


@dataclass(frozen=True)
class NextTokens:
    """What the model expects after each row of a part of a text.

    Attributes:
        known: False where the context cannot be put together again from the rows that are stored
            (when only some of its tokens were kept): the other fields mean nothing there.
        guess: token ids, the most likely first.
        probability: theirs.
        scale: 1/σ of the final norm; ones without contributions.
    """

    known: Bool[np.ndarray, "row"]
    guess: Int64[np.ndarray, "row guess"]
    probability: Float32[np.ndarray, "row guess"]
    scale: Float32[np.ndarray, "row"]


class Reader:
    """A model, and a dictionary's features as directions in its residual stream.

    Args:
        dictionary: without one there are no contributions.
        signs: as for ``index_dictionary``.

    Attributes:
        why: why there are no contributions; empty when there are.

    Raises MechlabError for a model that does not predict the next token.
    """

    def __init__(self, subject: Subject, dictionary: Placed | None = None, *, signs: bool = False) -> None:
        if not subject.causal:
            raise MechlabError("model does not predict the next token", subject.name, "leave it out")
        self.subject, self.why = subject, ""
        self._directions: Tensor | None = None
        self._unembed: Tensor | None = None
        self._norm: AnyNorm | None = None
        if dictionary is None:
            self.why = "no dictionary was given"
            return
        try:
            self._directions = dictionary_directions(subject, dictionary, signs=signs)
            self._unembed = centred_unembedding(subject)
            self._norm = read_weights(subject.module).final_norm
        except MechlabError as error:  # a site that writes nothing to the stream, an unknown architecture
            self.why = str(error)

    @torch.no_grad()
    def expect(self, text: Text, start: int, stop: int) -> NextTokens:
        """What the model expects after each of the rows ``start`` to ``stop``."""
        count, top = stop - start, min(GUESSES, self.subject.module.get_input_embeddings().num_embeddings)
        found = NextTokens(
            np.zeros(count, bool),
            np.zeros((count, top), np.int64),
            np.zeros((count, top), np.float32),
            np.ones(count, np.float32),
        )
        at = start
        while at < stop:
            first, last = _context(text, at)
            ids = _together_again(text, first, last, self.subject)
            here = np.arange(at, min(last, stop))
            if ids is not None:
                place = torch.from_numpy(text.position[here].astype(np.int64))
                logits = self.subject.logits(ids[None])[0].float().cpu()[place]
                best = logits.softmax(-1).topk(top)
                found.known[here - start] = True
                found.guess[here - start] = best.indices.numpy()
                found.probability[here - start] = best.values.numpy()
                if self._norm is not None:
                    site = f"blocks.{self.subject.module.config.num_hidden_layers - 1}.hook_resid_post"
                    stream = read_sites(self.subject, ids[None], [site])[site]
                    inverse = self._norm.scale(stream)[1].float().cpu()
                    found.scale[here - start] = inverse[0, place, 0].numpy()
            at = int(here[-1]) + 1
        return found

    @torch.no_grad()
    def contributions(
        self,
        features: Int[np.ndarray, "pair"],
        tokens: Int[np.ndarray, "pair"],
        values: Float32[np.ndarray, "pair"],
        scale: Float32[np.ndarray, "pair"],
    ) -> Float32[np.ndarray, "pair"]:
        """The direct contribution of each feature to the logit of the token beside it, in logits.

        Args:
            values: activations.
            scale: 1/σ where they are.

        Raises MechlabError where ``why`` says why not.
        """
        if self._directions is None or self._unembed is None:
            raise MechlabError("contributions are not known", self.why, "ask for activations only")
        rows = self._directions[torch.from_numpy(features.astype(np.int64))].to(self._unembed)
        columns = self._unembed[:, torch.from_numpy(tokens.astype(np.int64))]
        effect = torch.einsum("pd,dp->p", rows, columns).float().cpu().numpy()
        found: np.ndarray = effect * values * scale
        return found


def _context(text: Text, row: int) -> tuple[int, int]:
    """First and last row (exclusive) of the forward pass that a row is in."""
    first, last, context = row, row + 1, text.context[row]
    while first > 0 and text.context[first - 1] == context:
        first -= 1
    while last < len(text) and text.context[last] == context:
        last += 1
    return first, last


def _together_again(text: Text, first: int, last: int, subject: Subject) -> Int[Tensor, "pos"] | None:
    """Tokens of a context with BOS where it was; None when other tokens are missing too."""
    position, tokens = text.position[first:last].astype(np.int64), text.tokens[first:last]
    steps = np.diff(position, prepend=-1)
    # BOS stands at the start and, when contexts are packed, between documents: nowhere else, and once.
    gaps = np.flatnonzero(steps != 1)
    starts = text.starts[first:last]
    if (steps[gaps] != 2).any() or not starts[gaps].all() or (len(gaps) and subject.bos is None):
        return None
    ids = torch.full((int(position[-1]) + 1,), subject.bos or 0, dtype=torch.long)
    ids[torch.from_numpy(position)] = torch.from_numpy(tokens.astype(np.int64))
    if len(ids) > subject.n_ctx:
        return None
    check_tokens(subject, ids[None])
    return ids
