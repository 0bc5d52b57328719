"""SAELens' live activations, at the settings that make it fastest.

Found by trying (sae-lens 6.54): a hook on the wanted modules only; no key-value cache, which its
wrapper otherwise lets the model build; contexts as arrays in a list, cheaper than Hugging Face
``datasets`` by what that costs a row; a mixing buffer as small as wanted, or no mixing at all.
Its prefetching thread helps only a reader that computes meanwhile, which a benchmark of taking
batches is not.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechlab.models.subject import Subject


def saelens_batches(
    subject: Subject,
    tokens: Int[Tensor, "context pos"],
    sites: Sequence[str],
    *,
    batch: int,
    batch_rows: int,
    buffer: int,
    mix: float,
) -> Iterator[dict[str, Tensor]]:
    """Endless batches (site → ``[row, dim]``) from SAELens' ``ActivationsStore``.

    It warns once an epoch that it starts again from the first context.

    Args:
        sites: sites that are outputs of modules, d_model wide; several use its multi-hook store.
        batch: contexts per forward.
        batch_rows: rows per batch.
        buffer: contexts in its mixing buffer (``n_batches_in_buffer``).
        mix: share of the buffer that stays for mixing; 0 turns shuffling off.
    """
    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activations_store import ActivationsStore

    names = {subject.site(site).module: site for site in sites}
    # Its wrapper puts hooks on the module for good, so it gets one of its own; weights are shared.
    shared = {id(parameter): parameter for parameter in subject.module.parameters()}
    module = copy.deepcopy(subject.module, shared)
    for part in module.modules():
        if hasattr(part, "config"):
            part.config.use_cache = False
    width = subject.module.config.hidden_size
    common: dict[str, Any] = {
        "model": HookedProxyLM(module, subject.tokenizer, hook_names=list(names)),
        "dataset": [{"tokens": row} for row in tokens.numpy()],
        "streaming": False,
        "context_size": tokens.shape[1],
        "n_batches_in_buffer": buffer,
        "total_training_tokens": 1,
        "store_batch_size_prompts": batch,
        "train_batch_size_tokens": batch_rows,
        "prepend_bos": False,
        "normalize_activations": "none",
        "device": subject.device,
        "dtype": "float32",
        "activations_mixing_fraction": mix,
    }
    if len(names) == 1:
        [(name, site)] = names.items()
        single = ActivationsStore(hook_name=name, hook_head_index=None, d_in=width, **common)
        return ({site: rows} for rows in single)
    store = ActivationsStore.from_config_multi_hook(
        hook_names=list(names), hook_d_ins=dict.fromkeys(names, width), **common
    )
    several = store.get_multi_hook_data_loader()
    return ({names[name]: rows for name, rows in each.items()} for each in several)
