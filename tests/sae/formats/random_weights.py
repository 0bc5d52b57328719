"""Dictionaries with random weights, and comparisons of what two of them compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mechlab.sae.base import Sae
from mechlab.sae.codes import scatter
from mechlab.sae.formats import saelens
from mechlab.sae.registry import architecture

D_IN, D_OUT, D_SAE, K = 8, 6, 20, 4
SITE, TARGET = "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"


def rows(count: int = 33, width: int = D_IN, seed: int = 7) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


def fill(module: torch.nn.Module, seed: int = 0) -> None:
    """Random values for all parameters; thresholds are positive, r_mag small."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        value = torch.randn(parameter.shape, generator=generator)
        if "threshold" in name:
            value = value.abs() * 0.3
        parameter.data.copy_(value * (0.2 if name.startswith(("b_", "r_")) else 0.6))
    if "Pursuit" in type(module).__name__:  # with longer rows it diverges
        W_dec = module.get_parameter("W_dec").data
        W_dec /= W_dec.norm(dim=1, keepdim=True)


def random_sae(arch: str, target: str = "", *, site: str = SITE, seed: int = 0, **settings: Any) -> Sae:
    """One of our dictionaries with random weights; a transcoder when a target is given."""
    kind = architecture(arch)
    if arch in ("topk", "abstopk", "batchtopk", "matryoshka"):
        settings.setdefault("k", K)
    centred = settings.pop("centred", None)
    config = kind.Config(site=site, target=target, d_sae=D_SAE, **settings)
    sae = kind(config, D_IN, D_OUT if target else None, centred=centred)
    fill(sae, seed)
    return sae.requires_grad_(False).eval()


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """SAELens' two files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / saelens.CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / saelens.WEIGHTS)
    return folder


def compare(sae: Sae, codes: Tensor, output: Tensor, x: Tensor) -> None:
    """Ours gives these dense codes and this output for ``x``, and something is active."""
    found = sae.encode(x)
    torch.testing.assert_close(scatter(found, sae.d_sae), codes, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(sae.decode(found, x), output, atol=5e-5, rtol=1e-4)
    assert 0 < float((codes != 0).float().mean()) < 1
