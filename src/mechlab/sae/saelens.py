"""SAELens' file layout: ``cfg.json`` and ``sae_weights.safetensors``.

Follows sae-lens 6.54. SAELens sends files without ``metadata.sae_lens_version`` >= 6 through an
old-format converter, hence that key.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae
from mechlab.sae.topk import TopK, TopKConfig

VERSION = "6.54.12"
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"


def to_saelens(
    sae: Sae, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Contents of ``cfg.json`` and the tensors of ``sae_weights.safetensors``."""
    config: dict[str, Any] = {
        "architecture": sae.arch,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": VERSION, "hook_name": ",".join(inputs)},
    }
    if isinstance(sae, TopK):
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    return config, {name: value.detach().contiguous() for name, value in sae.state_dict().items()}


def from_saelens(config: dict[str, Any], tensors: dict[str, Tensor]) -> Sae:
    """The dictionary that the two files describe; MechlabError for an unknown architecture."""
    if config["architecture"] != "topk":
        raise MechlabError("unknown dictionary architecture", config["architecture"], "known: topk")
    sae = TopK(
        TopKConfig(d_sae=config["d_sae"], k=config["k"]),
        config["d_in"],
        centred=config["apply_b_dec_to_input"],
    )
    sae.load_state_dict(tensors)
    return sae
