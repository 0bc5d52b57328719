"""Where heads attend: patterns of any prompt, and three scores on repeated random tokens.

These need forward passes: attention depends on what the model made of the tokens. Prompts are a BOS and
L random tokens, twice over (Elhage et al. 2021; Olsson et al. 2022, *In-context learning and induction
heads*). Per head, mean attention over the positions i of the second copy:

    previous   to i − 1
    duplicate  to i − L, the token's first occurrence
    induction  to i − L + 1, the token after it

Uniform attention over what is visible gives ``chance``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.models.forward import DecomposedForward

ATTENTION_SCORES = ("previous", "duplicate", "induction")


@dataclass(frozen=True)
class AttentionScores:
    """Mean attention of every head, by ``ATTENTION_SCORES``.

    Attributes:
        previous, duplicate, induction: layer × head, from 0 to 1.
        chance: the same for uniform attention.
    """

    previous: Float[Tensor, "layer head"]
    duplicate: Float[Tensor, "layer head"]
    induction: Float[Tensor, "layer head"]
    chance: float


@torch.no_grad()
def attention_patterns(
    forward: DecomposedForward, tokens: Int[Tensor, "batch pos"]
) -> Iterator[Float[Tensor, "batch head pos key"]]:
    """How much every head attends from each position to each other, layer by layer; rows sum to 1.

    The model runs as it is; then every layer's attention mixes one-hot positions in place of values,
    and what comes out is the pattern itself.
    """
    traces = forward.run(tokens.to(forward.device), stop=forward.shape.n_layers, trace=True).traces
    one_hot = torch.eye(tokens.shape[1])
    for trace in traces:
        if trace.stage.kind == "attention":
            q, k, v = trace.parts
            places = one_hot.to(v)[None, :, None].expand(len(v), -1, v.shape[2], -1)
            mixed = forward.attend(forward.attentions[trace.stage.layer], q, k, places)
            yield mixed.transpose(1, 2)


def attention_scores(
    forward: DecomposedForward,
    tokens: Int[Tensor, "token"],
    *,
    bos: int | None = None,
    n: int = 16,
    length: int = 24,
    seed: int = 0,
) -> AttentionScores:
    """Previous-token, duplicate-token and induction scores on repeated random tokens.

    Args:
        tokens: what to draw from, without repeats where there are enough of them.
        bos: first token of every prompt; none when None.
        n: prompts; ``length`` tokens are repeated once in each.

    Raises MechlabError for fewer than two tokens, a length below 2, or no prompts.
    """
    if min(len(tokens), length) < 2 or n < 1:
        given = f"{len(tokens)} tokens, length {length}, {n} prompts"
        raise MechlabError("repeated random tokens need two tokens, a length of 2 and a prompt", given)
    generator = torch.Generator().manual_seed(seed)
    if len(tokens) >= length:
        drawn = torch.stack([torch.randperm(len(tokens), generator=generator)[:length] for _ in range(n)])
    else:
        drawn = torch.randint(len(tokens), (n, length), generator=generator)
    half = tokens.cpu()[drawn]
    start = [] if bos is None else [torch.full((n, 1), bos)]
    prompts = torch.cat([*start, half, half], 1)
    rows = torch.arange(prompts.shape[1] - length, prompts.shape[1])
    keys = {"previous": rows - 1, "duplicate": rows - length, "induction": rows - length + 1}
    found: dict[str, list[Tensor]] = {name: [] for name in keys}
    for pattern in attention_patterns(forward, prompts):
        for name, columns in keys.items():
            found[name].append(pattern[:, :, rows, columns].mean((0, 2)).cpu())
    visible = rows + 1 if forward.attentions[0].causal else prompts.shape[1] + 0 * rows
    chance = float((1 / visible).mean())
    return AttentionScores(**{name: torch.stack(layers) for name, layers in found.items()}, chance=chance)
