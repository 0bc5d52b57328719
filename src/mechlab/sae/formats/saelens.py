"""SAELens' file layout: ``cfg.json`` and ``sae_weights.safetensors``.

Follows sae-lens 6.54 (``saes/*.py``, ``loading/pretrained_sae_loaders.py``). SAELens sends files
without ``metadata.sae_lens_version`` >= 6 through an old-format converter, hence that key.

| SAELens' architecture | ours |
|---|---|
| standard, gated, topk, abstopk, jumprelu, matching_pursuit | relu, the others by the same name |
| transcoder, skip_transcoder (jumprelu_...) | relu (jumprelu) with a target, with ``skip`` |
| batchtopk, matryoshka_batchtopk (saved while training) | jumprelu with their threshold |
| mechlab_... | what SAELens has no name for: our config is kept under ``mechlab`` |
| any other (temporal) | ``wrapped.Foreign`` |

Folded into the weights on reading, exactly: ``rescale_acts_by_decoder_norm`` and the factor of
``expected_average_only_in``. Rows normalised one by one are ``wrapped.Normalised``. ``hook_z``
needs no reshaping: our sites have heads side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.sae.base import Sae
from mechlab.sae.formats.found import build, fold_decoder_norms, jump
from mechlab.sae.formats.weights import Weights, setting
from mechlab.sae.formats.wrapped import NORMALISATIONS, Foreign, Normalised
from mechlab.sae.jumprelu import JumpReLU
from mechlab.sae.matching_pursuit import MatchingPursuit
from mechlab.sae.registry import architecture
from mechlab.sae.topk import TopK

VERSION = "6.54.12"
WEIGHTS, CONFIG, SCALER = "sae_weights.safetensors", "cfg.json", "activation_scaler.json"
OWN = "mechlab_"
_NAMES = {
    "relu": "standard", "gated": "gated", "topk": "topk", "abstopk": "abstopk",
    "jumprelu": "jumprelu", "matching_pursuit": "matching_pursuit",
}  # fmt: skip
_TRANSCODERS = {
    ("relu", False): "transcoder",
    ("relu", True): "skip_transcoder",
    ("jumprelu", False): "jumprelu_transcoder",
    ("jumprelu", True): "jumprelu_skip_transcoder",
}
_ARCHS = (
    {name: arch for arch, name in _NAMES.items()}
    | {name: arch for (arch, _), name in _TRANSCODERS.items()}
    | {"batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"}
)
_PURSUIT = ("residual_threshold", "max_iterations", "stop_on_duplicate_support")
_GATED = ("b_gate", "b_mag", "r_mag")


def to_saelens(
    sae: Sae,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    metadata: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Contents of ``cfg.json`` and the tensors of ``sae_weights.safetensors``.

    Args:
        inputs, outputs: sites that are read and predicted; the same unless a transcoder.
        metadata: further entries of the config's ``metadata``.
    """
    about = {"sae_lens_version": VERSION, **(metadata or {}), **_hook("", inputs)}
    if outputs != inputs:
        about |= _hook("_out", outputs)
    if isinstance(sae, Foreign):
        return {**sae.saved, "metadata": {**sae.saved.get("metadata", {}), **about}}, _tensors(sae.module)
    how = "none"
    if isinstance(sae, Normalised):
        how, sae = sae.how, sae.inner
    name = _name(sae, inputs, outputs)
    heads = inputs == outputs and len(inputs) == 1 and inputs[0].endswith("hook_z")
    config: dict[str, Any] = {
        "architecture": name,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": how,
        "reshape_activations": "hook_z" if heads else "none",
        "metadata": about,
    }
    if name.startswith(OWN):
        tied = sae.config.tied and sae.W_enc is None
        config["mechlab"] = {
            "config": {**sae.config.model_dump(), "tied": tied},
            "in_sizes": sae.in_sizes,
            "out_sizes": sae.out_sizes,
        }
        return config, _tensors(sae)
    if name in _TRANSCODERS.values():
        config["d_out"] = sae.d_out
    if isinstance(sae, TopK):
        config |= {"k": sae.config.k, "rescale_acts_by_decoder_norm": False}
    if isinstance(sae, MatchingPursuit):
        config |= {key: getattr(sae.config, key) for key in _PURSUIT}
    if isinstance(sae, JumpReLU) and sae.trained_as != sae.arch:
        about["training_architecture"] = sae.trained_as
    tensors = _tensors(sae)
    tensors.pop("annealed", None)
    if not isinstance(sae, MatchingPursuit):
        tensors["W_enc"] = sae.encoder.detach().T.contiguous()
    return config, tensors


def representable(config: Mapping[str, Any]) -> bool:
    """Whether SAELens itself can load what ``to_saelens`` made."""
    return not config["architecture"].startswith(OWN)


def from_saelens(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: Path | str = WEIGHTS,
    scale: float | None = None,
) -> Sae:
    """The dictionary that the two files describe.

    Args:
        config, tensors: their contents.
        path: the weights file, for errors.
        scale: factor on the activations, for ``expected_average_only_in``.

    Raises MechlabError when the architecture is unknown, a setting cannot be represented exactly,
    or a tensor is missing, misshapen, unknown or not finite.
    """
    name = setting(config, "architecture", CONFIG, str)
    weights = Weights(tensors, path)
    if name.startswith(OWN):
        return _own(config, weights)
    if name not in _ARCHS:
        return Foreign(config, tensors, path)
    arch, transcoder = _ARCHS[name], "transcoder" in name
    settings: dict[str, Any] = {}
    if arch in ("topk", "abstopk"):
        settings["k"] = setting(config, "k", CONFIG)
    elif arch == "matching_pursuit":
        settings = {key: setting(config, key, CONFIG, object) for key in _PURSUIT}
    parts = _parts(name, config, weights)
    if config.get("rescale_acts_by_decoder_norm"):
        fold_decoder_norms(parts)
    site, target = sites(config)
    # A transcoder without a recorded target is still one; its caller may know the target.
    target = (target or "unknown") if transcoder else ""
    centred = bool(config.get("apply_b_dec_to_input", not transcoder))
    if arch == "matching_pursuit" and not centred:
        parts["b_dec"].zero_()  # SAELens uses it on both sides or on none
    sae = build(arch, parts, site, target, centred=centred, **settings)
    if isinstance(sae, JumpReLU):
        sae.trained_as = (config.get("metadata") or {}).get("training_architecture") or name
    return _normalised(sae, config, path, scale)


def sites(config: Mapping[str, Any]) -> tuple[str, str]:
    """(site, target) as the config records them; "" where it does not."""
    facts = config.get("metadata") or {}
    site, target = (_site(facts, suffix) for suffix in ("", "_out"))
    return site, "" if target == site else target


def _name(sae: Sae, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> str:
    own = OWN + sae.arch
    if len(inputs) > 1 or len(outputs) > 1:
        return own
    if isinstance(sae, MatchingPursuit) and not sae.centred and bool(sae.b_dec.any()):
        return own  # SAELens would leave b_dec out of the output too
    if inputs == outputs:
        return own if sae.W_skip is not None else _NAMES.get(sae.arch, own)
    return own if sae.centred else _TRANSCODERS.get((sae.arch, sae.W_skip is not None), own)


def _own(config: Mapping[str, Any], weights: Weights) -> Sae:
    kind = architecture(config["architecture"].removeprefix(OWN))
    ours = setting(config, "mechlab", CONFIG, dict)
    try:
        settings = kind.Config.model_validate(ours["config"])
        sizes = [tuple(int(size) for size in ours[key]) for key in ("in_sizes", "out_sizes")]
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        problem = str(error).replace("\n", " ")
        raise MechlabError(f"{CONFIG} cannot be read", kind.arch, problem) from error
    in_sizes, out_sizes = sizes
    sae = kind(
        settings,
        in_sizes,
        out_sizes if settings.target else None,
        centred=bool(config["apply_b_dec_to_input"]),
    )
    sae.load_state_dict({key: weights.take(key, *value.shape) for key, value in sae.state_dict().items()})
    weights.done()
    return sae


def _parts(name: str, config: Mapping[str, Any], weights: Weights) -> dict[str, Tensor]:
    """The tensors of an architecture under our names."""
    d_in, d_sae = (setting(config, key, CONFIG) for key in ("d_in", "d_sae"))
    d_out = setting(config, "d_out", CONFIG) if "transcoder" in name else d_in
    arch = _ARCHS[name]
    parts = {"W_dec": weights.take("W_dec", d_sae, d_out), "b_dec": weights.take("b_dec", d_out)}
    if arch != "matching_pursuit":
        parts["W_enc"] = weights.take("W_enc", d_in, d_sae)
        for bias in _GATED if arch == "gated" else ("b_enc",):
            parts[bias] = weights.take(bias, d_sae)
    if arch == "jumprelu":
        if name in ("batchtopk", "matryoshka_batchtopk"):
            threshold = weights.take("topk_threshold")
        elif "log_threshold" in weights:
            threshold = weights.take("log_threshold", d_sae).exp()
        else:
            threshold = weights.take("threshold", d_sae)
        parts["threshold"] = jump(threshold, d_sae)
    if "skip" in name:
        parts["W_skip"] = weights.take("W_skip", d_out, d_in)
    weights.done()
    return parts


def _normalised(sae: Sae, config: Mapping[str, Any], path: Path | str, scale: float | None) -> Sae:
    how = config.get("normalize_activations") or "none"
    if how == "none":
        return sae
    if how in NORMALISATIONS and not sae.config.target:
        return Normalised(sae, how)
    if how == "expected_average_only_in" and sae.W_enc is not None:
        if scale is None:
            raise MechlabError(
                f"{path}: the factor of its activations is not recorded",
                how,
                f'put it beside as {SCALER}: {{"scaling_factor": ...}}',
            )
        ones = sae.b_dec.new_ones
        sae.change_units(ones(sae.d_in) * scale, ones(sae.d_out) * scale)
        sae.scale_codes(scale)  # SAELens leaves codes in the scaled units
        return sae
    raise MechlabError(f"{path}: normalize_activations cannot be kept exactly", how, "fold it with SAELens")


def _tensors(module: Any) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def _hook(suffix: str, names: tuple[str, ...]) -> dict[str, Any]:
    """SAELens' entries for sites; a head stands beside the name."""
    name, _, head = names[0].partition(":")
    if len(names) > 1 or not head.isdecimal():
        return {f"hook_name{suffix}": ",".join(names)}
    return {f"hook_name{suffix}": name, f"hook_head_index{suffix}": int(head)}


def _site(facts: Mapping[str, Any], suffix: str) -> str:
    name, head = facts.get(f"hook_name{suffix}") or "", facts.get(f"hook_head_index{suffix}")
    return name if head is None or not name else f"{name}:{head}"
