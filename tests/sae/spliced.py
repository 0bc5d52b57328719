"""Dictionaries with random weights at sites of small models, for the tests of splicing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.clt import Clt, CltConfig
from mechlab.sae.splice import At
from mechlab.sae.topk import TopK, TopKConfig

RESID = "blocks.0.hook_resid_post"
IN, OUT = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
LAYERS_IN, LAYERS_OUT = ("blocks.0.mlp.hook_in", IN), ("blocks.0.hook_mlp_out", OUT)


def tokens_of(subject: Subject) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, subject.module.config.vocab_size, (2, 7), generator=generator)
    rows[:, 0] = subject.bos
    return rows


def filled(sae: Sae, seed: int = 0, size: float = 0.3) -> Sae:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(size * torch.randn(p.shape, generator=generator))
    return sae.requires_grad_(False)


def sae_at(subject: Subject, site: str = RESID, d_sae: int = 40, k: int = 6) -> At:
    return At(filled(TopK(TopKConfig(d_sae=d_sae, k=k), subject.site(site).dim)), (site,), (site,))


def transcoder_at(subject: Subject, *, skip: bool = True) -> At:
    config = TopKConfig(site=IN, target=OUT, d_sae=40, k=6, skip=skip)
    sae = TopK(config, (subject.site(IN).dim,), (subject.site(OUT).dim,))
    return At(filled(sae), (IN,), (OUT,))


def clt_at(subject: Subject) -> At:
    config = CltConfig(site=",".join(LAYERS_IN), target=",".join(LAYERS_OUT), d_sae=40, k=3)
    sizes = [tuple(subject.site(site).dim for site in sites) for sites in (LAYERS_IN, LAYERS_OUT)]
    return At(filled(Clt(config, *sizes)), LAYERS_IN, LAYERS_OUT)


KINDS: dict[str, Callable[[Subject], At]] = {"sae": sae_at, "transcoder": transcoder_at, "clt": clt_at}


def hooks(module: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def metric(subject: Subject, tokens: Tensor) -> Tensor:
    logits: Tensor = subject.module(tokens, use_cache=False).logits
    return logits[:, -1].log_softmax(-1)[:, 5].sum()
