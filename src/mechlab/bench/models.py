"""The models that benchmarks run, their contexts, and the least that a forward can cost."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mechlab.models.sites import site_table
from mechlab.models.subject import Subject, load_model, resolve_device

GPT2_SMALL = "gpt2-small-shaped"
_FINAL_NORMS = ("ln_f", "final_layer_norm", "norm")


def bench_model(name: str, device: str = "auto") -> Subject:
    """A model for benchmarks: ``GPT2_SMALL`` is built with random weights, any other is loaded.

    Its tokenizer has no BOS, so that every token of a context is a row in every tool.
    """
    subject = gpt2_small_shaped(device) if name == GPT2_SMALL else load_model(name, device=device)
    tokenizer = copy.deepcopy(subject.tokenizer)
    tokenizer.bos_token = None
    return dataclasses.replace(subject, tokenizer=tokenizer)


def gpt2_small_shaped(device: str = "auto", *, seed: int = 0, **sizes: int) -> Subject:
    """GPT-2 small (12 blocks, d_model 768, vocabulary 50,257) with random weights.

    Args:
        sizes: fields of the Hugging Face configuration to change.
    """
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = GPT2LMHeadModel(GPT2Config(**sizes))
    module = module.to(resolve_device(device)).eval().requires_grad_(False)
    words = {f"w{i}": i for i in range(module.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), unk_token="w0"
    )
    return Subject(GPT2_SMALL, module, tokenizer, site_table(module))


def random_tokens(subject: Subject, n: int, n_ctx: int, seed: int = 0) -> Int[Tensor, "n n_ctx"]:
    """Contexts of uniformly drawn tokens, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, subject.module.config.vocab_size, (n, n_ctx), generator=generator)


def truncated(subject: Subject, block: int) -> nn.Module:
    """The Hugging Face base model cut after ``block``: no later block, no final norm, no hooks.

    It shares its weights with the subject; its ``last_hidden_state`` is
    ``blocks.{block}.hook_resid_post``. This is the least that reading that site can cost.
    """
    base: Any = copy.copy(subject.module.base_model)
    # A copied module still shares the dictionary of its children with the original.
    base._modules = dict(base._modules)
    blocks = subject.site(f"blocks.{block}.hook_resid_post").module.split(".")[-2]
    base._modules[blocks] = nn.ModuleList(list(base._modules[blocks])[: block + 1])
    base._modules[next(name for name in _FINAL_NORMS if name in base._modules)] = nn.Identity()
    return base  # type: ignore[no-any-return]


def flops_per_token(subject: Subject, block: int, n_ctx: int) -> float:
    """Multiplications and additions that the forward through ``block`` needs for a token.

    Two for every weight of the blocks' matrices, and per block 2 n_ctx d_model for causal
    attention: scores and mixing cost 4 per key and dimension, and a token sees half of the
    keys on average (Kaplan et al. 2020, section 2.1, halved for causality).
    """
    path = subject.site(f"blocks.{block}.hook_resid_post").module.rsplit(".", 1)[0]
    blocks = list(subject.module.get_submodule(path))[: block + 1]
    weights: int = sum(p.numel() for b in blocks for p in b.parameters() if p.ndim == 2)
    return 2.0 * weights + len(blocks) * 2.0 * n_ctx * int(subject.module.config.hidden_size)
