"""Gemma Scope's layouts: ``params.npz`` (Gemma 2); ``config.json`` and ``params.safetensors`` (Gemma 3).

Sources: Lieberum et al. (2024), *Gemma Scope* (arXiv 2408.05147), and its successor's release;
names of repositories and folders as sae-lens 6.54 reads them. All are JumpReLU dictionaries whose
b_dec is not subtracted from the input. Transcoders read what the MLP reads, behind its norm.

Those of the embedding were trained on embeddings divided by sqrt(d_in), which the model multiplies
them by; they are made to fit what the site holds, b_dec included (sae-lens 6.54 leaves it out).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from mechlab.errors import MechlabError
from mechlab.sae.formats.found import Found, Named, build, jump
from mechlab.sae.formats.weights import Weights, read_json, read_npz, read_safetensors

NPZ, WEIGHTS, CONFIG = "params.npz", "params.safetensors", "config.json"
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
_PARTS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
# Hook points of the second release → ours.
_HOOKS = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}


def read(folder: Path, named: Named) -> Found:
    """A folder of Gemma Scope 1, whose place is in the folder names, or one that the caller names."""
    path = str((folder / NPZ).absolute())
    repository, layer = _REPOSITORY.search(path), _layer(path)
    site = target = model = None
    embedding = "embedding" in path
    if repository:
        model = f"gemma-2-{repository[1]}" + ("-it" if repository[2] == "it" else "")
        if embedding:
            site = "hook_embed"
        elif layer is not None and repository[3] == "transcoders":
            site, target = f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out"
        elif layer is not None:
            site = f"blocks.{layer}.{_PARTS[repository[3]]}"
    found = _build(read_npz(folder / NPZ), folder, named, site, target, model)
    if embedding:
        width = torch.full((found.sae.d_in,), found.sae.d_in**-0.5)
        codes = float(width[0])
        found.sae.change_units(width, width)
        found.sae.scale_codes(codes)
    return Found(found.sae, found.site, found.target, found.metadata, (folder / NPZ,))


def read_2(folder: Path, named: Named) -> Found:
    """A folder of Gemma Scope 2."""
    config = read_json(folder / CONFIG)
    if config.get("architecture") != "jump_relu":
        raise MechlabError(
            f"unknown architecture in {folder / CONFIG}", config.get("architecture"), "known: jump_relu"
        )
    site, target = (_site(config.get(f"hf_hook_point_{side}")) for side in ("in", "out"))
    found = _build(read_safetensors(folder / WEIGHTS), folder, named, site, target, config.get("model_name"))
    files = (folder / CONFIG, folder / WEIGHTS)
    facts: dict[str, Any] = {"hf_hook_name": config.get("hf_hook_point_in")}
    return Found(found.sae, found.site, found.target, {**found.metadata, **facts}, files)


def _build(
    weights: Weights, folder: Path, named: Named, site: str | None, target: str | None, model: str | None
) -> Found:
    transcoder = bool(named.target or target)
    W_enc = weights.take("w_enc" if "w_enc" in weights else "W_enc", None, None)
    d_in, d_sae = W_enc.shape
    W_dec = weights.take("w_dec" if "w_dec" in weights else "W_dec", d_sae, None if transcoder else d_in)
    d_out = W_dec.shape[1]
    parts = {"W_enc": W_enc, "W_dec": W_dec}
    parts["b_enc"], parts["b_dec"] = weights.take("b_enc", d_sae), weights.take("b_dec", d_out)
    parts["threshold"] = jump(weights.take("threshold", d_sae), d_sae)
    if "affine_skip_connection" in weights:  # stored input first
        parts["W_skip"] = weights.take("affine_skip_connection", d_in, d_out).T
    weights.done()
    transcoder = transcoder or "W_skip" in parts
    site, target = named.sites(folder, site, target, transcoder=transcoder)
    sae = build("jumprelu", parts, site, target, centred=False)
    return Found(sae, site, target, {"model_name": named.model or model})


def _site(hook: str | None) -> str | None:
    """Our name of "model.layers.N.PLACE"."""
    found = re.search(r"layers\.(\d+)\.(.+)$", hook or "")
    return f"blocks.{found[1]}.{_HOOKS[found[2]]}" if found and found[2] in _HOOKS else None


def _layer(text: str) -> int | None:
    found = re.search(r"layer_(\d+)", text)
    return int(found[1]) if found else None
