"""Folders in SAELens' layout, of any version, as they are found on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.formats.found import Found, Named
from mechlab.sae.formats.saelens import CONFIG, OWN, SCALER, WEIGHTS, from_saelens, sites
from mechlab.sae.formats.weights import read_json, read_safetensors


def read(folder: Path, named: Named) -> Found:
    """A folder in SAELens' layout, of any version."""
    config, weights = read_json(folder / CONFIG), folder / WEIGHTS
    files = [folder / CONFIG, weights]
    tensors = dict(read_safetensors(weights).all())
    version = str((config.get("metadata") or {}).get("sae_lens_version") or config.get("sae_lens_version"))
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < 6:
        config, tensors = _modern(config, tensors, weights)
    scale = None
    if (folder / SCALER).is_file():
        files.append(folder / SCALER)
        scale = read_json(folder / SCALER).get("scaling_factor")
    return found(config, tensors, weights, named, scale, tuple(files))


def found(
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    path: Path | str,
    named: Named,
    scale: float | None = None,
    files: tuple[Path, ...] = (),
) -> Found:
    """``from_saelens`` with the sites and what else the metadata hold."""
    transcoder = "transcoder" in str(config.get("architecture"))
    recorded = sites(config)
    transcoder = transcoder or (str(config.get("architecture")).startswith(OWN) and bool(recorded[1]))
    site, target = named.sites(path, *recorded, transcoder=transcoder)
    return Found(from_saelens(config, tensors, path, scale), site, target, facts(config, named), files)


def facts(config: Mapping[str, Any], named: Named) -> dict[str, Any]:
    """What a config's metadata hold beside the sites."""
    recorded = (config.get("metadata") or {}).items()
    kept = {k: v for k, v in recorded if v is not None and not k.startswith(("hook_", "sae_lens_version"))}
    return {**kept, "model_name": named.model} if named.model else kept


def _modern(
    config: dict[str, Any], tensors: dict[str, Tensor], path: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What sae-lens makes of files older than its version 6."""
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    try:
        config = handle_config_defaulting(config)
    except Exception as error:
        raise MechlabError(f"sae-lens cannot read {path.parent / CONFIG}", error, "check the file") from error
    # Once written with every file, and used only where it is not all ones.
    factor = tensors.get("scaling_factor")
    if factor is not None and bool((factor == 1).all()):
        del tensors["scaling_factor"]
    return config, tensors
