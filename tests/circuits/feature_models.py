"""Random dictionaries on random models, and the replacement model written out in forward direction."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from mechlab.circuits.features.replacement import Replacement
from mechlab.models.sites import site_table
from mechlab.models.subject import Subject
from mechlab.sae.base import Sae
from mechlab.sae.clt import Clt, CltConfig
from mechlab.sae.registry import architecture
from mechlab.sae.splice import At

D_MODEL = 24


def subject_of(module: nn.Module) -> Subject:
    """A module with its sites, and a tokenizer that is never asked to encode."""
    tokenizer = SimpleNamespace(get_vocab=dict, chat_template=None, bos_token_id=0)
    return Subject("random", module, tokenizer, site_table(module))


def filled(sae: Sae, seed: int, size: float = 0.3) -> Sae:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(size * torch.randn(p.shape, generator=generator))
        if hasattr(sae, "threshold"):
            sae.threshold.abs_()
    return sae.requires_grad_(False)


def sae_at(site: str, arch: str = "topk", seed: int = 0, d_sae: int = 40) -> At:
    config = architecture(arch).Config.model_validate({"d_sae": d_sae} | ({"k": 5} if arch == "topk" else {}))
    return At(filled(architecture(arch)(config, D_MODEL), seed), (site,), (site,))


def transcoder_at(
    layer: int, arch: str = "topk", skip: bool = False, seed: int = 0, d_model: int = D_MODEL
) -> At:
    site, target = f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out"
    settings = {"site": site, "target": target, "d_sae": 40, "skip": skip} | (
        {"k": 5} if arch == "topk" else {}
    )
    config = architecture(arch).Config.model_validate(settings)
    return At(filled(architecture(arch)(config, d_model, d_model), seed + layer), (site,), (target,))


def clt_over(layers: list[int], seed: int = 0, d_model: int = D_MODEL) -> At:
    sites = tuple(f"blocks.{layer}.mlp.hook_in" for layer in layers)
    targets = tuple(f"blocks.{layer}.hook_mlp_out" for layer in layers)
    d_sae = 20 * len(layers)
    config = CltConfig(site=",".join(sites), target=",".join(targets), d_sae=d_sae, k=4)
    sizes = (d_model,) * len(layers)
    return At(filled(Clt(config, sizes, sizes), seed), sites, targets)


def linear_forward(
    replacement: Replacement, embedded: Tensor, codes: dict[int, Tensor], errors: Tensor
) -> tuple[dict[int, Tensor], Tensor]:
    """The replacement model run forward from given sources, head by head and position by position.

    ``codes`` are multiples of the activations on the prompt (1 each: the prompt itself). Returns the
    activations that each layer's features would have, and the logits.
    """
    x, found = embedded, {}
    written: dict[int, list[Tensor]] = {layer: [] for layer in range(replacement.n_layers)}
    for layer, attention in enumerate(replacement.attentions):
        weights, entry = attention.weights, x
        normed = attention.norm(entry)
        added = torch.zeros_like(x)
        group = len(weights.output) // len(weights.inputs[2])
        for head, out in enumerate(weights.output):
            bias = weights.biases[2]
            value = normed @ weights.inputs[2][head // group]
            value = value if bias is None else value + bias[head // group]
            for query in range(len(x)):
                for key in range(query + 1):
                    added[query] += attention.pattern[head, query, key] * (value[key] @ out)
        x = entry + added + (0 if weights.output_bias is None else weights.output_bias)
        seen = replacement.mlp_norms[layer](entry if replacement.parallel else x)
        mlp = errors[layer] + replacement.biases[layer]
        if (skip := replacement.skips[layer]) is not None:
            mlp = mlp + seen @ skip.T
        if layer in replacement.features:
            features = replacement.features[layer]
            found[layer] = torch.einsum("pkd,pd->pk", features.reads, seen) + features.constants
            for target, writes in features.writes.items():
                written[target].append((writes * codes[layer][..., None]).sum(1))
        x = x + mlp + sum(written[layer])
    logits = replacement.final_norm(x) @ replacement.unembed.T
    return found, logits if replacement.unembed_bias is None else logits + replacement.unembed_bias
