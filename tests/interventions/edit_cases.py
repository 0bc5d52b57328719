"""What the tests of edits share: kinds of sites, vectors, a count of hooks."""

from __future__ import annotations

import torch

from mechlab.models.subject import Subject

# One site of each kind: residual stream, an MLP's input and inside, the parts of attention, one head.
KINDS = (
    "hook_embed",
    "blocks.0.hook_resid_pre",
    "blocks.0.hook_resid_post",
    "blocks.1.hook_attn_out",
    "blocks.0.mlp.hook_in",
    "blocks.1.mlp.hook_post",
    "blocks.1.attn.hook_q",
    "blocks.0.attn.hook_k",
    "blocks.0.attn.hook_v",
    "blocks.1.attn.hook_z",
    "blocks.0.attn.hook_z:1",
    "blocks.0.attn.hook_q:3",
    "blocks.0.attn.hook_k:1",
    "blocks.0.attn.hook_v:0",
)


def vector(dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed))


def hooks(subject: Subject) -> int:
    """How many hooks hang on the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.module.modules())


def surprise(subject: Subject, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy in nats, with its graph."""
    log_p = subject.module(tokens, use_cache=False).logits.log_softmax(dim=-1)
    return -log_p[:, :-1].gather(2, tokens[:, 1:, None]).mean()
