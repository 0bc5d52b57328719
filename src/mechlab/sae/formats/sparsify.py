"""sparsify's layout: ``cfg.json`` and ``sae.safetensors`` in a folder named after the hookpoint.

Follows EleutherAI's sparsify 1.3 (``sparse_coder.py``, ``fused_encoder.py``): TopK behind a ReLU;
b_dec is subtracted from the input of autoencoders and not of transcoders; ``W_dec`` is stored
``[latent, d_out]``, as ours. ``multi_topk`` concerns training alone. (sae-lens 6.54 transposes
``W_dec``, which fails, and takes the input's centring from another setting.)
"""

from __future__ import annotations

import re
from pathlib import Path

from mechlab.errors import MechlabError
from mechlab.sae.formats.found import Found, Named, build
from mechlab.sae.formats.weights import read_json, read_safetensors, setting

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"


def read(folder: Path, named: Named) -> Found:
    """A folder in sparsify's layout. Raises MechlabError for GroupMax and signed coders, by name."""
    path, weights = folder / CONFIG, read_safetensors(folder / WEIGHTS)
    config = read_json(path)
    activation, transcoder = config.get("activation", "topk"), bool(config.get("transcode"))
    if activation != "topk":
        raise MechlabError(f"{path}: activation cannot be kept exactly", activation, "topk only")
    if config.get("signed"):
        raise MechlabError(f"{path}: signed coders cannot be kept exactly", True, "unsigned only")
    d_in = setting(config, "d_in", path)
    W_enc = weights.take("encoder.weight", None, d_in).T
    d_sae = W_enc.shape[1]
    parts = {"W_enc": W_enc, "b_enc": weights.take("encoder.bias", d_sae)}
    parts["W_dec"] = weights.take("W_dec", d_sae, None if transcoder else d_in)
    d_out = parts["W_dec"].shape[1]
    parts["b_dec"] = weights.take("b_dec", d_out)
    if "W_skip" in weights:
        if not transcoder:
            raise MechlabError(f"{path}: skip connection of an autoencoder", True, "transcoders only")
        parts["W_skip"] = weights.take("W_skip", d_out, d_in)
    weights.done()
    site, target = named.sites(folder, *_sites(folder.name, transcoder), transcoder=transcoder)
    sae = build("topk", parts, site, target, centred=not transcoder, k=setting(config, "k", path))
    facts = {"model_name": named.model or None, "hf_hook_name": folder.name}
    return Found(sae, site, target, facts, (path, folder / WEIGHTS))


def _sites(hookpoint: str, transcoder: bool) -> tuple[str | None, str | None]:
    """Sites in TransformerLens' names: hookpoints are module paths, whose output is meant.

    A transcoder reads its module's input. Not for models with a norm behind the MLP or attention.
    """
    found = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)(?:\.(mlp|attn|attention|self_attn))?", hookpoint)
    if not found:
        return None, None
    block, part = f"blocks.{found[1]}.", found[2]
    if transcoder:
        return (f"{block}mlp.hook_in", f"{block}hook_mlp_out") if part == "mlp" else (None, None)
    return block + {None: "hook_resid_post", "mlp": "hook_mlp_out"}.get(part, "hook_attn_out"), None
