"""One door to all formats, for what they have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError, near
from mechlab.features.formats.circuit_tracer import write_circuit_tracer
from mechlab.features.formats.delphi import write_delphi
from mechlab.features.formats.delphi_results import write_delphi_explanations, write_delphi_neighbours
from mechlab.features.formats.folder import new_folder
from mechlab.features.formats.material import NOTHING, Material
from mechlab.features.formats.neuronpedia import Source, write_neuronpedia
from mechlab.features.formats.openai_records import write_openai
from mechlab.features.formats.saedashboard import write_saedashboard
from mechlab.features.formats.upload_batch import write_upload_batch
from mechlab.features.index import FeatureIndex

FORMATS = ("delphi", "saedashboard", "neuronpedia", "upload-batch", "circuit-tracer", "openai")


def export_features(
    index: FeatureIndex,
    path: Path | str,
    format: str,
    material: Material = NOTHING,
    *,
    model: str = "",
    layer: int | None = None,
    source_set: str = "mechlab",
    site: str = "",
    features: Sequence[int] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Write an index in another tool's format, into a folder that appears whole or not at all.

    Args:
        format: "delphi", "saedashboard", "neuronpedia", "upload-batch", "circuit-tracer" or "openai".
        model, layer, site: whose features they are, as the other tool calls them; by default what the
            index says of itself.
        source_set: Neuronpedia's name of the dictionary, "res-jb" say.
        features: those to write; all by default.
        seed: of examples that are drawn.

    Returns the names under which they were written.

    Raises MechlabError for an unknown format, where ``path`` is taken, and as the format's writer does.
    """
    if format not in FORMATS:
        raise MechlabError("unknown format", format, near(format, FORMATS))
    source = source_of(index, model=model, layer=layer, source_set=source_set, site=site)
    if format == "delphi":
        _write_delphi(index, path, material, source, features, overwrite, progress)
        return source
    common: dict[str, Any] = {
        "features": features,
        "seed": seed,
        "overwrite": overwrite,
        "progress": progress,
    }
    if format == "saedashboard":
        names: dict[str, Any] = {"model": source.model, "layer": source.layer, "source_set": source_set}
        write_saedashboard(index, path, material, dataset=source.dataset, **names, **common)
    elif format == "neuronpedia":
        write_neuronpedia(index, path, source, material, **common)
    elif format == "upload-batch":
        write_upload_batch(index, path, material, model=source.model, source=source.id, **common)
    elif format == "circuit-tracer":
        write_circuit_tracer(index, path, material, **common)
    else:
        write_openai(index, path, layer=source.layer, **common)
    return source


def source_of(
    index: FeatureIndex, *, model: str = "", layer: int | None = None, source_set: str = "", site: str = ""
) -> Source:
    """Names of an index's features; what is not given is read from ``index.about``, and is "model", "" or 0
    where that says nothing. MechlabError for one that cannot name a folder."""
    text = index.about.get("text") or {}
    sites = index.about.get("outputs") or index.about.get("sites") or [index.about.get("site") or ""]
    site = site or str(sites[0])
    found = re.match(r"blocks\.(\d+)\.", site)
    number = layer if layer is not None else int(found[1]) if found else 0
    name = model or str(text.get("model_name") or index.about.get("model_name") or "model")
    # Names of folders there; a model loaded from a directory is called by its path.
    name = name.rstrip("/").rsplit("/", 1)[-1]
    for what, word in (("model", name), ("source set", source_set), ("site", site)):
        # Parts of paths: none may lead elsewhere.
        if word in (".", "..") or set(word) & {"/", "\\", "\0"} or (what == "model" and not word):
            raise MechlabError(f"name of the {what} is no name of a folder", word, "choose another")
    return Source(name, number, source_set, hook=site or None, dataset=str(text.get("corpus") or ""))


def _write_delphi(
    index: FeatureIndex,
    path: Path | str,
    material: Material,
    source: Source,
    features: Sequence[int] | None,
    overwrite: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """delphi's folder of results: latents, explanations (it keeps one of each) and neighbours."""
    hook = source.hook or "features"
    with new_folder(path, overwrite=overwrite) as folder:
        latents = folder / "latents" / hook
        write_delphi(index, latents, model=source.model, features=features, progress=progress)
        said = {feature: several[0].text for feature, several in sorted(material.said.items()) if several}
        wanted = None if features is None else set(features)
        kept = {feature: text for feature, text in said.items() if wanted is None or feature in wanted}
        write_delphi_explanations(folder / "explanations", hook, kept)
        if material.together:
            write_delphi_neighbours(folder / "neighbours", hook, "co-occurrence", material.together)
