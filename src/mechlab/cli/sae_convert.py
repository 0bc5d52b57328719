"""``mechlab sae convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mechlab.cli.outcome import Outcome
from mechlab.cli.parse import parse
from mechlab.errors import MechlabError
from mechlab.settings import Settings


class ConvertConfig(Settings):
    """Read a dictionary of another tool, or write one of ours for SAELens.

    The source is the first word: a folder, a file, or sae_lens:RELEASE/ID.

    Example: mechlab sae convert downloads/layers.6 --model pythia-160m --out runs/layer6
    """

    out: Path = Path("runs/converted")
    """Directory to make."""
    format: str = "auto"
    """auto, saelens, dictionary_learning, sparsify, gemma_scope, gemma_scope_2, openai or mechlab."""
    to: Literal["mechlab", "saelens"] = "mechlab"
    """What to write: a dictionary that other commands take, or files for sae_lens.SAE.load_from_disk."""
    model: str = ""
    """Name of the model it was trained on, where the files do not say."""
    site: str = ""
    """Site that it reads (TransformerLens hook name), where the files do not say."""
    target: str = ""
    """Site that it predicts, for a transcoder, where the files do not say."""
    overwrite: bool = False
    """Replace what is at --out."""


def convert(words: list[str], program: str) -> Outcome:
    """Convert one dictionary."""
    asks = {"-h", "--help"} & set(words)
    if not asks and (not words or words[0].startswith("-")):
        raise MechlabError("no source is named", None, f"{program} SOURCE --out DIR")
    config = parse(ConvertConfig, words if asks else words[1:], program)

    from mechlab.sae.convert import convert as read_in
    from mechlab.sae.convert import export

    source = words[0]
    common: dict[str, Any] = config.model_dump(include={"format", "model", "site", "target", "overwrite"})
    if config.to == "saelens":
        artifact = export(source, config.out, **common)
        text = f"{config.out}: {source} for SAELens"
        return Outcome({"out": str(config.out), "fingerprint": artifact.manifest.fingerprint}, text)
    made = read_in(source, config.out, **common)
    sae, manifest = made.sae, made.artifact.manifest
    payload = {
        "out": str(config.out),
        "fingerprint": manifest.fingerprint,
        "format": manifest.config["format"],
        "architecture": sae.arch,
        "inputs": made.inputs,
        "outputs": made.outputs,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "d_out": sae.d_out,
        "model": manifest.facts["model_name"],
        "processing": made.processing,
    }
    where = ", ".join(made.inputs) + ("" if made.inputs == made.outputs else f" → {', '.join(made.outputs)}")
    text = f"{config.out}: {sae.arch}, {sae.d_sae:,} latents at {where} ({payload['format']})"
    return Outcome(payload, text)
