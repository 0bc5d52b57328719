"""Where each architecture keeps its sites: TransformerLens hook names on Hugging Face modules.

Rows stand in the order in which a forward computes them, which is what lets a capture
stop after the last site it wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mechlab.errors import MechlabError

# Widths of a row's tensor.
MODEL, QUERY, KEY, MLP, PATTERN = "model", "query", "key", "mlp", "pattern"


@dataclass(frozen=True)
class Row:
    """One site of a layout.

    Attributes:
        hook: TransformerLens hook name, without "blocks.N." in rows of a block.
        module: submodule; relative to the block in rows of a block ("" is the block itself).
        side: "input" or "output" of that submodule.
        width: what the last axis of the tensor is.
        third: which of query, key and value (0, 1, 2), where one output holds all three.
    """

    hook: str
    module: str
    side: str
    width: str = MODEL
    third: int | None = None


@dataclass(frozen=True)
class Layout:
    """The sites of an architecture.

    Attributes:
        blocks: path of the list of blocks.
        before, block, after: rows before the first block, of every block, and after the last.
        fused_by_head: where query, key and value are one output, whether each head keeps its three
            together (GPT-NeoX) or all queries come first (GPT-2).
        causal: whether a position sees only itself and earlier ones.
    """

    blocks: str
    before: tuple[Row, ...]
    block: tuple[Row, ...]
    after: tuple[Row, ...]
    fused_by_head: bool = False
    causal: bool = True


_GPT2 = Layout(
    blocks="transformer.h",
    before=(
        Row("hook_embed", "transformer.wte", "output"),
        Row("hook_pos_embed", "transformer.wpe", "output"),
    ),
    block=(
        Row("hook_resid_pre", "", "input"),
        Row("attn.hook_q", "attn.c_attn", "output", QUERY, third=0),
        Row("attn.hook_k", "attn.c_attn", "output", KEY, third=1),
        Row("attn.hook_v", "attn.c_attn", "output", KEY, third=2),
        Row("attn.hook_z", "attn.c_proj", "input", QUERY),
        Row("hook_attn_out", "attn.c_proj", "output"),
        Row("attn.hook_pattern", "attn", "output", PATTERN),
        Row("hook_resid_mid", "ln_2", "input"),
        Row("mlp.hook_in", "mlp", "input"),
        Row("mlp.hook_pre", "mlp.c_fc", "output", MLP),
        Row("mlp.hook_post", "mlp.c_proj", "input", MLP),
        Row("hook_mlp_out", "mlp", "output"),
        Row("hook_resid_post", "", "output"),
    ),
    after=(Row("ln_final.hook_out", "transformer.ln_f", "output"),),
)


def _neox(parallel: bool) -> Layout:
    # With parallel blocks no stream lies between attention and MLP.
    mid = () if parallel else (Row("hook_resid_mid", "post_attention_layernorm", "input"),)
    return Layout(
        blocks="gpt_neox.layers",
        before=(Row("hook_embed", "gpt_neox.embed_in", "output"),),
        block=(
            Row("hook_resid_pre", "", "input"),
            Row("attn.hook_q", "attention.query_key_value", "output", QUERY, third=0),
            Row("attn.hook_k", "attention.query_key_value", "output", KEY, third=1),
            Row("attn.hook_v", "attention.query_key_value", "output", KEY, third=2),
            Row("attn.hook_z", "attention.dense", "input", QUERY),
            Row("hook_attn_out", "attention.dense", "output"),
            Row("attn.hook_pattern", "attention", "output", PATTERN),
            *mid,
            Row("mlp.hook_in", "mlp", "input"),
            Row("mlp.hook_pre", "mlp.dense_h_to_4h", "output", MLP),
            Row("mlp.hook_post", "mlp.dense_4h_to_h", "input", MLP),
            Row("hook_mlp_out", "mlp", "output"),
            Row("hook_resid_post", "", "output"),
        ),
        after=(Row("ln_final.hook_out", "gpt_neox.final_layer_norm", "output"),),
        fused_by_head=True,
    )


def _llama(*, norms_after: bool = False) -> Layout:
    """Llama and its family; with ``norms_after`` (Gemma 2) what is added is what a norm puts out."""
    pattern = Row("attn.hook_pattern", "self_attn", "output", PATTERN)
    if norms_after:
        attention = (pattern, Row("hook_attn_out", "post_attention_layernorm", "output"))
        mid, mlp_out = "pre_feedforward_layernorm", "post_feedforward_layernorm"
    else:
        attention = (Row("hook_attn_out", "self_attn.o_proj", "output"), pattern)
        mid, mlp_out = "post_attention_layernorm", "mlp"
    return Layout(
        blocks="model.layers",
        before=(Row("hook_embed", "model.embed_tokens", "output"),),
        block=(
            Row("hook_resid_pre", "", "input"),
            Row("attn.hook_q", "self_attn.q_proj", "output", QUERY),
            Row("attn.hook_k", "self_attn.k_proj", "output", KEY),
            Row("attn.hook_v", "self_attn.v_proj", "output", KEY),
            Row("attn.hook_z", "self_attn.o_proj", "input", QUERY),
            *attention,
            Row("hook_resid_mid", mid, "input"),
            Row("mlp.hook_in", "mlp", "input"),
            Row("mlp.hook_pre", "mlp.gate_proj", "output", MLP),
            Row("mlp.hook_pre_linear", "mlp.up_proj", "output", MLP),
            Row("mlp.hook_post", "mlp.down_proj", "input", MLP),
            Row("hook_mlp_out", mlp_out, "output"),
            Row("hook_resid_post", "", "output"),
        ),
        after=(Row("ln_final.hook_out", "model.norm", "output"),),
    )


# BERT normalises after each addition. TransformerLens' names keep their places in its bridge:
# hook_embed follows the embedding norm, and hook_resid_mid is what the block's last norm reads.
_BERT = Layout(
    blocks="bert.encoder.layer",
    before=(
        Row("hook_pos_embed", "bert.embeddings.position_embeddings", "output"),
        Row("hook_embed", "bert.embeddings.LayerNorm", "output"),
    ),
    block=(
        Row("hook_resid_pre", "", "input"),
        Row("attn.hook_q", "attention.self.query", "output", QUERY),
        Row("attn.hook_k", "attention.self.key", "output", KEY),
        Row("attn.hook_v", "attention.self.value", "output", KEY),
        Row("attn.hook_pattern", "attention.self", "output", PATTERN),
        Row("attn.hook_z", "attention.output.dense", "input", QUERY),
        Row("hook_attn_out", "attention.output", "output"),
        Row("mlp.hook_in", "intermediate", "input"),
        Row("mlp.hook_pre", "intermediate.dense", "output", MLP),
        Row("mlp.hook_post", "output.dense", "input", MLP),
        Row("hook_mlp_out", "output.dense", "output"),
        Row("hook_resid_mid", "output.LayerNorm", "input"),
        Row("hook_resid_post", "", "output"),
    ),
    after=(Row("ln_final.hook_out", "cls.predictions.transform.LayerNorm", "output"),),
    causal=False,
)

_LAYOUTS = {
    "gpt2": _GPT2,
    "gpt_neox": _neox(parallel=True),
    "llama": _llama(),
    "mistral": _llama(),
    "qwen2": _llama(),
    "qwen3": _llama(),
    "gemma": _llama(),
    "gemma2": _llama(norms_after=True),
    "gemma3_text": _llama(norms_after=True),
    "bert": _BERT,
}


def supported_architectures() -> tuple[str, ...]:
    """Hugging Face ``model_type`` values that have a site table."""
    return tuple(sorted(_LAYOUTS))


def layout_of(config: Any) -> Layout:
    """The layout of a Hugging Face model config.

    Raises MechlabError for an architecture without one.
    """
    if config.model_type not in _LAYOUTS:
        raise MechlabError(
            "architecture is not supported",
            config.model_type,
            f"supported: {', '.join(supported_architectures())}",
        )
    if config.model_type == "gpt_neox" and not config.use_parallel_residual:
        return _neox(parallel=False)
    return _LAYOUTS[config.model_type]
