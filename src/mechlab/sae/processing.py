"""Weight processing that a dictionary was trained under, and which sites it changes.

TransformerLens can rewrite a model's weights when it loads them. The logits stay; some
activations do not, and a dictionary of those means nothing on the untouched model, which is the
one that a ``Subject`` holds.

| step | sites that change |
|---|---|
| fold_ln | ``ln*.hook_normalized``, ``ln*.hook_out``, ``mlp.hook_in``: norms lose weight and bias |
| center_writing_weights | the residual stream and what is added to it, in models with LayerNorm |
| fold_value_biases | ``attn.hook_v``, ``attn.hook_z``, ``attn.hook_result``: values lose their bias |
| refactor_factored_attn_matrices | ``attn.hook_q``, ``hook_k``, ``hook_v``, ``hook_z`` |
| center_unembed | none that can be read: the logits |

The residual stream and what is added to it: ``hook_resid_*``, ``hook_embed``, ``hook_pos_embed``,
``hook_attn_out``, ``hook_mlp_out``, ``attn.hook_result``. Models with RMSNorm are not centred.

Source: transformer_lens 3.9 (``HookedTransformer.from_pretrained``, ``weight_processing``). SAELens
records steps as ``model_from_pretrained_kwargs``; it loads models with
``from_pretrained_no_processing`` (``sae_lens/load_model.py``), so a step that is not recorded as
true was not taken. Dictionaries that were trained on fully processed weights before that (the
gpt2-small-res-jb releases) carry the record in sae-lens' list of releases, not in their files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mechlab.errors import MechlabError
from mechlab.models.subject import Subject

_CENTRED = "center_writing_weights"
_CHANGED = {
    "fold_ln": r"(^|\.)ln\w*\.hook_(normalized|out)$|(mlp|attn)\.hook_in$",
    _CENTRED: r"hook_resid_\w+$|hook_(pos_)?embed$|hook_(attn|mlp)_(out|in)$|hook_result$|hook_[qkv]_input$",
    "fold_value_biases": r"attn\.hook_(v|z|result)$",
    "refactor_factored_attn_matrices": r"attn\.hook_[qkvz]$",
    "center_unembed": r"(?!)",
}


def processing_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The processing steps that SAELens' metadata record, of those that are known."""
    taken = metadata.get("model_from_pretrained_kwargs") or {}
    return tuple(step for step in _CHANGED if taken.get(step))


def refuse_processed(processing: Iterable[str], sites: Iterable[str], subject: Subject | None) -> None:
    """MechlabError when a step changed what one of the sites holds.

    ``subject`` tells which norms its model has; without it (a store), LayerNorm is assumed.
    """
    sites = tuple(sites)
    for step in processing:
        if step == _CENTRED and subject is not None and not _has_layer_norm(subject):
            continue
        for site in sites:
            if re.search(_CHANGED[step], site.partition(":")[0]):
                raise MechlabError(
                    f"dictionary was trained on weights processed by {step}, which changes {site}",
                    f"{subject.name if subject else 'the store'} is unprocessed",
                    "use it in TransformerLens, or a dictionary of the unprocessed model",
                )


def _has_layer_norm(subject: Subject) -> bool:
    return any(isinstance(each, nn.LayerNorm) for each in subject.module.modules())
