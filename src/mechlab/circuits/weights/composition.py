"""How much later heads read what earlier heads write, from weights alone.

Composition scores (Elhage et al. 2021, *A mathematical framework for transformer circuits*), for an
earlier head 1 with W_OV = W_V·W_O and a later head 2, in matrices that act on rows:

    Q:  ‖W_OV1 · W_Q2 W_K2ᵀ‖ / (‖W_OV1‖ ‖W_Q2 W_K2ᵀ‖)
    K:  ‖W_OV1 · W_K2 W_Q2ᵀ‖ / (‖W_OV1‖ ‖W_Q2 W_K2ᵀ‖)
    V:  ‖W_OV1 · W_V2 W_O2‖  / (‖W_OV1‖ ‖W_V2 W_O2‖)      (Frobenius norms)

Random matrices of these shapes do not give 0, so their mean score is subtracted. High scores say that a
head could listen, not that it does: they know nothing of what is written.
Positions, rotary embeddings and biases are left out, as in the source.

Channels (Merullo et al. 2024, *Talking heads: understanding inter-layer communication in transformer
language models*): the same score for one singular component σ·u·vᵀ of W_OV1 at a time, which is
‖vᵀW‖ / ‖W‖ for the reader's matrix W. A random direction scores 1/√d_model (root mean square).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.circuits.weights.heads import Heads
from mechlab.errors import MechlabError, near

PARTS = ("q", "k", "v")
_DRAWS = 32


@dataclass(frozen=True)
class Composition:
    """Composition of all pairs of heads through one of the reader's inputs.

    Attributes:
        part: "q", "k" or "v".
        scores: earlier head × later head, less ``baseline``; NaN where the second is not in a later layer.
        baseline: mean score of random matrices of the same shapes.
    """

    part: str
    scores: Float[Tensor, "head head"]
    baseline: float


@torch.no_grad()
def composition(heads: Heads, part: str, *, seed: int = 0) -> Composition:
    """Composition scores of all pairs of heads; MechlabError for an unknown part."""
    left, right = reads(heads, part)
    write = _reduced(heads.value, heads.output)
    read = _reduced(right.transpose(1, 2), left.transpose(1, 2))
    scores = heads.value.new_full((len(heads.value), len(heads.value)), torch.nan)
    for later in range(heads.n_heads, len(scores), heads.n_heads):
        rows = slice(later - heads.n_heads, later)
        scores[rows, later:] = _ratios(write[0][rows], write[1][rows], read[0][later:], read[1][later:])
    baseline = random_composition(heads.value.shape[1], heads.value.shape[2], seed=seed)
    return Composition(part, scores - baseline, baseline)


def random_composition(d_model: int, d_head: int, *, seed: int = 0) -> float:
    """Mean composition score of unrelated Gaussian matrices of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    value, output, left, right = (
        torch.randn(_DRAWS, *shape, generator=generator)
        for shape in ((d_model, d_head), (d_head, d_model), (d_model, d_head), (d_head, d_model))
    )
    write = _reduced(value, output)
    read = _reduced(right.transpose(1, 2), left.transpose(1, 2))
    # Every writer with every reader: _DRAWS² pairs, all of them independent of each other's content.
    return float(_ratios(*write, *read).mean())


@dataclass(frozen=True)
class Channels:
    """What each singular component of a writer puts into a reader.

    Attributes:
        writer, reader: such as "a2.h1" and "a3.h0.q".
        scores: composition score of each component, the writer's largest first.
        sizes: the writer's singular values.
        directions: what each component writes, unit vectors in the stream.
        chance: the score of a random direction, 1/√d_model.
    """

    writer: str
    reader: str
    scores: Float[Tensor, "component"]
    sizes: Float[Tensor, "component"]
    directions: Float[Tensor, "component d_model"]
    chance: float


@torch.no_grad()
def channels(heads: Heads, writer: str, reader: str) -> Channels:
    """Decompose what one head writes into what another, through q, k or v, reads of it.

    Args:
        writer: a head, such as "a2.h1".
        reader: a head and its input, such as "a3.h0.q".

    Raises MechlabError for an unknown head or input, or a reader in no later layer.
    """
    name, _, part = reader.rpartition(".")
    source, target = heads.row(writer), heads.row(name)
    if source // heads.n_heads >= target // heads.n_heads:
        raise MechlabError("reader is in no later layer than the writer", f"{writer} → {reader}")
    _, sizes, directions = torch.linalg.svd(heads.value[source] @ heads.output[source], full_matrices=False)
    width = heads.value.shape[2]
    sizes, directions = sizes[:width], directions[:width]
    left, right = reads(heads, part)
    matrix = left[target] @ right[target]
    scores = (directions @ matrix).norm(dim=1) / matrix.norm()
    return Channels(writer, reader, scores, sizes, directions, matrix.shape[0] ** -0.5)


def reads(
    heads: Heads, part: str
) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head d_model"]]:
    """Two factors of the matrix with which every head reads through q, k or v; the first reads the stream.

    Raises MechlabError for an unknown part.
    """
    if part not in PARTS:
        raise MechlabError("heads have no such input", part, near(part, PARTS))
    if part == "v":
        return heads.value, heads.output
    query, key = heads.query, heads.key
    return (query, key.transpose(1, 2)) if part == "q" else (key, query.transpose(1, 2))


def _reduced(
    outer: Float[Tensor, "head d_model d_head"], inner: Float[Tensor, "head d_head d_model"]
) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, "head"]]:
    """``outer · inner`` without the rows of it that change no norm, and its norm.

    outer = Q·R with orthonormal columns in Q, so ‖outer·inner·A‖ = ‖R·inner·A‖ for any A.
    """
    inner = torch.linalg.qr(outer).R @ inner
    return inner, inner.flatten(1).norm(dim=1)


def _ratios(
    write: Tensor, write_norm: Tensor, read: Tensor, read_norm: Tensor
) -> Float[Tensor, "writer reader"]:
    """‖writer · readerᵀ‖ / (‖writer‖ ‖reader‖) of every pair, one writer at a time to save memory."""
    norms = [(each @ read.transpose(1, 2)).flatten(1).norm(dim=1) for each in write]
    return torch.stack(norms) / write_norm[:, None] / read_norm
