"""What heads say about the token they attend to, from weights alone: copying and succession.

A token's *effective embedding* is what the first MLP makes of it: early layers mostly add to the
embedding what is known of the token. Through a head's OV circuit and the unembedding it becomes logits:

    logits(t) = x_t · W_V · W_O · W_U

with the norms before the head and the unembedding folded in and their scales left out, which changes no
ranking. Attention biases, positions and the first layer's attention are left out too.

    copying      the token itself is among the k highest logits (Wang et al. 2022, who take the stream
                 after the first MLP: embedding and MLP output)
    suppressing  it is among the k lowest: the copying score of −W_OV (their negative name movers)
    succession   the next member of an ordinal sequence is the highest of the sequence's members (Gould
                 et al. 2023, *Successor heads*, who take the first MLP's output without the embedding)
    positivity   Σ Re λ / Σ |λ| over the eigenvalues of the whole map from tokens to logits: 1 where every
                 token raises itself and its like (Elhage et al. 2021)

The control of every score is heads with Gaussian W_V and W_O in the same model: what embedding,
unembedding and norms make of a head that knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechlab.circuits.weights.heads import Heads, read_heads
from mechlab.errors import MechlabError
from mechlab.models.weights import Weights, at_least_single, read_weights

_CONTROLS = 16
_CHUNK = 4096
# What each token gives a head to write, and what the head writes with; or the logits they make.
_FactorScore = Callable[[Tensor, Tensor], float]
_LogitScore = Callable[[Tensor], float]


@dataclass(frozen=True)
class HeadScores:
    """A score of every head, next to random heads.

    Attributes:
        name: what was scored.
        scores: layer × head.
        control: the same of random heads in the same model.
    """

    name: str
    scores: Float[Tensor, "layer head"]
    control: Float[Tensor, "draw"]

    @property
    def beyond_control(self) -> Float[Tensor, "layer head"]:
        """1.0 where a head scores higher than every random head, else 0.0."""
        return (self.scores > self.control.max()).to(self.scores.dtype)


def copying_scores(
    module: nn.Module,
    tokens: Int[Tensor, "token"],
    *,
    top: int = 5,
    suppress: bool = False,
    seed: int = 0,
) -> HeadScores:
    """Share of tokens that a head copies: the token is among the ``top`` of all logits it writes.

    Args:
        tokens: such as all names.
        suppress: score −W_OV instead: the token is among the lowest.

    Raises MechlabError without tokens, or when ``top`` is not between 1 and the vocabulary's size.
    """
    vocabulary = _Vocabulary(module, tokens, embedding=True)
    if not 1 <= top <= vocabulary.unembed.shape[1]:
        raise MechlabError("top must be between 1 and the vocabulary's size", top)
    sign = -1.0 if suppress else 1.0

    def share(logits: Tensor) -> float:
        own = logits.gather(1, tokens.to(logits.device)[:, None])
        return float(((sign * logits > sign * own).sum(1) < top).double().mean())

    return vocabulary.scored("suppressing" if suppress else "copying", share, seed)


def successor_scores(
    module: nn.Module, sequences: Sequence[Int[Tensor, "_length"]], *, seed: int = 0
) -> HeadScores:
    """Share of members of ordinal sequences whose successor has the highest logit among the members.

    Args:
        sequences: token ids in order, such as those of the weekdays.

    A member never competes with another sequence's. Raises MechlabError without a sequence of at
    least three members.
    """
    long = [sequence for sequence in sequences if len(sequence) >= 3]
    if not long:
        raise MechlabError("succession needs a sequence of at least three tokens", len(sequences))
    vocabulary = _Vocabulary(module, torch.cat(long), embedding=False)

    def share(logits: Tensor) -> float:
        right, first = [], 0
        for sequence in long:
            members = sequence.to(logits.device)
            among = logits[first : first + len(members), members]
            first += len(members)
            right += [float(among[at].argmax() == after) for at, after in pairwise(range(len(members)))]
        return sum(right) / len(right)

    return vocabulary.scored("succession", share, seed)


def eigenvalue_positivity(
    module: nn.Module, tokens: Int[Tensor, "token"] | None = None, *, seed: int = 0
) -> HeadScores:
    """Σ Re λ / Σ |λ| of each head's map from tokens to logits, from −1 to 1.

    Args:
        tokens: the map is restricted to these on both sides; the whole vocabulary when None.

    The map has rank d_head: its eigenvalues are those of W_O·W_U·X·W_V, a small matrix. Raises
    MechlabError for no tokens.
    """
    if tokens is None:
        tokens = torch.arange(folded_unembedding(read_weights(module)).shape[1])
    vocabulary = _Vocabulary(module, tokens, embedding=True)
    unembed = vocabulary.unembed[:, tokens.to(vocabulary.unembed.device)]

    def positivity(reads: Tensor, writes: Tensor) -> float:
        values = torch.linalg.eigvals((writes @ unembed) @ reads)
        return float(values.real.sum() / values.abs().sum())

    return vocabulary.scored_by_factors("positivity", positivity, seed)


class _Vocabulary:
    """Effective embeddings and the folded unembedding of a model, ready for heads to be put between."""

    @torch.no_grad()
    def __init__(self, module: nn.Module, tokens: Int[Tensor, "token"], *, embedding: bool) -> None:
        if len(tokens) == 0:
            raise MechlabError("no tokens to score heads on")
        weights = read_weights(module)
        self.heads: Heads = read_heads(module)
        self.unembed = folded_unembedding(weights)
        outside = tokens[(tokens < 0) | (tokens >= self.unembed.shape[1])]
        if len(outside):
            raise MechlabError(
                "token is not in the model's vocabulary",
                int(outside[0]),
                f"tokens are 0 … {self.unembed.shape[1] - 1}",
            )
        self.unit = effective_embeddings(weights, tokens, embedding=embedding)

    @torch.no_grad()
    def scored_by_factors(self, name: str, score: _FactorScore, seed: int) -> HeadScores:
        heads = self.heads
        found = [score(self.unit @ v, o) for v, o in zip(heads.value, heads.output, strict=True)]
        generator = torch.Generator().manual_seed(seed)
        control = []
        for _ in range(_CONTROLS):
            v, o = (
                torch.randn(shape, generator=generator).to(self.unit)
                for shape in (heads.value.shape[1:], heads.output.shape[1:])
            )
            control.append(score(self.unit @ v, o))
        return HeadScores(
            name, torch.tensor(found).view(heads.n_layers, heads.n_heads), torch.tensor(control)
        )

    def scored(self, name: str, score: _LogitScore, seed: int) -> HeadScores:
        return self.scored_by_factors(
            name, lambda reads, writes: score(reads @ (writes @ self.unembed)), seed
        )


@torch.no_grad()
def effective_embeddings(
    weights: Weights, tokens: Int[Tensor, "token"], *, embedding: bool
) -> Float[Tensor, "token d_model"]:
    """What the first MLP makes of each token alone, scaled as the heads' norms scale it.

    Args:
        embedding: add the token's embedding to the MLP's output.
    """
    found = []
    device = weights.attentions[0].output.device
    for first in range(0, len(tokens), _CHUNK):
        chunk = tokens[first : first + _CHUNK].to(device)
        x = weights.embedding(chunk)[None]
        made = weights.mlps[0](weights.mlp_norms[0](x))
        made = made + x if embedding else made
        scaled, _ = weights.attentions[0].norm.scale(made)
        found.append(at_least_single((made if scaled is None else scaled)[0]))
    return torch.cat(found)


@torch.no_grad()
def folded_unembedding(weights: Weights) -> Float[Tensor, "d_model d_vocab"]:
    """W_U with the final norm folded in, without biases."""
    basis = torch.eye(weights.attentions[0].output.shape[-1]).to(weights.attentions[0].output)
    matrix = weights.unembed(basis) - weights.unembed(torch.zeros_like(basis[:1]))
    return at_least_single(weights.final_norm.fold(matrix[None], None)[0][0])
