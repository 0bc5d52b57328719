"""Which edges of a compiled model matter: three truths, kept apart.

A circuit found under one ablation cannot be judged by what another one needs. In Tracr's reverse
program 10 edges are needed when a removed edge carries nothing and 2 when it carries the value of
another sequence of the same length (Miller et al. 2024, *Transformer circuit faithfulness metrics
are not robust*), while 13 edges connect directions that are written to directions that are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.errors import MechlabError, near
from mechlab.models.compiled.model import Compiled
from mechlab.models.compiled.programs import Program
from mechlab.models.forward import DecomposedForward, Stage

KINDS = ("weights", "zero", "resample")
# Outputs are sums of ones and fractions with small denominators: a smaller change is rounding.
TOLERANCE = 1e-3
_ENUMERATED = 4096


def truth(
    model: Compiled, kind: str, *, limit: int = 1024, partners: int = 4, seed: int = 0
) -> Bool[Tensor, "n_sources n_readers"]:
    """The edges of a compiled model that matter.

    Args:
        kind: "weights": the source writes a direction that the reader reads. "zero", "resample":
            removing this edge alone changes an output that is read, for some sequence; the removed
            edge carries nothing, or what its source writes for another random sequence of the same
            length. An edge that is not one of "weights" cannot be needed, and is not tried.
        limit: sequences of each length: all valid ones where there are no more, else random ones.
        partners: other sequences that each sequence is tried with, for "resample".
        seed: of the draws.

    An edge that another can stand in for in every sequence would be missed by "zero" and "resample";
    the programs here have none, and the edges of "zero" alone do what the model does (tested).

    Raises:
        MechlabError: an unknown kind.
    """
    if kind not in KINDS:
        raise MechlabError("unknown kind of truth", kind, near(kind, KINDS))
    connected = _by_weights(model)
    if kind == "weights":
        return connected
    forward, needed = DecomposedForward(model), torch.zeros_like(connected)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for length in model.program.lengths:
            tokens = model.encode(sequences(model.program, length, limit, generator))
            reads = list(model.program.reads(length))
            own = model(tokens).logits[:, reads]
            others: Iterable[Tensor | None] = [None]
            if kind == "resample":
                others = _others(forward, tokens, partners, generator)
            for other in others:
                for row, column in (connected & ~needed).nonzero().tolist():
                    removed = torch.zeros_like(connected)
                    removed[row, column] = True
                    changed = without(forward, tokens, removed, other)[:, reads] - own
                    needed[row, column] = bool((changed.abs() > TOLERANCE).any())
    return needed


def _others(
    forward: DecomposedForward, tokens: Tensor, partners: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """The sources' outputs for other sequences of the batch, a different one in each round."""
    order = torch.randperm(len(tokens), generator=generator).to(tokens.device)
    for shift in range(1, min(partners + 1, len(tokens))):
        partner = torch.empty_like(order)
        partner[order] = order.roll(shift)
        sources = forward.run(tokens[partner], keep=True).sources
        assert sources is not None
        yield sources


def without(
    forward: DecomposedForward,
    tokens: Int[Tensor, "batch pos"],
    removed: Bool[Tensor, "n_sources n_readers"],
    other: Float[Tensor, "source batch pos d_model"] | None = None,
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the run in which the removed edges carry ``other``, or nothing.

    The plainest form of the masked forward, edge by edge, for small models.
    """
    found: list[Tensor] = []

    def write(stage: Stage, outputs: Tensor) -> Tensor:
        found.extend(outputs)
        return outputs

    def read(stage: Stage, stream: Tensor) -> Tensor:
        if not removed[:, stage.readers].any():
            return stream
        streams = []
        for column in range(stage.readers.start, stage.readers.stop):
            seen = stream
            for row in removed[:, column].nonzero().flatten().tolist():
                seen = seen - found[row] + (0 if other is None else other[row])
            streams.append(seen)
        return torch.stack(streams)

    logits = forward.run(tokens, read=read, write=write).logits
    assert logits is not None
    return logits


def sequences(program: Program, length: int, limit: int, generator: torch.Generator) -> list[tuple[Any, ...]]:
    """At most ``limit`` different valid sequences of one length, in random order where there are more.

    Raises:
        MechlabError: the program is not for this length.
    """
    if length not in program.lengths:
        raise MechlabError(f"{program.name} is not for sequences of length", length, f"use {program.lengths}")
    words = program.vocabulary
    if len(words) ** length <= _ENUMERATED:
        every: Sequence[tuple[Any, ...]] = list(itertools.product(words, repeat=length))
    else:
        drawn = torch.randint(len(words), (2 * limit, length), generator=generator).tolist()
        every = list(dict.fromkeys(tuple(words[place] for place in row) for row in drawn))
    valid = [row for row in every if program.valid(row)]
    if len(valid) <= limit:
        return valid
    return [valid[place] for place in torch.randperm(len(valid), generator=generator)[:limit].tolist()]


def _by_weights(model: Compiled) -> Bool[Tensor, "n_sources n_readers"]:
    """Edges from a direction that is written to one that is read; directions are the basis."""
    shape = DecomposedForward(model).shape
    score = model.query @ model.key.transpose(-1, -2)
    mixed = model.value @ model.output
    embedded = torch.cat([model.embedding.weight, model.positions])
    written, read = [(embedded != 0).any(0)], []
    for layer, mlp in enumerate(model.mlps):
        into, out = mlp[0].weight, mlp[2].weight  # type: ignore[index]
        used = (into != 0).any(1) & (out != 0).any(0)
        written += [*(mixed[layer] != 0).any(1), (out[:, used] != 0).any(1)]
        read += [*(score[layer] != 0).any(2), *(score[layer] != 0).any(1), *(mixed[layer] != 0).any(2)]
        read.append((into[used] != 0).any(0))
    read.append((model.unembed.weight != 0).any(0))
    meets = torch.stack(written).float() @ torch.stack(read).float().T > 0
    for stage in shape.stages:
        meets[stage.upstream :, stage.readers] = False
    return meets.cpu()
