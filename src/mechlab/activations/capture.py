"""Reading sites of a running model through hooks on its own modules."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechlab.activations.selection import Selection
from mechlab.errors import MechlabError
from mechlab.models.sites import Site
from mechlab.models.subject import Chat, Subject

Keep = Callable[[str, Tensor], None]
# run(tokens: [batch, pos], mask: [batch, pos] | None = None): a forward of a right-padded batch.
Run = Callable[..., None]


class _Stop(Exception):
    """Ends a forward once the last wanted site has been read."""


@dataclass(frozen=True)
class Activations(Mapping[str, Tensor]):
    """Activations of a batch of texts, in memory: ``activations["blocks.2.hook_resid_post"]``.

    Attributes:
        sites: site name → ``[text, pos, dim]``; ``[text, pos, head, d_head]`` at per-head sites;
            ``[text, head, query, key]`` for patterns. Positions that were not chosen hold zeros.
        tokens: token ids ``[text, pos]``.
        mask: True on real tokens ``[text, pos]``; BOS counts as real.
        chosen: True on the positions that were selected ``[text, pos]``, all of them real.
    """

    sites: dict[str, Float[Tensor, "text _ *_dim"]]
    tokens: Int[Tensor, "text pos"]
    mask: Bool[Tensor, "text pos"]
    chosen: Bool[Tensor, "text pos"]

    def __getitem__(self, site: str) -> Float[Tensor, "text _ *_dim"]:
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


def activations(
    subject: Subject,
    texts: str | Chat | Sequence[str | Chat],
    sites: str | Sequence[str],
    select: Selection = Selection(bos=True),  # noqa: B008 (immutable)
) -> Activations:
    """Activations of a few texts, for a notebook.

    Args:
        subject: the model.
        texts: one text or several; a text is a string or a chat, a list of {"role", "content"}.
            Each starts with BOS exactly once.
        sites: one site name or several (TransformerLens hook names), or single heads of them
            ("blocks.0.attn.hook_z:3").
        select: which positions to keep; every real one, BOS among them, by default.

    Raises MechlabError when a site does not exist, there is no text, a text is longer than the
    model's context, or assistant turns are wanted of a text that is no chat.
    """
    sites = [sites] if isinstance(sites, str) else list(sites)
    tokens, mask, assistant = _batch(subject, as_list(texts), turns=select.assistant)
    chosen = select.chosen(subject, tokens, mask, assistant)
    values = {
        name: tidy(subject.site(name), value, chosen)
        for name, value in read_sites(subject, tokens, sites, mask).items()
    }
    return Activations(values, tokens, mask, chosen)


def as_list(texts: str | Chat | Sequence[str | Chat]) -> list[Any]:
    """One text (a string or a chat) or several, as a list of texts."""
    one = isinstance(texts, str) or (len(texts) > 0 and isinstance(texts[0], dict))
    return [texts] if one else list(texts)


def tidy(
    site: Site, value: Float[Tensor, "text _ *_dim"], chosen: Bool[Tensor, "text pos"]
) -> Float[Tensor, "text _a *_b"]:
    """A site's value with heads apart and zeros where a position (a pattern's query) is not chosen."""
    left_out = ~chosen.to(value.device)
    if site.pattern:
        return value.masked_fill(left_out[:, None, :, None], 0)
    value = value.masked_fill(left_out[..., None], 0)
    if site.heads is None:
        return value
    return rearrange(value, "text pos (head d) -> text pos head d", head=site.heads)


def read_sites(
    subject: Subject,
    tokens: Int[Tensor, "batch pos"],
    sites: Sequence[str],
    mask: Bool[Tensor, "batch pos"] | None = None,
) -> dict[str, Float[Tensor, "batch _ *_dim"]]:
    """Run the model on a right-padded batch and return copies of the wanted sites, heads flattened.

    The forward stops after the last wanted site. Values at padded positions are meaningless.

    Args:
        mask: True on real tokens; needed only where padding would be seen (``subject.causal``).

    Raises MechlabError for a missing site, and for a token that the model has no embedding for.
    """
    check_tokens(subject, tokens)
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        found[name] = value.clone(memory_format=torch.contiguous_format)

    with reading(subject, sites, keep) as run:
        run(tokens, mask)
    return {name: found[name] for name in sites}


def check_tokens(subject: Subject, tokens: Int[Tensor, "batch pos"]) -> None:
    """MechlabError unless the model has an embedding for every token."""
    rows = subject.module.get_input_embeddings().num_embeddings
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < rows:
        wrong = int(tokens.max()) if int(tokens.max()) >= rows else int(tokens.min())
        raise MechlabError(
            "token has no embedding", f"{wrong} of {rows}", "use the tokenizer the model was trained with"
        )


@contextlib.contextmanager
def reading(subject: Subject, sites: Sequence[str], keep: Keep) -> Iterator[Run]:
    """While open, every forward hands the wanted sites to ``keep(name, value)`` as it computes them.

    Values are flat ``[batch, pos, dim]`` (patterns ``[batch, head, query, key]``), without
    gradient, and valid only during the call: they may be views of a buffer that the forward
    writes again. The forward stops after the last wanted site.

    Yields a function ``run(tokens, mask=None)`` that runs the model, as often as wanted; tokens
    are padded on the right. With a pattern among the sites the forward uses eager attention,
    the only kind that computes patterns. With a site that only the TransformerLens bridge has,
    all are read from the bridge, which sees no hooks on the module.

    ``run`` belongs to the thread that opened the block; forwards that it did not start are left
    alone. Hooks are removed on the way out, also after an
    exception. Raises MechlabError when a site does not exist.
    """
    wanted = [subject.site(name) for name in dict.fromkeys(sites)]
    if any(site.side == "bridge" for site in wanted):
        yield _bridge_run(subject, wanted, keep)
        return
    eager = any(site.pattern for site in wanted)
    batch = [0]
    with hooks(subject, wanted, keep, batch, stop=True):
        opener = threading.get_ident()

        def run(tokens: Tensor, mask: Tensor | None = None) -> None:
            if threading.get_ident() != opener:
                raise RuntimeError("a forward was asked for in a thread that did not open the reading")
            batch[0] = len(tokens)
            options: dict[str, Any] = {"use_cache": False}
            # A causal model cannot see padding on the right, and a mask would cost the attention
            # kernel its fast path.
            if mask is not None and not subject.causal:
                options["attention_mask"] = mask.long().to(subject.device)
            try:
                with (
                    torch.no_grad(),
                    _eager_attention(subject) if eager else contextlib.nullcontext(),
                    contextlib.suppress(_Stop),
                ):
                    subject.module(tokens.to(subject.device), **options)
            finally:
                batch[0] = 0

        yield run


@contextlib.contextmanager
def hooks(
    subject: Subject, wanted: Sequence[Site], keep: Keep, batch: Sequence[int], *, stop: bool
) -> Iterator[None]:
    """Hooks on the module that hand ``wanted`` sites of the table to ``keep``; see ``reading``.

    Args:
        batch: holds the number of rows of the forward that runs; 0 while none of ours does.
        stop: whether the last site ends the forward, by an exception.
    """
    order = {name: i for i, name in enumerate(subject.sites)}
    # Several hooks of one module act in the order of registration.
    wanted = sorted(wanted, key=lambda site: order[site.name.partition(":")[0]])
    with contextlib.ExitStack() as stack:
        for i, site in enumerate(wanted):
            module = subject.module.get_submodule(site.module)
            hook = _hook(site, keep, batch, stop=stop and i == len(wanted) - 1)
            add = module.register_forward_pre_hook if site.side == "input" else module.register_forward_hook
            stack.callback(add(hook).remove)
        yield


def _hook(site: Site, keep: Keep, batch: Sequence[int], *, stop: bool) -> Callable[..., None]:
    name, read = site.name, site.read
    # Batches are made while others use the model, here or in another thread: their forwards are not ours.
    thread, current_thread = threading.get_ident(), threading.get_ident

    def hook(_: Any, *values: Any) -> None:
        if not batch[0] or current_thread() != thread:
            return
        # Hooks of inputs get (arguments,), hooks of outputs (arguments, output).
        value = read(values[-1]).detach()
        if len(value) < batch[0]:  # learned positions are computed once for all rows
            value = value.expand(batch[0], *value.shape[1:])
        keep(name, value)
        if stop:
            raise _Stop

    return hook


@contextlib.contextmanager
def _eager_attention(subject: Subject) -> Iterator[None]:
    config = subject.module.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def _bridge_run(subject: Subject, wanted: Sequence[Site], keep: Keep) -> Run:
    def run(tokens: Tensor, mask: Tensor | None = None) -> None:
        names = ", ".join(site.name for site in wanted if site.side == "bridge")
        if _is_hooked(subject.module):
            raise MechlabError(
                "a site of the bridge cannot be read while the module has hooks, which the bridge lacks",
                names,
                "close the edits, or read sites of the table",
            )
        missing = {site.name for site in wanted}

        def take(site: Site, tensor: Tensor) -> None:
            missing.discard(site.name)
            value = site.read_bridge(tensor.detach())
            keep(site.name, value.expand(len(tokens), *value.shape[1:]))

        pairs = [
            (site.name.partition(":")[0], lambda tensor, hook, site=site: take(site, tensor))
            for site in wanted
        ]
        subject.run_bridge(tokens, pairs, mask)
        if missing:
            raise MechlabError(
                "the bridge does not compute this site", ", ".join(missing), f"read it apart from {names}"
            )

    return run


def _is_hooked(module: Any) -> bool:
    """Whether anybody but transformers itself (which leaves hooks of its own) put hooks on a module."""
    found = (
        hook
        for each in module.modules()
        for hook in (*each._forward_hooks.values(), *each._forward_pre_hooks.values())
    )
    return any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in found)


def _batch(
    subject: Subject, texts: Sequence[Any], *, turns: bool
) -> tuple[Int[Tensor, "text pos"], Bool[Tensor, "text pos"], Bool[Tensor, "text pos"] | None]:
    """Right-padded tokens, which of them are real, and with ``turns`` which are of assistant turns."""
    if not texts:
        raise MechlabError("no texts were given", None, "pass at least one")
    if turns and (plain := [text for text in texts if isinstance(text, str)]):
        raise MechlabError("text has no assistant turns", repr(plain[0][:40]), "pass chats")
    pairs = [subject.chat_tokens(text) if turns else (subject.tokens(text), None) for text in texts]
    lengths = [len(row) for row, _ in pairs]
    if min(lengths) == 0:
        raise MechlabError("text has no tokens", repr(texts[lengths.index(0)]), "pass some text")
    if max(lengths) > subject.n_ctx:
        raise MechlabError(
            "text is longer than the model's context", f"{max(lengths)} tokens", f"at most {subject.n_ctx}"
        )
    # Padding repeats the last token: models warn when they meet their padding token without a mask.
    tokens = torch.stack([torch.cat([row, row[-1:].expand(max(lengths) - len(row))]) for row, _ in pairs])
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    if not turns:
        return tokens, mask, None
    assistant = torch.zeros_like(mask)
    for i, (_, flags) in enumerate(pairs):
        if flags is not None:
            assistant[i, : lengths[i]] = flags
    return tokens, mask, assistant
