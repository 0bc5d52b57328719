"""Feature files of attribution-graph viewers (circuit-tracer, Neuronpedia's graphs).

``{index}.json`` holds {index, examples_quantiles: [{quantile_name, examples: [{tokens_acts_list,
tokens}]}], top_logits, bottom_logits}. The groups are true quantiles here: equal shares of the passages
in which the feature is active, by rank of their strongest activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError
from mechlab.features.formats.examples import Example, FeatureExamples, strings
from mechlab.features.formats.folder import alive, new_folder, read_json, required, write_json
from mechlab.features.formats.material import NOTHING, Material
from mechlab.features.index import FeatureIndex

TOP = "Top activations"
_FIELDS = ("index", "examples_quantiles", "top_logits", "bottom_logits")
_LOGITS = 10


def circuit_tracer_feature(
    index: FeatureIndex,
    feature: int,
    material: Material = NOTHING,
    *,
    top: int = 20,
    quantiles: int = 5,
    each: int = 5,
    radius: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """One feature's record.

    Args:
        top: examples in the first group, the strongest.
        quantiles: further groups over the other passages; each of random examples.
        each: examples in each of them.
        radius: tokens on either side of an example's strongest.
    """
    examples = FeatureExamples(index, feature, radius=radius, seed=seed)
    groups = [(TOP, examples.top(top))]
    rest = len(examples.rows) - top
    for number in range(quantiles if rest > 0 else 0):
        first, last = (top + rest * edge // quantiles for edge in (number, number + 1))
        groups.append((f"Subsample interval {number}", examples.ranked(first, last, each)))
    return {
        "index": feature,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_record(one) for one in some]}
            for name, some in groups
            if some
        ],
        "top_logits": strings(material.top_logits.get(feature, ()), _LOGITS)[0],
        "bottom_logits": strings(material.bottom_logits.get(feature, ()), _LOGITS)[0],
    }


def write_circuit_tracer(
    index: FeatureIndex,
    path: Path | str,
    material: Material = NOTHING,
    *,
    features: Sequence[int] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """A folder with ``{index}.json`` for every feature that is active anywhere."""
    live = alive(index, features)
    with new_folder(path, overwrite=overwrite) as folder:
        for done, feature in enumerate(live):
            record = circuit_tracer_feature(index, feature, material, seed=seed)
            write_json(folder / f"{feature}.json", record)
            if progress:
                progress(done + 1, len(live))


def read_circuit_tracer(path: Path | str) -> dict[int, dict[str, Any]]:
    """Records by feature. MechlabError for files that are none."""
    found = {}
    for file in Path(path).glob("*.json"):
        record = required(read_json(file), _FIELDS, file)
        for group in record["examples_quantiles"]:
            for example in required(group, ("quantile_name", "examples"), file)["examples"]:
                required(example, ("tokens", "tokens_acts_list"), file)
                if len(example["tokens"]) != len(example["tokens_acts_list"]):
                    raise MechlabError("tokens and activations differ in number", file, "one each")
        found[int(record["index"])] = record
    if not found:
        raise MechlabError("no feature files", path, "name a folder of them")
    return dict(sorted(found.items()))


def _record(example: Example) -> dict[str, Any]:
    return {"tokens_acts_list": example.rounded(4), "tokens": list(example.tokens)}
