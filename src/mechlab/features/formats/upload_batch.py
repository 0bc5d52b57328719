"""Bodies for Neuronpedia's ``POST /api/feature/upload-batch``.

Follows the schema of its route: {modelId, source, features: at most 128 of {index, density, topLogits,
bottomLogits, explanations: [{text, methodName, modelName}], activations: at least one of {tokens,
values, quantileMin, quantileMax, quantileFraction}}}. Nothing here sends anything. Groups are true
quantiles: equal shares of the passages in which the feature is active, by rank; ``quantileFraction`` is
the share of all passages that a group stands for, -1 not being allowed, and the strongest examples are
the group whose bounds are both the largest activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError
from mechlab.features.formats.examples import Example, FeatureExamples
from mechlab.features.formats.folder import alive, new_folder, read_json, required, write_json
from mechlab.features.formats.material import NOTHING, Material
from mechlab.features.index import FeatureIndex

FEATURES, TOKENS, TEXT, LOGITS = 128, 1024, 512, 20
_LARGEST_INDEX, _LARGEST_VALUE = 10_000_000, 99_999_999


def upload_feature(
    index: FeatureIndex,
    feature: int,
    material: Material = NOTHING,
    *,
    top: int = 20,
    quantiles: int = 5,
    each: int = 5,
    radius: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """One feature of a body.

    Explanations longer than 512 characters end in "…". ``methodName`` is left out, since the server
    takes only names that are registered there.
    """
    examples = FeatureExamples(index, feature, radius=radius, seed=seed)
    largest, passages = float(index.maximum[feature]), max(len(index.text.bounds) - 1, 1)
    share = min(top, len(examples.rows)) / passages
    activations = [_activation(one, largest, largest, share) for one in examples.top(top)]
    rest = len(examples.rows) - top
    for number in range(quantiles if rest > 0 else 0):
        first, last = (top + rest * edge // quantiles for edge in (number, number + 1))
        if first < last:
            high, low = float(examples.values[first]), float(examples.values[last - 1])
            for one in examples.ranked(first, last, each):
                activations.append(_activation(one, low, high, (last - first) / passages))
    return {
        "index": feature,
        "density": float(index.density[feature]),
        "topLogits": _logits(material.top_logits.get(feature, ())),
        "bottomLogits": _logits(material.bottom_logits.get(feature, ())),
        "explanations": [
            {"text": _short(said.text), **({"modelName": said.model.lower()} if said.model else {})}
            for said in material.said.get(feature, ())
            if said.text
        ],
        "activations": activations,
    }


def write_upload_batch(
    index: FeatureIndex,
    path: Path | str,
    material: Material = NOTHING,
    *,
    model: str,
    source: str,
    features: Sequence[int] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """A folder of bodies ``upload-{i}.json``, each checked; features that are active nowhere are left out.

    Args:
        model, source: Neuronpedia's ids; lower-cased, as the server does.
    """
    live = alive(index, features)
    with new_folder(path, overwrite=overwrite) as folder:
        for number, start in enumerate(range(0, len(live), FEATURES)):
            records = []
            for feature in live[start : start + FEATURES]:
                records.append(upload_feature(index, feature, material, seed=seed))
                if progress:
                    progress(start + len(records), len(live))
            body = {"modelId": model.lower(), "source": source.lower(), "features": records}
            check_upload_batch(body)
            write_json(folder / f"upload-{number}.json", body)


def read_upload_batch(path: Path | str) -> list[dict[str, Any]]:
    """Bodies of a folder, checked."""
    files = sorted(Path(path).glob("upload-*.json"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise MechlabError("no bodies to upload", path, "name a folder with upload-0.json")
    bodies = [read_json(file) for file in files]
    for body in bodies:
        check_upload_batch(body)
    return bodies


def check_upload_batch(body: dict[str, Any]) -> None:
    """MechlabError that names what the server would refuse."""
    required(body, ("modelId", "source", "features"), "upload-batch")
    features = body["features"]
    _within("features in a body", len(features), 1, FEATURES)
    for feature in features:
        required(feature, ("index", "activations"), "upload-batch")
    if len({each["index"] for each in features}) != len(features):
        raise MechlabError("a feature occurs twice", body["source"], "once in a body")
    for feature in features:
        _within("index", feature["index"], 0, _LARGEST_INDEX)
        _within("density", feature.get("density", 0), 0, 1)
        for side in ("topLogits", "bottomLogits"):
            _within(side, len(feature.get(side, ())), 0, LOGITS)
            for logit in feature.get(side, ()):
                required(logit, ("token", "value"), side)
        for said in feature.get("explanations", ()):
            _within(
                "characters of an explanation",
                _length(required(said, ("text",), "explanation")["text"]),
                1,
                TEXT,
            )
        _within("activations of a feature", len(feature["activations"]), 1, None)
        for example in feature["activations"]:
            required(example, ("tokens", "values"), "activation")
            _within("tokens of an example", len(example["tokens"]), 1, TOKENS)
            if len(example["tokens"]) != len(example["values"]):
                raise MechlabError("tokens and values differ in number", feature["index"], "one each")
            if not all(example["tokens"]):
                raise MechlabError("token is empty", feature["index"], "the server refuses empty strings")
            for bound in ("quantileMin", "quantileMax"):
                _within(bound, example.get(bound) or 0, None, _LARGEST_VALUE)
            _within("quantileFraction", example.get("quantileFraction") or 0, 0, 1)


def _within(what: str, value: int | float, low: int | None, high: int | None) -> None:
    if (low is not None and value < low) or (high is not None and value > high):
        raise MechlabError(f"{what}: out of bounds", value, f"from {low} to {high}")


def _activation(example: Example, low: float, high: float, share: float) -> dict[str, Any]:
    return {
        "tokens": list(example.tokens[:TOKENS]),
        "values": example.rounded(5)[:TOKENS],
        "quantileMin": round(low, 5),
        "quantileMax": round(high, 5),
        "quantileFraction": share,
    }


def _logits(pairs: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"token": text, "value": round(float(value), 5)} for text, value in pairs[:LOGITS]]


def _short(text: str) -> str:
    if _length(text) <= TEXT:
        return text
    while _length(text) >= TEXT:
        text = text[: -max(1, (_length(text) - TEXT) // 2)]
    return text + "…"


def _length(text: str) -> int:
    """As the server's JavaScript counts: a character beyond U+FFFF as two."""
    return len(text) + sum(letter > "\uffff" for letter in text)
