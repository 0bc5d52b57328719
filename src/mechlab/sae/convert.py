"""Dictionaries of other tools: read into artifacts of ours, and ours written for SAELens.

Formats are listed in ``mechlab.sae.formats``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save

from mechlab.artifacts import MANIFEST, Artifact, open_artifact, writing
from mechlab.errors import MechlabError, near
from mechlab.files import file_sha256, fingerprint, write_atomic
from mechlab.models.subject import Subject
from mechlab.sae.dictionary import KIND, STATISTICS, Dictionary, load_sae, save_sae
from mechlab.sae.formats import (
    dictionary_learning,
    gemma_scope,
    openai,
    release,
    saelens,
    saelens_folder,
    sparsify,
)
from mechlab.sae.formats.found import Found, Named
from mechlab.sae.formats.weights import read_json
from mechlab.sae.formats.wrapped import Normalised
from mechlab.sae.processing import processing_of, refuse_processed

# Format → (the files it is known by, reader of their folder).
_FOLDERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Named], Found]]] = {
    "saelens": ((saelens.WEIGHTS, saelens.CONFIG), saelens_folder.read),
    "dictionary_learning": (
        (dictionary_learning.WEIGHTS, dictionary_learning.CONFIG),
        dictionary_learning.read,
    ),
    "sparsify": ((sparsify.WEIGHTS, sparsify.CONFIG), sparsify.read),
    "gemma_scope": ((gemma_scope.NPZ,), gemma_scope.read),
    "gemma_scope_2": ((gemma_scope.WEIGHTS, gemma_scope.CONFIG), gemma_scope.read_2),
}
_UNNAMED = Named()
FORMATS = ("mechlab", *_FOLDERS, "openai", "sae_lens")
EXPORT = "saelens"
_EXPORTED = "export"


def convert(
    source: Path | str,
    out: Path | str,
    format: str = "auto",
    *,
    model: Subject | str = "",
    site: str = "",
    target: str = "",
    overwrite: bool = False,
) -> Dictionary:
    """Read another tool's dictionary and save it as one of ours, which ``load_sae`` opens.

    Args:
        source: a folder, one of the files in it, or ``sae_lens:RELEASE/ID`` (of sae-lens' releases).
        out: directory to make.
        format: one of ``FORMATS``, or "auto" to go by the files that are there.
        model: the model it was trained on: a subject, which it is then tied to by fingerprint and
            must fit, or the name to record where the files have none.
        site, target: site that it reads and, for transcoders, the one it predicts, where the files
            do not say, or in other names.
        overwrite: replace what is at ``out``.

    Raises MechlabError when there is no known format, a file is missing, damaged or holds what
    cannot be kept exactly, or the site is not known.
    """
    name = model.name if isinstance(model, Subject) else model
    found, format = read(source, format, Named(name, site, target))
    inputs = {"source": _source_fingerprint(found)}
    if isinstance(model, Subject):
        inputs["model"] = _fitting(found, model).fingerprint
    elif found.fingerprint is not None:
        inputs["model"] = found.fingerprint
    asked = {
        "source": str(source),
        "format": format,
        "model": name,
        "site": found.site,
        "target": found.target,
    }
    with writing(out, KIND, config=asked, seed=0, inputs=inputs, overwrite=overwrite) as writer:
        if writer.finished is None:
            facts = {
                "model_name": found.metadata.get("model_name"),
                "processing": processing_of(found.metadata),
            }
            mean = found.mean
            if mean is None:
                # The bias of a dictionary of normalised rows is in no units of the activations.
                known = not isinstance(found.sae, Normalised)
                mean = found.sae.b_dec.detach().float() * known
                facts["mean"] = "b_dec" if known else "zero"
            save_sae(writer.work, found.sae, found.inputs, found.outputs, mean, found.metadata)
            writer.commit([saelens.WEIGHTS, saelens.CONFIG, STATISTICS], facts=facts)
    return load_sae(out)


def export(
    source: Path | str,
    out: Path | str,
    format: str = "auto",
    *,
    model: str = "",
    site: str = "",
    target: str = "",
    overwrite: bool = False,
) -> Artifact:
    """Write a dictionary of any format for ``sae_lens.SAE.load_from_disk``.

    Arguments as for ``convert``. Raises MechlabError, beside its errors, for a dictionary that
    SAELens has no representation for.
    """
    found, format = read(source, format, Named(model, site, target))
    config, tensors = saelens.to_saelens(found.sae, found.inputs, found.outputs, found.metadata)
    if not saelens.representable(config):
        shown = config["architecture"].removeprefix("mechlab_")
        raise MechlabError("SAELens cannot hold this dictionary", shown, "use it in mechlab")
    asked = {
        "source": str(source),
        "format": format,
        "to": EXPORT,
        "site": found.site,
        "target": found.target,
    }
    inputs = {"source": _source_fingerprint(found)}
    with writing(out, _EXPORTED, config=asked, seed=0, inputs=inputs, overwrite=overwrite) as writer:
        if writer.finished is None:
            write_atomic(writer.work / saelens.WEIGHTS, save(tensors))
            write_atomic(writer.work / saelens.CONFIG, json.dumps(config, indent=1))
            writer.commit([saelens.WEIGHTS, saelens.CONFIG])
        assert writer.finished is not None
        return writer.finished


def read(source: Path | str, format: str = "auto", named: Named = _UNNAMED) -> tuple[Found, str]:
    """(dictionary, format) of a source; arguments and errors as in ``convert``."""
    if format not in ("auto", *FORMATS):
        raise MechlabError("unknown dictionary format", format, near(format, FORMATS))
    text = str(source)
    if text.startswith(release.PREFIX) or format == "sae_lens":
        return release.read(text, named), "sae_lens"
    path = Path(source)
    if not path.exists():
        raise MechlabError("no dictionary here", source, f"a folder, a file or {release.PREFIX}RELEASE/ID")
    names = {MANIFEST, *(name for known, _ in _FOLDERS.values() for name in known)}
    folder = path.parent if path.is_file() and path.name in names else path
    format = _detect(folder) if format == "auto" else format
    if format == "openai":
        return openai.read(path, named), format
    if format == "mechlab":
        return _ours(folder, named), format
    return _FOLDERS[format][1](folder, named), format


def _detect(path: Path) -> str:
    if path.is_file():
        return "openai"
    there = sorted(each.name for each in path.iterdir())
    # What ``export`` wrote is an artifact too, and holds SAELens' files.
    if MANIFEST in there and open_artifact(path, whole=False).manifest.kind != _EXPORTED:
        return "mechlab"
    # By the weights: configs of several formats have the same name.
    for format, (names, _) in _FOLDERS.items():
        if names[0] in there:
            return format
    shown = ", ".join(there[:6]) + (", …" if len(there) > 6 else "") if there else "nothing"
    wanted = ", ".join(names[0] for names, _ in _FOLDERS.values())
    raise MechlabError(f"no known dictionary format in {path}", f"it holds {shown}", f"known by: {wanted}")


def _ours(folder: Path, named: Named) -> Found:
    ours = load_sae(folder)
    config, weights = (ours.artifact.file(name) for name in (saelens.CONFIG, saelens.WEIGHTS))
    recorded = saelens.sites(read_json(config))
    transcoder = ours.inputs != ours.outputs
    site, target = named.sites(folder, *recorded, transcoder=transcoder)
    manifest = ours.artifact.manifest
    mean = None if "mean" in manifest.facts else ours.mean
    about = saelens_folder.facts(read_json(config), named)
    return Found(ours.sae, site, target, about, (config, weights), mean, manifest.inputs.get("model"))


def _fitting(found: Found, subject: Subject) -> Subject:
    """The subject, when the dictionary's sites are there with its widths and unprocessed."""
    names = (*found.inputs, *found.outputs)
    refuse_processed(processing_of(found.metadata), names, subject)
    for name, size in zip(names, (*found.sae.in_sizes, *found.sae.out_sizes), strict=True):
        if subject.site(name).dim != size:
            raise MechlabError(
                f"dictionary does not fit {subject.name} at {name}",
                f"width {size}, not {subject.site(name).dim}",
                "name the model and site it was trained on",
            )
    return subject


def _source_fingerprint(found: Found) -> str:
    """Of the files that were read, or of the weights where sae-lens fetched them."""
    if found.files:
        return fingerprint({path.name: file_sha256(path) for path in found.files})
    digest = hashlib.sha256()
    for name, tensor in sorted(found.sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
