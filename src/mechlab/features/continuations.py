"""What a causal model says next, and how probable it finds what is said: for scorers that use a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.models.subject import Subject


@torch.no_grad()
def continuations(
    subject: Subject,
    tokens: Int[Tensor, "text pos"],
    count: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "text count"]:
    """``count`` tokens that the model goes on with, for prompts of one length.

    Drawn by adding Gumbel noise to the logits and taking the largest, which is sampling from the
    softmax. The noise follows from the generator alone, so two runs from equal generators, one of
    them edited, differ by the edit and not by luck. Edits that are open (``editing``) act.

    Args:
        tokens: prompts, BOS included where the model has one.
        temperature: 0 is greedy, and needs no generator.

    Raises MechlabError for a model that is not causal, prompts that leave no room for the new
    tokens, and sampling without a generator.
    """
    _require_room(subject, tokens.shape[1] + count)
    written = next_tokens(subject, tokens, temperature=temperature, generator=generator)
    return torch.cat([tokens[:, :0].cpu(), *(new[:, None] for new in islice(written, count))], dim=1)


@torch.no_grad()
def next_tokens(
    subject: Subject,
    tokens: Int[Tensor, "text pos"],
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Int[Tensor, "text"]]:
    """What ``continuations`` is made of, token by token and without end, for a caller that may stop.

    Each token costs a forward of one position where the model can keep keys and values, so an edit
    that stays open must be the same for every position it is given (``editing`` with positions is).
    Arguments and errors as for ``continuations``.
    """
    _require_causal(subject)
    if temperature > 0 and generator is None:
        raise MechlabError("sampling needs a generator", temperature, "pass generator=, or temperature=0.0")
    keeps = "past_key_values" in inspect.signature(subject.module.forward).parameters
    seen = new = tokens.to(subject.device)
    past = None
    while True:
        _require_room(subject, seen.shape[1] + 1)
        if keeps:
            told = subject.module(new, past_key_values=past, use_cache=True)
            past, logits = told.past_key_values, told.logits[:, -1].float().cpu()
        else:
            logits = subject.logits(seen)[:, -1].float().cpu()
        if temperature > 0:
            draw = torch.rand(logits.shape, generator=generator).clamp_min(1e-20)
            logits = logits / temperature - torch.log(-torch.log(draw))
        new = logits.argmax(-1, keepdim=True).to(seen)
        seen = torch.cat([seen, new], dim=1)
        yield new[:, 0].cpu()


@torch.no_grad()
def log_probabilities(
    subject: Subject, pairs: Sequence[tuple[str, str]], *, batch: int = 16
) -> Float[np.ndarray, "pair"]:
    """log p(second | first) of pairs of texts, in nats, summed over the tokens of the second.

    The halves are tokenised apart, so that a text has the same tokens after every prefix and
    differences are due to the prefix alone. Pairs run in batches padded on the right, which a
    causal model cannot see. 0 where the second is empty, NaN where a pair is longer than the context.

    Raises MechlabError for a model that is not causal.
    """
    _require_causal(subject)
    firsts = [subject.tokens(first).tolist() for first, _ in pairs]
    seconds = [subject.tokenizer.encode(second, add_special_tokens=False) for _, second in pairs]
    lengths = [len(first) + len(second) for first, second in zip(firsts, seconds, strict=True)]
    if any(not first for first in firsts):
        raise MechlabError("prefix has no tokens", "''", "this model has no BOS; pass some text")
    found = np.full(len(pairs), np.nan)
    short = [pair for pair, length in enumerate(lengths) if length <= subject.n_ctx]
    order = sorted(short, key=lambda pair: lengths[pair])
    for begin in range(0, len(order), batch):
        members = order[begin : begin + batch]
        rows = torch.zeros(len(members), lengths[members[-1]], dtype=torch.long)
        for place, pair in enumerate(members):
            rows[place, : lengths[pair]] = torch.tensor(firsts[pair] + seconds[pair])
        logits = subject.logits(rows)
        for place, pair in enumerate(members):
            start, stop = len(firsts[pair]), lengths[pair]
            said = logits[place, start - 1 : stop - 1].double().log_softmax(-1)
            chosen = said.gather(-1, rows[place, start:stop, None].to(said.device))
            found[pair] = float(chosen.sum())
    return found


def _require_causal(subject: Subject) -> None:
    if not subject.causal:
        raise MechlabError("model does not predict a next token", subject.name, "use a causal language model")


def _require_room(subject: Subject, length: int) -> None:
    if length > subject.n_ctx:
        raise MechlabError(
            "text is longer than the model's context",
            f"{length} tokens",
            f"{subject.name} takes {subject.n_ctx}; shorten the windows or the explanation",
        )
