"""SAEDashboard's batches for Neuronpedia: ``batch-{i}.json`` and ``skipped_indexes.json``.

Follows sae-dashboard 0.8.0 (``neuronpedia/neuronpedia_runner.py``, ``…_converter.py``): examples in a
group of the strongest (``bin_min`` and ``bin_contains`` -1, ``bin_max`` the largest activation) and in
groups by *intervals of equal width* between 0 and the largest activation, which its settings call
quantiles; ``bin_contains`` is the share of all tokens in an interval, both ends included. Numbers are
rounded as there: 3 decimals, shares 5. It fills the lowest interval with silent tokens mostly; ours
are active. Its ``correlated_features`` know only features of one batch, ours are those of ``Material``;
``…_l1`` of these is a cosine there and left empty here, as are the tables of neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechlab.errors import MechlabError
from mechlab.features.formats.examples import Example, FeatureExamples, activation_histogram, strings
from mechlab.features.formats.folder import alive, chosen, new_folder, read_json, required, write_json
from mechlab.features.formats.material import NOTHING, Material
from mechlab.features.index import FeatureIndex

BATCH = 128
_SKIPPED = "skipped_indexes.json"
_BATCH_FIELDS = ("model_id", "layer", "sae_set", "sae_id_suffix", "features")
_TABLES = tuple(
    f"{table}_{column}"
    for table, columns in (
        ("neuron_alignment", ("indices", "values", "l1")),
        ("correlated_neurons", ("indices", "l1", "pearson")),
        ("correlated_features", ("indices", "l1", "pearson")),
    )
    for column in columns
)
_FIELDS = (
    "feature_index", *_TABLES, "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero",
    "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt", "dataset",
    "decoder_weights_dist", "activations", "vector",
)  # fmt: skip
_EXAMPLE_FIELDS = ("bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index")
_LOGITS, _NEIGHBOURS = 10, 3


@dataclass(frozen=True)
class Dashboards:
    """What a folder of batches holds.

    Attributes:
        model, layer, source_set: whose features they are.
        features: record of each, with SAEDashboard's names.
        skipped: features without one.
    """

    model: str
    layer: int
    source_set: str
    features: dict[int, dict[str, Any]]
    skipped: tuple[int, ...]


def dashboard_record(
    index: FeatureIndex,
    feature: int,
    material: Material = NOTHING,
    *,
    dataset: str = "",
    top: int = 20,
    intervals: int = 5,
    each: int = 5,
    radius: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """One feature's record, as SAEDashboard's converter writes it.

    Args:
        dataset: name of the texts.
        top: examples in the group of the strongest; here no two are of one passage.
        intervals: groups by activation; 0 for none.
        each: random examples in each of them.
        radius: tokens on either side of an example's strongest; None for whole passages, as there.
    """
    examples = FeatureExamples(index, feature, radius=radius, seed=seed)
    _, value = index.entries(feature)
    counts, centres = activation_histogram(value.astype(np.float64))
    logit_counts, logit_centres = material.logit_histogram.get(feature, ((), ()))
    above = strings(material.top_logits.get(feature, ()), _LOGITS)
    below = strings(material.bottom_logits.get(feature, ()), _LOGITS)
    near = list(material.correlated.get(feature, ()))[:_NEIGHBOURS]
    return {
        "feature_index": feature,
        **{name: [] for name in _TABLES},
        "correlated_features_indices": [other for other, _ in near],
        "correlated_features_pearson": [round(float(r), 3) for _, r in near],
        "neg_str": below[0],
        "neg_values": [round(v, 3) for v in below[1]],
        "pos_str": above[0],
        "pos_values": [round(v, 3) for v in above[1]],
        "frac_nonzero": round(float(index.density[feature]), 5),
        "freq_hist_data_bar_values": [round(v, 3) for v in centres],
        "freq_hist_data_bar_heights": counts,
        "logits_hist_data_bar_heights": [int(n) for n in logit_counts],
        "logits_hist_data_bar_values": [round(float(v), 3) for v in logit_centres],
        "n_prompts_total": len(index.text.bounds) - 1,
        "n_tokens_in_prompt": int(np.diff(index.text.bounds).max(initial=0)),
        "dataset": dataset,
        "decoder_weights_dist": [],
        "activations": _groups(index, feature, examples, top, intervals, each),
        "vector": [float(v) for v in material.vector.get(feature, ())],
    }


def write_saedashboard(
    index: FeatureIndex,
    path: Path | str,
    material: Material = NOTHING,
    *,
    model: str,
    layer: int,
    source_set: str,
    suffix: str | None = None,
    dataset: str = "",
    features: Sequence[int] | None = None,
    radius: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """A folder of batches of 128 features; features that are active nowhere are listed as skipped.

    Args:
        model, layer, source_set, suffix: Neuronpedia's names: the source is "{layer}-{source_set}",
            with "__{suffix}" where there is one.
    """
    live = alive(index, features)
    with new_folder(path, overwrite=overwrite) as folder:
        skipped = sorted(set(chosen(index, features)) - set(live))
        names = {"model_id": model, "layer": str(layer), "sae_set": source_set}
        # Features that are never active, in place of a limit on the sparsity.
        write_json(folder / _SKIPPED, {**names, "log_sparsity": None, "skipped_indexes": skipped})
        for number, start in enumerate(range(0, len(live), BATCH)):
            records = []
            for feature in live[start : start + BATCH]:
                records.append(
                    dashboard_record(index, feature, material, dataset=dataset, radius=radius, seed=seed)
                )
                if progress:
                    progress(start + len(records), len(live))
            batch = {"model_id": model, "layer": layer, "sae_set": source_set, "sae_id_suffix": suffix}
            write_json(folder / f"batch-{number}.json", {**batch, "features": records})


def read_saedashboard(path: Path | str) -> Dashboards:
    """Read batches, ours or SAEDashboard's. MechlabError for files that are none, or of several sources."""
    folder, features = Path(path), {}
    batches = [required(read_json(file), _BATCH_FIELDS, file) for file in sorted(folder.glob("batch-*.json"))]
    if not batches:
        raise MechlabError("no batches of SAEDashboard's", folder, "name a folder with batch-0.json")
    sources = {(each["model_id"], int(each["layer"]), each["sae_set"]) for each in batches}
    if len(sources) > 1:
        raise MechlabError("batches are of several sources", folder, "keep each in a folder of its own")
    for batch in batches:
        for record in batch["features"]:
            required(record, _FIELDS, folder)
            for example in record["activations"]:
                required(example, _EXAMPLE_FIELDS, folder)
                if len(example["tokens"]) != len(example["values"]):
                    raise MechlabError("tokens and values differ in number", folder, "one each")
            features[int(record["feature_index"])] = record
    skipped = folder / _SKIPPED
    listed = read_json(skipped)["skipped_indexes"] if skipped.exists() else []
    return Dashboards(*sources.pop(), dict(sorted(features.items())), tuple(sorted(listed)))


def _groups(
    index: FeatureIndex, feature: int, examples: FeatureExamples, top: int, intervals: int, each: int
) -> list[dict[str, Any]]:
    """The strongest, then the intervals from the highest down."""
    largest = float(index.maximum[feature])
    found = [_example(one, -1.0, round(largest, 3), -1.0) for one in examples.top(top)]
    _, value = index.entries(feature)
    edges = np.linspace(0, largest, intervals + 1)
    for low, high in reversed(list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))):
        inside = int(((value >= low) & (value <= high)).sum())
        if low == 0:
            inside += len(index.text) - len(value)
        share = round(inside / max(len(index.text), 1), 5)
        for one in examples.between(low, high, each):
            found.append(_example(one, round(low, 3), round(high, 3), share))
    return found


def _example(example: Example, low: float, high: float, share: float) -> dict[str, Any]:
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "tokens": list(example.tokens),
        "values": example.rounded(3),
        "qualifying_token_index": example.peak,
    }
