"""Neuronpedia's bulk import: JSON lines, a folder for every source.

``{folder}/{model}/{source}/`` holds release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl, and in
features/, activations/ and explanations/ ``batch-{i}.jsonl.gz``. Rows are rows of its database tables
(SourceRelease, Model, SourceSet, Source, Neuron, Activation, Explanation), as its own exporter and
SAEDashboard's write them; numbers and groups are those of ``mechlab.features.formats.saedashboard``.
Scores stand inside the explanation that they are of, as rows of ExplanationScore, under the names that
it gives to delphi's (``eleuther_recall``, ``eleuther_fuzz``, ``eleuther_embedding``) where the score is
one of these, else under ours.

Ids are made from the content, and no time is later than ``created``: same index, same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError
from mechlab.features.formats.folder import chosen, new_folder, required
from mechlab.features.formats.material import NOTHING, Material, Rated, Said
from mechlab.features.formats.saedashboard import BATCH, dashboard_record
from mechlab.features.index import FeatureIndex

SCORE_TYPES = {
    "detection": "eleuther_recall",
    "fuzzing": "eleuther_fuzz",
    "embedding": "eleuther_embedding",
}
_TABLES = ("features", "activations", "explanations")
_SINGLES = ("release", "model", "sourceset", "source")
_FEATURE = ("modelId", "layer", "index", "maxActApprox", "frac_nonzero", "pos_str", "neg_str", "hasVector")
_ACTIVATION = (
    "id",
    "modelId",
    "layer",
    "index",
    "tokens",
    "values",
    "maxValue",
    "maxValueTokenIndex",
    "minValue",
)
_EXPLANATION = ("id", "modelId", "layer", "index", "description", "authorId")
_CREATOR = "clkht01d40000jv08hvalcvly"
"""The user that Neuronpedia's exporters name where none is given."""


@dataclass(frozen=True)
class Source:
    """Whose features they are, in Neuronpedia's words.

    Attributes:
        model: its id of the model ("gpt2-small").
        layer, source_set: the source is "{layer}-{source_set}".
        release: the release that the source set belongs to.
        creator: who made it.
        creator_id: that user's id there.
        description: of the release and the source set.
        hook: TransformerLens name of the site.
        dataset: name of the texts.
        created: ISO time of all rows.
    """

    model: str
    layer: int
    source_set: str
    release: str = "mechlab"
    creator: str = "mechlab"
    creator_id: str = _CREATOR
    description: str = ""
    hook: str | None = None
    dataset: str = ""
    created: str = "2000-01-01T00:00:00"

    @property
    def id(self) -> str:
        """Neuronpedia's name of the source."""
        return f"{self.layer}-{self.source_set}"


@dataclass(frozen=True)
class Bulk:
    """What a source's folder holds: rows with Neuronpedia's names.

    Attributes:
        release, model, sourceset, source: the single rows.
        features, activations, explanations: ordered as written.
    """

    release: dict[str, Any]
    model: dict[str, Any]
    sourceset: dict[str, Any]
    source: dict[str, Any]
    features: list[dict[str, Any]]
    activations: list[dict[str, Any]]
    explanations: list[dict[str, Any]]


def write_neuronpedia(
    index: FeatureIndex,
    path: Path | str,
    source: Source,
    material: Material = NOTHING,
    *,
    features: Sequence[int] | None = None,
    radius: int | None = 64,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the import; features that are active nowhere have a row and no activations.

    Args:
        radius: tokens on either side of an example's strongest; None for whole passages.
    """
    wanted = chosen(index, features)
    with new_folder(path, overwrite=overwrite) as folder:
        here = folder / source.model / source.id
        for table in _TABLES:
            (here / table).mkdir(parents=True)
        for name, row in zip(_SINGLES, _singles(index, source), strict=True):
            (here / f"{name}.jsonl").write_text(_line(row), encoding="utf-8")
        for number, start in enumerate(range(0, len(wanted), BATCH)):
            rows: dict[str, list[dict[str, Any]]] = {table: [] for table in _TABLES}
            for feature in wanted[start : start + BATCH]:
                record = dashboard_record(
                    index, feature, material, dataset=source.dataset, radius=radius, seed=seed
                )
                rows["features"].append(_feature(source, record, material))
                rows["activations"] += _activations(source, record)
                rows["explanations"] += _explanations(source, feature, material.said.get(feature, ()))
                if progress:
                    progress(start + len(rows["features"]), len(wanted))
            for table, several in rows.items():
                if several:
                    packed = gzip.compress("".join(map(_line, several)).encode(), 5, mtime=0)
                    (here / table / f"batch-{number}.jsonl.gz").write_bytes(packed)


def read_neuronpedia(path: Path | str) -> Bulk:
    """Read one source's folder, ``{model}/{source}``, packed or not. MechlabError for another one."""
    folder = Path(path)
    singles = {}
    for name in _SINGLES:
        rows = list(_rows(folder / f"{name}.jsonl"))
        if not rows:
            raise MechlabError("file holds no row", folder / f"{name}.jsonl", "one JSON object")
        singles[name] = rows[0]
    tables: dict[str, list[dict[str, Any]]] = {}
    for table, fields in zip(_TABLES, (_FEATURE, _ACTIVATION, _EXPLANATION), strict=True):
        files = sorted((folder / table).glob("batch-*.jsonl*"), key=lambda file: (len(file.name), file.name))
        tables[table] = [required(row, fields, file) for file in files for row in _rows(file)]
    return Bulk(
        singles["release"], singles["model"], singles["sourceset"], singles["source"],
        tables["features"], tables["activations"], tables["explanations"],
    )  # fmt: skip


def _singles(index: FeatureIndex, source: Source) -> tuple[dict[str, Any], ...]:
    by = {"creatorId": source.creator_id, "createdAt": source.created}
    lengths = index.text.bounds[1:] - index.text.bounds[:-1]
    release: dict[str, Any] = {
        "name": source.release, "description": source.description, "descriptionShort": source.description,
        "visibility": "PUBLIC", "isNewUi": False, "featured": False, "urls": [], "creatorEmail": None,
        "creatorName": source.creator, "creatorNameShort": source.creator, "defaultSourceSetName": None,
        "defaultSourceId": None, "defaultUmapSourceIds": [], **by,
    }  # fmt: skip
    model = {
        "id": source.model, "instruct": False, "displayNameShort": source.model, "displayName": source.model,
        "tlensId": None, "dimension": None, "visibility": "PUBLIC", "defaultSourceSetName": None,
        "defaultSourceId": None, "inferenceEnabled": False, "layers": 0, "neuronsPerLayer": 0, "owner": "",
        "updatedAt": source.created, "website": None, **by,
    }  # fmt: skip
    sourceset: dict[str, Any] = {
        "modelId": source.model, "name": source.source_set, "hasDashboards": True, "visibility": "PUBLIC",
        "description": source.description, "type": "", "creatorName": source.creator, "urls": [],
        "creatorEmail": None, "releaseName": source.release, "defaultOfModelId": None, "defaultRange": 1,
        "defaultShowBreaks": True, "showDfa": False, "showCorrelated": False, "showHeadAttribution": False,
        "showUmap": False, **by,
    }  # fmt: skip
    one: dict[str, Any] = {
        "id": source.id, "modelId": source.model, "setName": source.source_set, "hasDashboards": True,
        "inferenceEnabled": False, "inferenceHosts": [], "saelensConfig": None, "saelensRelease": None,
        "saelensSaeId": None, "hfRepoId": None, "hfFolderId": None, "visibility": "PUBLIC",
        "defaultOfModelId": None, "hasUmap": False, "hasUmapLogSparsity": False, "hasUmapClusters": False,
        "num_prompts": len(lengths), "num_tokens_in_prompt": int(lengths.max(initial=0)),
        "dataset": source.dataset, "notes": None, **by,
    }  # fmt: skip
    return release, model, sourceset, one


def _feature(source: Source, record: dict[str, Any], material: Material) -> dict[str, Any]:
    apart = ("feature_index", "activations", "n_prompts_total", "n_tokens_in_prompt", "dataset", "vector")
    # Statistics have the same names in the table.
    statistics = {name: value for name, value in record.items() if name not in apart}
    largest = max((max(each["values"]) for each in record["activations"]), default=0.0)
    similar = material.similar.get(record["feature_index"], ())
    return {
        "modelId": source.model, "layer": source.id, "index": str(record["feature_index"]),
        "creatorId": source.creator_id, "createdAt": source.created, "sourceSetName": source.source_set,
        "maxActApprox": largest, "hasVector": bool(record["vector"]), "vector": record["vector"],
        "vectorLabel": None, "vectorDefaultSteerStrength": largest if record["vector"] else 10,
        "hookName": source.hook,
        "topkCosSimIndices": [other for other, _ in similar],
        "topkCosSimValues": [round(float(cosine), 3) for _, cosine in similar],
        **statistics,
    }  # fmt: skip


def _activations(source: Source, record: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for number, example in enumerate(record["activations"]):
        values = example["values"]
        largest = max(values)
        yield {
            "id": _id(source, record["feature_index"], number),
            "modelId": source.model, "layer": source.id, "index": str(record["feature_index"]),
            "creatorId": source.creator_id, "createdAt": source.created, "tokens": example["tokens"],
            "values": values, "maxValue": largest, "maxValueTokenIndex": values.index(largest),
            "minValue": min(values), "dataIndex": None, "dataSource": source.dataset or None,
            "dfaValues": [], "dfaTargetIndex": None, "dfaMaxValue": None, "lossValues": [],
            "logitContributions": None, "binMin": example["bin_min"], "binMax": example["bin_max"],
            "binContains": example["bin_contains"],
            "qualifyingTokenIndex": example["qualifying_token_index"], "zIndices": None, "zValues": None,
        }  # fmt: skip


def _explanations(source: Source, feature: int, said: Sequence[Said]) -> Iterable[dict[str, Any]]:
    for number, each in enumerate(said):
        own = _id(source, feature, number, each.explainer, each.author, each.text)
        person = each.explainer == "person"
        yield {
            "id": own, "modelId": source.model, "layer": source.id, "index": str(feature),
            "description": each.text, "authorId": source.creator_id, "embedding": None,
            "typeName": None if person else f"mechlab_{each.explainer.split(':')[0]}",
            "explanationModelName": each.model,
            "notes": f"by {each.author or 'a person'}" if person else f"explainer {each.explainer}",
            "createdAt": source.created,
            "scores": [_score(source, own, rated) for rated in each.ratings],
        }  # fmt: skip


def _score(source: Source, explanation: str, rated: Rated) -> dict[str, Any]:
    return {
        "id": _id(source, explanation, rated.scorer, rated.judge),
        "explanationId": explanation,
        "initiatedByUserId": source.creator_id,
        "value": rated.value,
        "explanationScoreTypeName": SCORE_TYPES.get(rated.scorer, f"mechlab_{rated.scorer}"),
        "explanationScoreModelName": rated.judge,
        "jsonDetails": json.dumps(dict(rated.details), ensure_ascii=False),
        "createdAt": source.created,
    }


def _id(source: Source, *parts: object) -> str:
    """25 letters and digits that begin with a c, as Neuronpedia's ids do."""
    words = "\x1f".join(map(str, (source.model, source.id, *parts)))
    return "c" + hashlib.sha256(words.encode()).hexdigest()[:24]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        # Not splitlines: that also splits at separators which may stand inside JSON strings.
        return [json.loads(line) for line in text.split("\n") if line]
    except OSError:
        raise MechlabError("file cannot be read", path, "name the folder {model}/{source}") from None
    except (ValueError, zlib.error, EOFError) as error:
        raise MechlabError("file holds no JSON lines", path, str(error)) from None
