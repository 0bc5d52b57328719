"""openai/sparse_autoencoder's files: one pickled state dict.

Follows its ``model.py``: TopK autoencoders normalise each row (``wrapped.Normalised``), those with
a ReLU do not.

    latents = act((x - pre_bias) encoder^T + latent_bias),   x_hat = latents decoder^T + pre_bias
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.formats.found import Found, Named, build
from mechlab.sae.formats.weights import Weights, read_pickle, setting
from mechlab.sae.formats.wrapped import Normalised


def read(path: Path, named: Named) -> Found:
    """One file. Raises MechlabError for activations other than TopK and ReLU."""
    content = read_pickle(path)
    activation = content.get("activation", "ReLU")
    weights = Weights({name: value for name, value in content.items() if isinstance(value, Tensor)}, path)
    rows = weights.take("encoder.weight", None, None)
    d_sae, d_in = rows.shape
    parts = {
        "W_enc": rows.T,
        "W_dec": weights.take("decoder.weight", d_in, d_sae).T,
        "b_enc": weights.take("latent_bias", d_sae),
        "b_dec": weights.take("pre_bias", d_in),
    }
    weights.done("stats_last_nonzero")
    site, target = named.sites(path, None, None)
    facts = {"model_name": named.model or None}
    if activation == "ReLU":
        return Found(build("relu", parts, site, target, centred=True), site, target, facts, (path,))
    state = setting(content, "activation_state_dict", path, dict) if activation == "TopK" else {}
    if activation != "TopK" or state.get("postact_fn", "ReLU") != "ReLU":
        raise MechlabError(f"{path}: activation cannot be kept exactly", activation, "TopK or ReLU only")
    k = state.get("k")
    k = int(k) if isinstance(k, Tensor) else setting(state, "k", path)
    sae = build("topk", parts, site, target, centred=True, k=k)
    return Found(Normalised(sae, "layer_norm"), site, target, facts, (path,))
