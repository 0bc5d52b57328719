"""Reading sites of a running model through hooks on its own modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.models.subject import Subject


class _Stop(Exception):
    """Ends a forward once the last wanted site has been read."""


@dataclass(frozen=True)
class Activations(Mapping[str, Tensor]):
    """Activations of a batch of texts, in memory: ``activations["blocks.2.hook_resid_post"]``.

    Attributes:
        sites: site name → ``[text, pos, dim]`` (``[text, pos, head, d_head]`` at per-head sites).
            Positions beyond a text's end hold zeros.
        tokens: token ids ``[text, pos]``.
        mask: True on real tokens ``[text, pos]``; BOS counts as real.
    """

    sites: dict[str, Float[Tensor, "text pos *dim"]]
    tokens: Int[Tensor, "text pos"]
    mask: Bool[Tensor, "text pos"]

    def __getitem__(self, site: str) -> Float[Tensor, "text pos *dim"]:
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


def activations(subject: Subject, texts: str | Sequence[str], sites: str | Sequence[str]) -> Activations:
    """Activations of a few texts, for a notebook.

    Args:
        subject: the model.
        texts: one text or several; each starts with BOS exactly once.
        sites: one site name or several (TransformerLens hook names).

    Raises MechlabError when a site does not exist, there is no text, or a text is
    longer than the model's context.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    sites = [sites] if isinstance(sites, str) else list(sites)
    if not texts:
        raise MechlabError("no texts were given", None, "pass at least one")
    rows = [subject.tokens(text) for text in texts]
    width = max(len(row) for row in rows)
    if min(len(row) for row in rows) == 0:
        raise MechlabError(
            "text has no tokens", repr(texts[[len(row) for row in rows].index(0)]), "pass some text"
        )
    if width > subject.n_ctx:
        raise MechlabError(
            "text is longer than the model's context", f"{width} tokens", f"at most {subject.n_ctx}"
        )
    # Padding repeats the last token: models warn when they meet their padding token without a mask.
    tokens = torch.stack([torch.cat([row, row[-1:].expand(width - len(row))]) for row in rows])
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        mask[i, : len(row)] = True
    found = read_sites(subject, tokens, sites)
    values = {}
    for name, value in found.items():
        site = subject.site(name)
        value = value.masked_fill(~mask[..., None].to(value.device), 0)
        values[name] = (
            value
            if site.heads is None
            else rearrange(value, "text pos (head d) -> text pos head d", head=site.heads)
        )
    return Activations(values, tokens, mask)


@torch.no_grad()
def read_sites(
    subject: Subject,
    tokens: Int[Tensor, "batch pos"],
    sites: Sequence[str],
) -> dict[str, Float[Tensor, "batch pos dim"]]:
    """Run the model on a right-padded batch and return the wanted sites, heads flattened.

    The forward stops after the last wanted site. Values at padded positions are meaningless.
    Raises MechlabError for a token that the model has no embedding for.
    """
    rows = subject.module.get_input_embeddings().num_embeddings
    if int(tokens.max()) >= rows:
        raise MechlabError(
            "token has no embedding",
            f"{int(tokens.max())} of {rows}",
            "use the tokenizer the model was trained with",
        )
    with reading(subject, sites) as found, contextlib.suppress(_Stop):
        # Padding stands on the right of a causal model, so no real position can see it and no
        # mask is needed; passing one would cost the attention kernel its fast path.
        subject.module(tokens.to(subject.device), use_cache=False)
    # Learned positions are the same for every row, and GPT-2 computes them once.
    return {name: value.expand(len(tokens), *value.shape[1:]) for name, value in found.items()}


@contextlib.contextmanager
def reading(subject: Subject, sites: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While open, every forward fills the yielded dictionary with the wanted sites.

    The forward is stopped after the last of them (callers suppress the signal through
    ``read_sites``). Hooks are removed on the way out, also after an exception.
    """
    wanted = [subject.site(name) for name in sites]
    order = list(subject.sites)
    found: dict[str, Tensor] = {}
    last = max(wanted, key=lambda site: order.index(site.name)).name if wanted else None

    def keep(name: str, value: Any) -> None:
        found[name] = subject.site(name).read(value).detach()
        if name == last and len(found) == len(set(sites)):
            raise _Stop

    with contextlib.ExitStack() as stack:
        for site in wanted:
            module = subject.module.get_submodule(site.module)
            if site.side == "input":
                handle = module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=site.name: keep(name, args or kwargs["hidden_states"]),
                    with_kwargs=True,
                )
            else:
                handle = module.register_forward_hook(lambda _, __, out, name=site.name: keep(name, out))
            stack.callback(handle.remove)
        yield found
