"""TransformerLens bridges: booting one on a copy of a model, and sites that only a bridge has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.models.sites import Site


def boot_bridge(module: Any, tokenizer: Any) -> Any:
    """A ``TransformerBridge`` of a copy of ``module``: a copy keeps hooks and buffers apart."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        str(module.config._name_or_path),
        hf_model=copy.deepcopy(module),
        tokenizer=copy.deepcopy(tokenizer),
        device=module.get_input_embeddings().weight.device,
        dtype=module.dtype,
    )


def probe_site(name: str, run: Callable[..., None], config: Any) -> Site:
    """The site that a bridge calls ``name``, its shape seen in a short forward.

    Args:
        name: a hook name that the bridge has.
        run: ``Subject.run_bridge``.
        config: the model's Hugging Face config.

    Raises MechlabError when the hook does not fire, or holds no value per position.
    """
    # A length that is no other size of the model shows which axis is the position.
    heads = config.num_attention_heads
    sizes = {heads, getattr(config, "num_key_value_heads", heads), _d_head(config), config.hidden_size}
    length = next(n for n in range(2, 8) if n not in sizes)
    seen: list[Tensor] = []
    try:
        run(torch.zeros(1, length, dtype=torch.long), [(name, lambda tensor, hook: seen.append(tensor))])
    except (AssertionError, ValueError) as error:
        raise MechlabError("bridge keeps this hook closed", name, f"use subject.bridge(); {error}") from error
    if not seen:
        raise MechlabError("bridge never runs this hook", name, "read another site")
    layer = int(name.split(".")[1]) if name.startswith("blocks.") else -1
    value = seen[0]
    shape = tuple(value.shape) if isinstance(value, Tensor) and value.is_floating_point() else ()
    if len(shape) == 4 and shape[2:] == (length, length):
        return Site(name, "", "bridge", layer, 0, heads=shape[1], pattern=True)
    if len(shape) in (3, 4) and shape[1] == length:
        dim = int(torch.tensor(shape[2:]).prod())
        return Site(name, "", "bridge", layer, dim, heads=shape[2] if len(shape) == 4 else None)
    raise MechlabError("site holds no value per position", f"{name}, shape {shape}", "use subject.bridge()")


def _d_head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
