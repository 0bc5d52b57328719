"""Records of OpenAI's automated-interpretability: ``NeuronRecord`` files and ``puzzles.json``.

Follows openai/automated-interpretability (Bills et al. 2023; ``activations/activations.py``,
``fast_dataclasses``, ``puzzles.py``): ``{layer}/{neuron}.json``, every object with its ``dataclass_name``.
A record's unit is a passage. Quantiles are of passages by their largest activation, silent ones
included, with the boundaries that OpenAI's viewer names: 0.5, 0.9, 0.99, 0.999; ``quantile_boundaries``
are the activations there. Moments are over all tokens, silent ones included; kurtosis is the fourth
standardised moment, 3 for a normal distribution.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechlab.errors import MechlabError
from mechlab.features.formats.examples import Example, FeatureExamples
from mechlab.features.formats.folder import alive, new_folder, read_json, required, write_json
from mechlab.features.index import FeatureIndex
from mechlab.files import write_atomic

SHARES = (0.5, 0.9, 0.99, 0.999)
_FIELDS = (
    "neuron_id", "random_sample", "random_sample_by_quantile", "quantile_boundaries", "mean", "variance",
    "skewness", "kurtosis", "most_positive_activation_records",
)  # fmt: skip


@dataclass(frozen=True)
class Puzzle:
    """A feature that is made up, with sentences and what it does on them.

    Attributes:
        name, explanation: what it is and what it does.
        sentences: (token, activation) pairs of each.
        false_explanations: others that do not fit.
    """

    name: str
    explanation: str
    sentences: tuple[tuple[tuple[str, float], ...], ...]
    false_explanations: tuple[str, ...]


def neuron_record(
    index: FeatureIndex,
    feature: int,
    *,
    layer: int = 0,
    top: int = 20,
    each: int = 5,
    random: int = 20,
    radius: int | None = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """One feature's ``NeuronRecord``.

    Args:
        layer: number that ``neuron_id`` gives as the layer.
        top: strongest passages, one record of each.
        each: random passages of each of the five quantiles.
        random: random passages of all.
        radius: tokens on either side of a passage's strongest; None for whole passages.
    """
    examples = FeatureExamples(index, feature, radius=radius, seed=seed)
    passages = len(index.text.bounds) - 1
    # Ranks from the weakest: silent passages come first.
    edges = [0, *(int(share * passages) for share in SHARES), passages]
    groups = []
    for low, high in itertools.pairwise(edges):
        # Of this range, those that are not silent, as ranks from the strongest.
        active = examples.ranked(passages - high, passages - low, each)
        quiet = examples.silent(each - len(active)) if low < passages - len(examples.rows) else []
        groups.append([_record(one) for one in active + quiet])
    maxima = np.concatenate([np.zeros(passages - len(examples.rows)), np.sort(examples.values)])
    moments = _moments(index, feature)
    return {
        "dataclass_name": "NeuronRecord",
        "neuron_id": {"dataclass_name": "NeuronId", "neuron_index": feature, "layer_index": layer},
        "random_sample": [_record(one) for one in examples.anywhere(random)],
        "random_sample_by_quantile": groups,
        "quantile_boundaries": [
            float(maxima[min(edge, passages - 1)]) if passages else 0.0 for edge in edges[1:-1]
        ],
        **dict(zip(("mean", "variance", "skewness", "kurtosis"), moments, strict=True)),
        "most_positive_activation_records": [_record(one) for one in examples.top(top)],
    }


def write_openai(
    index: FeatureIndex,
    path: Path | str,
    *,
    layer: int = 0,
    features: Sequence[int] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """A folder with ``{layer}/{feature}.json`` for every feature that is active anywhere."""
    live = alive(index, features)
    with new_folder(path, overwrite=overwrite) as folder:
        for done, feature in enumerate(live):
            write_json(
                folder / str(layer) / f"{feature}.json", neuron_record(index, feature, layer=layer, seed=seed)
            )
            if progress:
                progress(done + 1, len(live))


def read_openai(path: Path | str, layer: int = 0) -> dict[int, dict[str, Any]]:
    """Records of one layer by neuron. MechlabError for files that are none."""
    found = {}
    for file in (Path(path) / str(layer)).glob("*.json"):
        record = required(read_json(file), _FIELDS, file)
        groups = [record["random_sample"], record["most_positive_activation_records"]]
        for group in [*groups, *(record["random_sample_by_quantile"] or [])]:
            for one in group:
                required(one, ("tokens", "activations"), file)
                if len(one["tokens"]) != len(one["activations"]):
                    raise MechlabError("tokens and activations differ in number", file, "one each")
        found[int(record["neuron_id"]["neuron_index"])] = record
    if not found:
        raise MechlabError(
            "no neuron records", Path(path) / str(layer), "name a folder with {layer}/{neuron}.json"
        )
    return dict(sorted(found.items()))


def read_puzzles(path: Path | str) -> dict[str, Puzzle]:
    """Puzzles of a ``puzzles.json`` by name. MechlabError for another file."""
    found = {}
    for name, fields in read_json(Path(path)).items():
        required(fields, ("name", "explanation", "sentences", "false_explanations"), path)
        sentences = tuple(
            tuple(
                (each, 0.0) if isinstance(each, str) else (str(each[0]), float(each[1])) for each in sentence
            )
            for sentence in fields["sentences"]
        )
        found[name] = Puzzle(
            fields["name"], fields["explanation"], sentences, tuple(fields["false_explanations"])
        )
    return found


def write_puzzles(puzzles: Mapping[str, Puzzle], path: Path | str) -> None:
    """A ``puzzles.json``; silent tokens are written bare, as there."""
    content = {
        name: {
            "name": puzzle.name,
            "explanation": puzzle.explanation,
            "sentences": [
                [[token, value] if value else token for token, value in sentence]
                for sentence in puzzle.sentences
            ],
            "false_explanations": list(puzzle.false_explanations),
        }
        for name, puzzle in puzzles.items()
    }
    write_atomic(path, json.dumps(content, ensure_ascii=False, indent=1))


def _moments(index: FeatureIndex, feature: int) -> tuple[float, float, float, float]:
    """Mean, variance, skewness and kurtosis over all tokens; the last two are 0 where nothing varies."""
    _, value = index.entries(feature)
    rows = max(len(index.text), 1)
    x, silent = value.astype(np.float64), rows - len(value)
    mean = float(x.sum() / rows)
    central = [float((((x - mean) ** power).sum() + silent * (-mean) ** power) / rows) for power in (2, 3, 4)]
    variance = central[0]
    if variance <= 0:
        return mean, 0.0, 0.0, 0.0
    return mean, variance, central[1] / variance**1.5, central[2] / variance**2


def _record(example: Example) -> dict[str, Any]:
    return {
        "dataclass_name": "ActivationRecord",
        "tokens": list(example.tokens),
        "activations": example.rounded(5),
    }
