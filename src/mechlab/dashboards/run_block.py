"""How a run went: results with their doubt, settings, fingerprints, training curves, times, commands."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

from mechlab.artifacts import Artifact
from mechlab.circuits.circuit import Circuit
from mechlab.dashboards.block_values import score_value, short
from mechlab.features.scoring.scorecard import Scorecard
from mechlab.sae.checkpoint import METRICS
from mechlab.sae.evaluate import Evaluation
from mechlab.scores import Score

# What a trainer logs and people look at; "step" is the x axis.
_CURVES = ("loss", "fve", "l0", "dead", "lr")


def run_block(
    *,
    command: str = "",
    config: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    timings: Mapping[str, float] | None = None,
    evaluation: Evaluation | None = None,
    circuit: Circuit | None = None,
    scores: Scorecard | None = None,
    artifacts: Mapping[str, Artifact] | None = None,
) -> dict[str, Any]:
    """The block ``run``; what is left out is not shown.

    Args:
        command: the exact command that makes everything again.
        config: settings of the run.
        inputs: role → fingerprint of what it started from (the model, the corpus).
        timings: stage → seconds.
        artifacts: what the run made, by name; each tells how it was made, and a dictionary among them
            how its training went.
    """
    made = artifacts or {}
    return {
        "command": command,
        "results": _results(evaluation, circuit, scores),
        "config": _flat(config or {}),
        "fingerprints": [[role, value] for role, value in (inputs or {}).items()],
        "artifacts": [_made(name, artifact) for name, artifact in made.items()],
        "versions": _versions(made),
        "timings": [[stage, short(seconds)] for stage, seconds in (timings or {}).items()],
        "training": [
            {"name": name, **history}
            for name, artifact in made.items()
            if (history := training_history(artifact))
        ],
    }


def training_history(artifact: Artifact) -> dict[str, Any]:
    """What a dictionary's trainer logged: {"step": […], "loss": […], …}; empty where there is no log.

    Dictionaries that were converted from other tools have none. Values that a trainer does not log for
    its kind of dictionary are left out; a line that was cut short by a kill is passed over.
    """
    path = artifact.path / METRICS
    if METRICS not in artifact.manifest.files or not path.is_file():
        return {}
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line, parse_int=float))
        except ValueError:
            continue
    if not rows:
        return {}
    batch = artifact.manifest.config.get("batch_size")
    return {
        "step": [row["step"] for row in rows],
        **({"batch": batch} if isinstance(batch, int) else {}),
        **{name: [short(row.get(name)) for row in rows] for name in _CURVES if name in rows[0]},
    }


def _results(
    evaluation: Evaluation | None, circuit: Circuit | None, scores: Scorecard | None
) -> list[dict[str, Any]]:
    """Scores as lines of the table; ``unit`` says what n counts."""
    found: list[dict[str, Any]] = []
    if evaluation is not None:
        lines = (
            (evaluation.l0, "L0", "active latents per held-out token"),
            (evaluation.fve, "Fraction of variance explained", ""),
            (evaluation.ce_recovered, "CE loss recovered", "against mean ablation"),
            (evaluation.ce_recovered_zero, "CE loss recovered", "against zero ablation"),
            (Score("dead", evaluation.dead, math.nan, math.nan, evaluation.tokens), "Dead latents", ""),
        )
        found += [{**score_value(*line), "unit": "documents"} for line in lines]
        found[-1]["unit"] = "tokens"
    if circuit is not None:
        note = f"{circuit.task} by {circuit.method}, {circuit.n_edges} edges"
        found.append({**score_value(circuit.faithfulness, "Circuit faithfulness", note), "unit": "prompts"})
    for total in [] if scores is None else scores.totals():
        by = f" of {total.explainer}" if total.explainer else ""
        note = f"mean over features{by}" + (f"; {total.unscored} without" if total.unscored else "")
        name = total.scorer[:1].upper() + total.scorer[1:]
        found.append({**score_value(total.mean, name, note), "unit": "features"})
    return found


def _made(name: str, artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "name": name,
        "kind": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "bytes": sum(int(file["bytes"]) for file in manifest.files.values()),
        "created": manifest.created,
        "command": shlex.join(manifest.command),
    }


def _versions(artifacts: Mapping[str, Artifact]) -> list[list[str]]:
    """Libraries that made the parts; every version where they differ."""
    found: dict[str, dict[str, None]] = {}
    for artifact in artifacts.values():
        for library, version in artifact.manifest.versions.items():
            found.setdefault(library, {})[version] = None
    return [[library, ", ".join(versions)] for library, versions in found.items()]


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Settings as [name, text], those of a part under the part's name: "train.k"."""
    found: list[list[str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            found.append([prefix + name, "not set" if value is None else text])
    return found
