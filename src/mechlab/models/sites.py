"""The site table: TransformerLens hook names on untouched Hugging Face modules.

A site is a place in the forward pass where a tensor can be read or replaced. Its name
is the TransformerLens hook name; the table says which submodule holds it, and whether
it is that submodule's input or output. Each value equals what TransformerLens'
``run_with_cache`` gives under the same name (tested within 1e-5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mechlab.errors import MechlabError


@dataclass(frozen=True)
class Site:
    """One place in a model.

    Attributes:
        name: TransformerLens hook name.
        module: dotted path of the submodule inside the Hugging Face model.
        side: "input" or "output" of that submodule.
        layer: block index; -1 before the first block.
        dim: size of the last axis of the flat tensor ``[batch, pos, dim]``.
        heads: number of heads when the site is per head (the flat axis is heads x d_head).
    """

    name: str
    module: str
    side: str
    layer: int
    dim: int
    heads: int | None = None


@dataclass(frozen=True)
class _Layout:
    """Where an architecture keeps its parts; paths inside a block are relative to it."""

    blocks: str
    embed: str
    attention: str
    attention_out: str
    mlp: str
    mlp_pre: str
    mlp_post: str
    mid: str | None
    positions: str | None = None


_GPT2 = _Layout(
    blocks="transformer.h",
    embed="transformer.wte",
    attention="attn",
    attention_out="attn.c_proj",
    mlp="mlp",
    mlp_pre="mlp.c_fc",
    mlp_post="mlp.c_proj",
    mid="ln_2",
    positions="transformer.wpe",
)
_NEOX = _Layout(
    blocks="gpt_neox.layers",
    embed="gpt_neox.embed_in",
    attention="attention",
    attention_out="attention.dense",
    mlp="mlp",
    mlp_pre="mlp.dense_h_to_4h",
    mlp_post="mlp.dense_4h_to_h",
    mid=None,  # decided by use_parallel_residual
)
_LLAMA = _Layout(
    blocks="model.layers",
    embed="model.embed_tokens",
    attention="self_attn",
    attention_out="self_attn.o_proj",
    mlp="mlp",
    mlp_pre="mlp.gate_proj",
    mlp_post="mlp.down_proj",
    mid="post_attention_layernorm",
)
_LAYOUTS = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
}


def supported_architectures() -> tuple[str, ...]:
    """Hugging Face ``model_type`` values that have a site table."""
    return tuple(sorted(_LAYOUTS))


def site_table(module: Any) -> dict[str, Site]:
    """All sites of a Hugging Face causal language model, in forward order.

    Args:
        module: the model; its ``config.model_type`` selects the layout.

    Raises MechlabError for an architecture without a layout.
    """
    config = module.config
    layout = _LAYOUTS.get(config.model_type)
    if layout is None:
        raise MechlabError(
            "architecture is not supported",
            config.model_type,
            f"supported: {', '.join(supported_architectures())}",
        )
    d_model, n_heads = config.hidden_size, config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or d_model // n_heads
    d_mlp = _width(module, layout)
    sites = [Site("hook_embed", layout.embed, "output", -1, d_model)]
    if layout.positions:
        sites.append(Site("hook_pos_embed", layout.positions, "output", -1, d_model))
    mid = layout.mid
    if config.model_type == "gpt_neox" and not config.use_parallel_residual:
        mid = "post_attention_layernorm"
    for i in range(config.num_hidden_layers):
        block, name = f"{layout.blocks}.{i}", f"blocks.{i}"

        def add(
            hook: str, path: str, side: str, dim: int, heads: int | None = None,
            *, layer: int = i, block: str = block, name: str = name,
        ) -> None:  # fmt: skip
            sites.append(
                Site(f"{name}.{hook}", f"{block}.{path}" if path else block, side, layer, dim, heads)
            )

        add("hook_resid_pre", "", "input", d_model)
        add("attn.hook_z", layout.attention_out, "input", n_heads * d_head, n_heads)
        add("hook_attn_out", layout.attention_out, "output", d_model)
        if mid:
            add("hook_resid_mid", mid, "input", d_model)
        add("mlp.hook_in", layout.mlp, "input", d_model)
        add("mlp.hook_pre", layout.mlp_pre, "output", d_mlp)
        add("mlp.hook_post", layout.mlp_post, "input", d_mlp)
        add("hook_mlp_out", layout.mlp, "output", d_model)
        add("hook_resid_post", "", "output", d_model)
    return {site.name: site for site in sites}


def _width(module: Any, layout: _Layout) -> int:
    first = module.get_submodule(f"{layout.blocks}.0.{layout.mlp_post}")
    # GPT-2's Conv1D stores [in, out]; Linear stores [out, in].
    weight_inputs = first.weight.shape[0] if hasattr(first, "nf") else first.weight.shape[1]
    return int(weight_inputs)
