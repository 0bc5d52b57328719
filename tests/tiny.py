"""Builders of tiny random models with a word-level tokenizer."""

from __future__ import annotations

from pathlib import Path

WORDS = [
    "<pad>",
    "<unk>",
    "<bos>",
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "a",
    "mat",
    ".",
    ",",
    "and",
    "saw",
    "it",
    "fell",
    "down",
    "up",
    "red",
]


def save_tokenizer(path: Path) -> None:
    """A word-level tokenizer over ``WORDS``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", unk_token="<unk>", pad_token="<pad>"
    )
    wrapped.save_pretrained(path)


_SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
# Windows shorter than the tests' texts.
_GEMMA = {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}

# Architecture, with a variant after a dash -> config.
TINY = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "gpt_neox": _SHAPE,
    "gpt_neox-sequential": {**_SHAPE, "use_parallel_residual": False},
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 4},
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gemma": {**_SHAPE, "num_key_value_heads": 1, "head_dim": 4},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "bert": _SHAPE,
}


def save_tiny_model(path: Path, architecture: str, seed: int = 0) -> Path:
    """A random model of two layers with its tokenizer, in Hugging Face layout."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    torch.manual_seed(seed)
    ids = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    kind = architecture.partition("-")[0]
    config = AutoConfig.for_model(kind, vocab_size=len(WORDS), **ids, **TINY[architecture])
    model = (AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM).from_config(config)
    # Default initialisation is so small that every site would look alike.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    save_tokenizer(path)
    return path
