"""Harvesting by definition, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from mechlab.activations.selection import Selection
from mechlab.data.corpus import Corpus
from mechlab.data.stream import contexts
from mechlab.models.subject import Subject

SITE = "blocks.1.hook_resid_post"


def naive_rows(
    subject: Subject, corpus: Corpus, sites: list[str], *, tokens: int, n_ctx: int, batch: int,
    select: Selection, pack: bool = False, bos: str = "each", split: str = "train",
) -> dict[str, Tensor]:  # fmt: skip
    """Every column of a store by definition: whole forwards, one hook a site, one row at a time."""
    columns: dict[str, list] = {name: [] for name in ("tokens", "document", "context", "position", *sites)}
    number = 0
    stream = contexts(
        corpus, split, subject.tokenizer, n_ctx=n_ctx, batch=batch, pack=pack, bos=bos, threads=False
    )
    for group in stream:
        kept: dict[str, Tensor] = {}
        handles = []
        for name in sites:
            site = subject.site(name)
            module = subject.module.get_submodule(site.module)
            if site.side == "input":

                def before(_, args, name=name, site=site, kept=kept):
                    kept[name] = site.read(args).clone()

                handles.append(module.register_forward_pre_hook(before))
            else:

                def after(_, __, out, name=name, site=site, kept=kept):
                    kept[name] = site.read(out).clone()

                handles.append(module.register_forward_hook(after))
        with torch.no_grad():
            subject.module(group.tokens)
        for handle in handles:
            handle.remove()
        for i in range(len(group.tokens)):
            for p in range(group.tokens.shape[1]):
                token = int(group.tokens[i, p])
                last = group.tokens.shape[1] if select.last is None else select.last
                wanted = (
                    bool(group.mask[i, p])
                    and select.first <= p < last
                    and (select.bos or token != subject.bos)
                    and (select.special or token == subject.bos
                         or token not in subject.tokenizer.all_special_ids)
                )  # fmt: skip
                if wanted and len(columns["tokens"]) < tokens:
                    columns["tokens"].append(token)
                    columns["document"].append(int(group.document[i, p]))
                    columns["context"].append(number + i)
                    columns["position"].append(p)
                    for name in sites:
                        columns[name].append(kept[name][i, p])
        number += len(group.tokens)
    return {
        name: torch.stack(rows) if name in sites else torch.tensor(rows) for name, rows in columns.items()
    }
