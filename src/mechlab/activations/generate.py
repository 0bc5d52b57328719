"""Activations while a model generates, through its own ``generate`` with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechlab.activations.capture import Activations, as_list, check_tokens, hooks, tidy
from mechlab.activations.selection import Selection
from mechlab.errors import MechlabError
from mechlab.models.sites import Site
from mechlab.models.subject import Chat, Subject


@dataclass(frozen=True)
class Generation(Activations):
    """Activations of prompts and of what the model went on with.

    ``tokens`` hold both. The last generated token of a text never runs through the model, so it
    has no activations: ``mask`` is False there, and no value is kept.

    Attributes:
        new: True on generated tokens ``[text, pos]``, the last one included.
        texts: what was generated, as text without special tokens.
    """

    new: Bool[Tensor, "text pos"]
    texts: tuple[str, ...]


def generation(
    subject: Subject,
    prompts: str | Chat | Sequence[str | Chat],
    sites: str | Sequence[str],
    *,
    max_new_tokens: int,
    select: Selection = Selection(bos=True),  # noqa: B008 (immutable)
    **options: Any,
) -> Generation:
    """Generate from each prompt and keep the activations of every token that ran through the model.

    Prompts run one at a time, so no padding disturbs them. Each token runs once: the prompt in
    one forward, then one token a forward, keys and values being cached.

    Args:
        prompts: one prompt or several; a prompt is a string or a chat, a list of {"role",
            "content"}, after which the assistant's turn begins.
        sites: one site name or several; not patterns, nor sites of the bridge.
        max_new_tokens: how many tokens to generate at most.
        select: which positions to keep, of prompt and new tokens alike; assistant turns cannot
            be chosen here, use ``new``.
        options: further arguments of the module's ``generate``; greedy decoding by default.

    Raises MechlabError for a missing site, a site that generation cannot give, a model that does
    not generate, and prompts that leave no room for the new tokens.
    """
    several = as_list(prompts)
    names = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
    places = [_usable(subject, name) for name in names]
    if not subject.causal:
        raise MechlabError("model does not generate", subject.name, "use a causal language model")
    if not several:
        raise MechlabError("no prompts were given", None, "pass at least one")
    if max_new_tokens < 1:
        raise MechlabError("number of new tokens must be positive", max_new_tokens, "ask for at least 1")
    if select.assistant:
        raise MechlabError("assistant turns cannot be selected here", None, "use the result's new mask")
    starts = [_start(subject, prompt, max_new_tokens) for prompt in several]
    found = [_generate(subject, places, start, max_new_tokens, options) for start in starts]
    width = max(len(tokens) for tokens, _ in found)
    tokens = torch.stack([torch.cat([row, row[-1:].expand(width - len(row))]) for row, _ in found])
    position = torch.arange(width)
    ends = torch.tensor([len(row) for row, _ in found])[:, None]
    mask = position < ends - 1
    new = (position >= torch.tensor([len(start) for start in starts])[:, None]) & (position < ends)
    chosen = select.chosen(subject, tokens, mask)
    values = {}
    for site in places:
        rows = [each[site.name] for _, each in found]
        padded = rows[0].new_zeros(len(rows), width, site.dim)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        values[site.name] = tidy(site, padded, chosen)
    texts = tuple(
        subject.tokenizer.decode(row[len(start) :], skip_special_tokens=True)
        for start, (row, _) in zip(starts, found, strict=True)
    )
    return Generation(values, tokens, mask, chosen, new, texts)


def _usable(subject: Subject, name: str) -> Site:
    site = subject.site(name)
    if site.pattern or site.side == "bridge":
        raise MechlabError(
            "site is not read while generating", name, "call activations() on the generated text"
        )
    return site


def _start(subject: Subject, prompt: str | Chat, max_new_tokens: int) -> Int[Tensor, "pos"]:
    """The prompt's tokens; MechlabError when they and the new ones do not fit."""
    tokens = subject.tokens(prompt, start_reply=not isinstance(prompt, str))
    if len(tokens) == 0:
        raise MechlabError("prompt has no tokens", repr(prompt), "pass some text")
    if len(tokens) + max_new_tokens > subject.n_ctx:
        raise MechlabError(
            "prompt and new tokens are longer than the model's context",
            f"{len(tokens)} + {max_new_tokens} tokens",
            f"at most {subject.n_ctx}",
        )
    check_tokens(subject, tokens[None])
    return tokens


def _generate(
    subject: Subject, sites: Sequence[Site], start: Int[Tensor, "pos"], limit: int, options: dict[str, Any]
) -> tuple[Int[Tensor, "_whole"], dict[str, Tensor]]:
    """All tokens of one text, and by site the values ``[pos, dim]`` of all but the last."""
    parts: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    tokens = start[None].to(subject.device)
    given = {
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": subject.tokenizer.pad_token_id or 0,
        # Every token of the prompt is real, one that equals the padding token too.
        "attention_mask": torch.ones_like(tokens),
        **options,
        "max_new_tokens": limit,
    }
    with hooks(subject, sites, lambda name, value: parts[name].append(value.clone()), [1], stop=False):
        out = subject.module.generate(tokens, **given)
    values = {name: torch.cat(each, dim=1) for name, each in parts.items()}
    if any(value.shape[:2] != (1, out.shape[1] - 1) for value in values.values()):
        raise MechlabError(
            "this way of generating does not run each token once", ", ".join(options), "leave options out"
        )
    return out[0].cpu(), {name: value[0] for name, value in values.items()}
