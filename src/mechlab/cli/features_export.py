"""``mechlab features export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from mechlab.cli.features_inputs import opened, ranges, require_same_features
from mechlab.cli.outcome import Outcome
from mechlab.cli.outputs import require_directory
from mechlab.cli.parse import parse
from mechlab.cli.progress import Reporter
from mechlab.errors import MechlabError
from mechlab.settings import Settings

if TYPE_CHECKING:
    from mechlab.features.formats.material import Material
    from mechlab.features.index import FeatureIndex


class ExportConfig(Settings):
    """Write features in another tool's format, with explanations, scores and your notes on them.

    Notes and labels are those beside the index. delphi's folder takes one explanation of a feature, and
    no scores, as it keeps single answers of judges instead; OpenAI's records take no explanations.

    Example: mechlab features export runs/features --format neuronpedia --out runs/export --features 0-99
    """

    index: tyro.conf.Positional[Path] = Path("runs/features")
    """Directory of the feature index."""
    format: Literal["delphi", "saedashboard", "neuronpedia", "upload-batch", "circuit-tracer", "openai"] = (
        "neuronpedia"
    )
    """delphi: a cache of latents; saedashboard: batch-N.json; neuronpedia: its bulk import; upload-batch:
    bodies for its API; circuit-tracer: files of graph viewers; openai: neuron records."""
    out: Path = Path("runs/export")
    """Folder to make."""
    explanations: Path | None = None
    """Directory of explanations."""
    scores: Path | None = None
    """Directory of their scores."""
    dictionary: Path | None = None
    """Directory of the dictionary that was indexed: adds logits, vectors and similar features."""
    neighbours: bool = False
    """Look for features that are active together."""
    features: str | None = None
    """Features to write, "0-99" or "3,17,40-49"; all by default."""
    model: str = ""
    """What the other tool calls the model; by default what the index calls it."""
    subject: str = ""
    """Subject of --dictionary: "fable", a directory or a hub name; by default that of the index."""
    layer: int | None = None
    """Layer; by default that of the index's site."""
    source_set: str = "mechlab"
    """What Neuronpedia is to call the dictionary."""
    seed: int = 0
    """Of examples that are drawn."""
    overwrite: bool = False
    """Replace what is at --out."""


def export(words: list[str], program: str) -> Outcome:
    """Write one folder."""
    config = parse(ExportConfig, words, program)
    wanted = None if config.features is None else ranges(config.features)

    from mechlab.features.building import load_index
    from mechlab.features.formats.export import export_features
    from mechlab.features.formats.folder import require_free

    require_free(config.out, overwrite=config.overwrite)
    require_directory(config.out.parent)
    index = load_index(config.index)
    with Reporter() as report:
        report("collect", 0, 0, {})
        material = _material(config, index, wanted)
        source = export_features(
            index, config.out, config.format, material, model=config.model, layer=config.layer,
            source_set=config.source_set, features=wanted, seed=config.seed, overwrite=config.overwrite,
            progress=lambda done, total: report("export", done, total, {}),
        )  # fmt: skip
    files = [each for each in config.out.rglob("*") if each.is_file()]
    count = index.n_features if wanted is None else len(wanted)
    live = sum(bool(index.active[each]) for each in (wanted if wanted is not None else index.live))
    said = sum(len(material.said.get(each, ())) for each in (wanted or range(index.n_features)))
    payload = {
        "out": str(config.out),
        "format": config.format,
        "features": count,
        "live": live,
        "explanations": 0 if config.format == "openai" else said,
        "files": len(files),
        "bytes": sum(each.stat().st_size for each in files),
        "model": source.model,
        "source": source.id,
    }
    text = f"{config.out}: {count:,} features ({live:,} live) as {config.format}, {len(files)} files"
    return Outcome(payload, text)


def _material(config: ExportConfig, index: FeatureIndex, wanted: list[int] | None) -> Material:
    from mechlab.artifacts import open_artifact
    from mechlab.features.explanations import load_explanations
    from mechlab.features.formats.collect import collect
    from mechlab.features.notes import read_notes
    from mechlab.features.scoring.scorecard import load_scores

    more: dict[str, Any] = {}
    if config.dictionary is not None:
        dictionary, subject = opened(config.dictionary, config.subject, index, config.index)
        more = {"dictionary": dictionary, "subject": subject}
    explanations, said = None, ""
    if config.explanations is not None:
        explanations, made = load_explanations(config.explanations), open_artifact(config.explanations)
        said = made.manifest.fingerprint
        if explanations.n_features != index.n_features:
            raise MechlabError(
                "explanations are of another index",
                f"{explanations.n_features} features, not {index.n_features}",
                "check --explanations",
            )
        require_same_features(made, config.index, index)
    judge = ""
    if config.scores is not None:
        if explanations is None:
            raise MechlabError("scores of which explanations", config.scores, "pass --explanations too")
        manifest = open_artifact(config.scores).manifest
        if manifest.inputs.get("explanations") not in (None, said):
            raise MechlabError("scores are of other explanations", config.scores, "check --scores")
        judge = manifest.config.get("judge", "")
    return collect(
        index,
        features=wanted,
        explanations=() if explanations is None else explanations.items,
        scores=() if config.scores is None else load_scores(config.scores),
        notes=read_notes(config.index),
        judge=str(judge or ""),
        neighbours=config.neighbours,
        **more,
    )
