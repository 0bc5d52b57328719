"""Latents of a dictionary as features: SAEs, transcoders, crosscoders, cross-layer transcoders."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.features.sources.block import Block, regrouped
from mechlab.features.sources.build import Progress, build
from mechlab.features.sources.rows import RowSource, require_sites
from mechlab.sae.base import Sae
from mechlab.sae.codes import Codes
from mechlab.sae.dictionary import Dictionary
from mechlab.sae.formats.wrapped import refuse_contextual
from mechlab.sae.processing import refuse_processed


def index_dictionary(
    dictionary: Dictionary,
    source: RowSource,
    path: Path | str,
    *,
    signs: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FeatureIndex:
    """Index the latents of a dictionary: feature f is latent f.

    The source is read and encoded in blocks, so memory does not grow with the text.

    Args:
        source: from ``store_rows`` or ``model_rows``.
        signs: index both signs of latents that have two (AbsTopK): feature d_sae + f is latent f
            where it is negative, with the opposite value.
        progress: called with (rows so far, rows there will be or 0).

    Raises MechlabError when the source lacks a site that the dictionary reads or comes from another
    model, the dictionary reads whole contexts, or a code is negative and ``signs`` was not asked for.
    """
    sae, sites = dictionary.sae, dictionary.inputs
    _check(dictionary, source)
    if getattr(sae, "signed", False) and not signs:
        raise _refuse_negative(sae)

    here = copy.deepcopy(sae).to(source.device)

    def encode(block: Block) -> Codes:
        x = torch.cat([block.values[site] for site in sites], dim=1)
        return _encode(here, x, sites, signs)

    return build(
        source, path, 2 * sae.d_sae if signs else sae.d_sae,
        lambda: regrouped(source.blocks(sites)), encode,
        about={
            "kind": "dictionary",
            "arch": sae.arch,
            "inputs": list(sites),
            "outputs": list(dictionary.outputs),
            "d_sae": sae.d_sae,
            "signs": signs,
        },
        inputs={"dictionary": dictionary.artifact.manifest.fingerprint},
        seed=seed, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def _check(dictionary: Dictionary, source: RowSource) -> None:
    refuse_contextual(dictionary.sae)
    refuse_processed(dictionary.processing, dictionary.inputs, None)
    trained_on = dictionary.artifact.manifest.inputs
    if "model_a" in trained_on and "model_a" not in source.inputs():
        raise MechlabError("dictionary reads two models", ", ".join(dictionary.inputs), "use pair_rows")
    for role in ("model", "model_a", "model_b"):
        there, wanted = source.inputs().get(role), trained_on.get(role)
        if wanted is not None and there is not None and there != wanted:
            raise MechlabError(
                "text and dictionary come from different models",
                f"fingerprints {there[:12]} and {wanted[:12]}",
                "use the model that the dictionary was trained on",
            )
    require_sites(source, dictionary.inputs)


@torch.no_grad()
def _encode(sae: Sae, x: Tensor, sites: tuple[str, ...], signs: bool) -> Codes:
    if x.shape[1] != sae.d_in:
        raise MechlabError(
            f"dictionary does not fit the activations at {', '.join(sites)}",
            f"width {sae.d_in}, not {x.shape[1]}",
            "use the model that it was trained on",
        )
    codes = sae.encode(x)
    if signs:
        return Codes(codes.values.abs(), codes.indices + sae.d_sae * (codes.values < 0))
    if bool((codes.values < 0).any()):
        raise _refuse_negative(sae)
    return codes


def _refuse_negative(sae: Sae) -> MechlabError:
    return MechlabError("latents have two signs", sae.arch, "index both, as two features each: signs=True")
