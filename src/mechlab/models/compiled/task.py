"""Prompt pairs for compiled models."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechlab.data.tasks import Task
from mechlab.errors import MechlabError, near
from mechlab.models.compiled.model import Compiled
from mechlab.models.compiled.truth import sequences

_PARTS = ("validation", "test")


def compiled_task(
    model: Compiled, n: int = 128, seed: int = 0, *, split: str | None = None, length: int | None = None
) -> Task:
    """Pairs of random sequences of one length, for which the model's outputs differ.

    ``answers`` are the model's own outputs on the clean sequences and ``wrong`` those on the corrupt
    ones, as places among its logits, at every position the program is read at: ``[n, read]``. Where the
    two are equal the logit difference is 0. A numerical output has a logit for the number and one that
    is always 0, so that a logit difference is the number, with its sign turned where the clean output
    is the lower one.

    Args:
        n: pairs wanted; there are fewer where there are not so many sequences. Clean prompts differ.
        seed: of the draw.
        split: "validation" and "test" are halves of the sequences without a prompt in common; all
            sequences when None.
        length: of the sequences, without BOS; the greatest when None.

    Raises:
        MechlabError: an unknown split, n below 1, a length that the program is not for, or sequences
            whose outputs are all the same.
    """
    if split is not None and split not in _PARTS:
        raise MechlabError("split does not exist", split, near(split, _PARTS))
    if n < 1:
        raise MechlabError("number of prompt pairs must be at least 1", n)
    program, generator = model.program, torch.Generator().manual_seed(seed)
    length = max(program.lengths) if length is None else length
    rows = sequences(program, length, 4 * n + 64, generator)
    rows = [row for row in rows if split is None or _part(row) == split]
    if not rows:
        raise MechlabError("split holds no sequences", split, "leave out the split")
    reads = torch.tensor(program.reads(length))
    tokens = model.encode(rows).cpu()
    with torch.no_grad():
        outputs = model(model.encode(rows)).logits.cpu()[:, reads]
    first, second = _pairs(outputs, n, generator)
    if len(first) == 0:
        raise MechlabError("outputs do not differ between sequences", program.name, "leave out the split")
    if model.numerical:
        # Where the numbers are equal both are the constant zero, and the difference is 0.
        gap = (outputs[first] - outputs[second])[..., 0]
        gap = torch.where(gap.abs() < 1e-5, 0, gap)
        answers, wrong = (gap <= 0).long(), (gap >= 0).long()
    else:
        answers, wrong = outputs[first].argmax(-1), outputs[second].argmax(-1)
    prompts = tuple(" ".join(map(str, row)) for row in rows)
    return Task(
        name=program.name,
        clean=tokens[first],
        corrupt=tokens[second],
        answers=answers,
        wrong=wrong,
        positions={"end": reads.expand(len(first), -1).contiguous()},
        prompts=tuple(prompts[row] for row in first.tolist()),
        corrupt_prompts=tuple(prompts[row] for row in second.tolist()),
    )


def _part(row: tuple[Any, ...]) -> str:
    digest = hashlib.sha256(" ".join(map(str, row)).encode()).digest()
    return _PARTS[digest[0] % 2]


def _pairs(
    outputs: Tensor, n: int, generator: torch.Generator
) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"]]:
    """Up to ``n`` different rows and, for each, another one whose outputs differ from its own."""
    order = torch.randperm(len(outputs), generator=generator)
    flat = outputs.flatten(1)
    first: list[int] = []
    second: list[int] = []
    for row in order.tolist():
        differs = ((flat - flat[row]).abs() > 1e-3).any(1).nonzero().flatten()
        if len(first) == n or len(differs) == 0:
            break
        first.append(row)
        second.append(int(differs[torch.randint(len(differs), (), generator=generator)]))
    return torch.tensor(first, dtype=torch.long), torch.tensor(second, dtype=torch.long)
