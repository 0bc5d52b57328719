"""dictionary_learning's layout: ``ae.pt`` (a state dict) and ``config.json``.

Follows dictionary_learning 0.1.0 (``dictionary.py``, ``trainers/*.py``); the factor that it
normalises activations by is in the weights already.

| dict_class | encoder | input |
|---|---|---|
| AutoEncoder | relu | x - bias; x in the newer form, which has decoder.bias |
| GatedAutoEncoder | gated | x - decoder_bias |
| JumpReluAutoEncoder | jumprelu | x |
| AutoEncoderTopK | topk | x - b_dec |
| BatchTopKSAE, MatryoshkaBatchTopKSAE | jumprelu with the recorded threshold | x - b_dec |
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mechlab.errors import MechlabError, near
from mechlab.sae.base import Sae
from mechlab.sae.formats.found import Found, Named, build, jump
from mechlab.sae.formats.weights import Weights, read_json, read_pickle, setting

WEIGHTS, CONFIG = "ae.pt", "config.json"
_TRAINER = "trainer"
_CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder",
    "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
)  # fmt: skip
# What submodule names of its training scripts start with.
_SITES = {
    "resid_post": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "mlp_out": "hook_mlp_out",
    "attention_out": "hook_attn_out",
    "attn_out": "hook_attn_out",
}


def read(folder: Path, named: Named) -> Found:
    """A folder in dictionary_learning's layout."""
    config, path = read_json(folder / CONFIG), folder / WEIGHTS
    trainer = setting(config, _TRAINER, folder / CONFIG, dict)
    name = setting(trainer, "dict_class", folder / CONFIG, str)
    if name not in _CLASSES:
        raise MechlabError(f"unknown dictionary class in {folder / CONFIG}", name, near(name, _CLASSES))
    tensors = {key: value for key, value in read_pickle(path).items() if isinstance(value, Tensor)}
    site, target = named.sites(folder, _site(trainer), None)
    sae = _sae(name, Weights(tensors, path), trainer, site, target)
    facts = {"model_name": named.model or trainer.get("lm_name"), "training_architecture": name}
    context = (config.get("buffer") or {}).get("ctx_len")
    return Found(sae, site, target, {**facts, "context_size": context}, (folder / CONFIG, path))


def _sae(name: str, weights: Weights, trainer: Mapping[str, Any], site: str, target: str) -> Sae:
    linear = "encoder.weight" in weights
    if linear:
        W_enc = weights.take("encoder.weight", None, None).T
        d_in, d_sae = W_enc.shape
        W_dec = weights.take("decoder.weight", d_in, d_sae).T
    else:
        W_enc = weights.take("W_enc", None, None)
        d_in, d_sae = W_enc.shape
        W_dec = weights.take("W_dec", d_sae, d_in)
    parts = {"W_enc": W_enc, "W_dec": W_dec}
    if name == "GatedAutoEncoder":
        parts["b_dec"] = weights.take("decoder_bias", d_in)
        for ours, theirs in (("b_gate", "gate_bias"), ("b_mag", "mag_bias"), ("r_mag", "r_mag")):
            parts[ours] = weights.take(theirs, d_sae)
        weights.done()
        return build("gated", parts, site, target, centred=True)
    parts["b_enc"] = weights.take("encoder.bias" if linear else "b_enc", d_sae)
    newer = "decoder.bias" in weights
    bias = "bias" if name in ("AutoEncoder", "AutoEncoderNew") else "b_dec"
    parts["b_dec"] = weights.take("decoder.bias" if newer else bias, d_in)
    if name == "AutoEncoderTopK":
        k = int(weights.take("k")) if "k" in weights else setting(trainer, "k", CONFIG)
        weights.done("threshold")  # an estimate; encoding takes the k largest
        return build("topk", parts, site, target, centred=True, k=k)
    if name.startswith("AutoEncoder"):
        weights.done()
        return build("relu", parts, site, target, centred=not newer)
    batch = name != "JumpReluAutoEncoder"
    threshold = weights.take("threshold", *(() if batch else (d_sae,)))
    if batch and float(threshold) < 0:
        warnings.warn(
            f"{weights.path}: its threshold was never set, so every positive latent fires", stacklevel=2
        )
    parts["threshold"] = jump(threshold, d_sae)
    weights.done("k", "group_sizes")
    return build("jumprelu", parts, site, target, centred=batch)


def _site(trainer: Mapping[str, Any]) -> str | None:
    """The site in TransformerLens' names, where the recorded one is of a known form."""
    layer, name = trainer.get("layer"), str(trainer.get("submodule_name"))
    hook = next((hook for start, hook in _SITES.items() if re.match(rf"{start}(_layer_\d+)?$", name)), None)
    return f"blocks.{layer}.{hook}" if hook and isinstance(layer, int) else None
