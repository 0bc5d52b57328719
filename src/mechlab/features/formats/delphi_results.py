"""delphi's folders of explanations, scores and neighbours.

Follows eai-delphi 0.1.3: ``explanations/{hookpoint}_latent{i}.txt`` holds the explanation as a JSON
string, ``scores/{scorer}/{hookpoint}_latent{i}.txt`` a list of ``ClassifierOutput`` records, and
``neighbours/{hookpoint}-{method}.json`` a list of (closeness, latent) by latent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from mechlab.errors import MechlabError
from mechlab.features.formats.folder import read_json, write_json
from mechlab.features.index import FeatureIndex

_NAME = re.compile(r"(.+)_latent(\d+)")


@dataclass(frozen=True)
class ClassifierRecord:
    """What a judge said of one example, with delphi's names.

    Attributes:
        str_tokens, activations: the example.
        distance: quantile of an active example, from 0 as the strongest; -1 where that says nothing.
        activating: whether the feature is active in it.
        prediction, correct: what the judge said; None where it gave no usable answer.
        probability: that it is active, in the judge's opinion.
    """

    str_tokens: list[str]
    activations: list[float]
    distance: float
    activating: bool
    prediction: bool | None
    probability: float | None
    correct: bool | None


def classifier_records(
    index: FeatureIndex,
    feature: int,
    start: Int[np.ndarray, "item"],
    width: int,
    label: Bool[np.ndarray, "item"],
    probability: Float[np.ndarray, "item"],
    distance: Int[np.ndarray, "item"] | None = None,
    *,
    threshold: float = 0.5,
) -> list[ClassifierRecord]:
    """Records of windows that a judge was asked about.

    Args:
        start, width: first row of each window, and their common length.
        probability: the judge's answers; NaN where there was none.
        distance: quantile of each window; -1 for all by default.
        threshold: probability from which on the answer counts as yes.
    """
    row, value = index.entries(feature)
    records = []
    for number, (begin, active, p) in enumerate(
        zip(start.tolist(), label.tolist(), probability.tolist(), strict=True)
    ):
        first, last = np.searchsorted(row, (begin, begin + width))
        dense = np.zeros(width)
        dense[row[first:last] - begin] = value[first:last]
        pieces = index.text.vocabulary.pieces(np.asarray(index.text.tokens[begin : begin + width]))
        said = None if math.isnan(p) else bool(p >= threshold)
        records.append(
            ClassifierRecord(
                [piece.text for piece in pieces],
                [float(dense[piece.start : piece.stop].max()) for piece in pieces],
                -1.0 if distance is None else float(distance[number]),
                active,
                said,
                None if math.isnan(p) else p,
                None if said is None else said == active,
            )
        )
    return records


def write_delphi_explanations(folder: Path, hookpoint: str, explanations: Mapping[int, str]) -> None:
    """A file for every latent into ``…/explanations``, whole as delphi reads it: one explanation of each."""
    for latent, text in explanations.items():
        write_json(folder / f"{_file(hookpoint, latent)}.txt", text)


def read_delphi_explanations(folder: Path | str, hookpoint: str) -> dict[int, str]:
    """Explanations of a hookpoint's latents. MechlabError for a file that holds none."""
    found = {}
    for latent, path in _files(Path(folder), hookpoint).items():
        text = read_json(path)
        if not isinstance(text, str):
            raise MechlabError("file holds no explanation", path, "one JSON string")
        found[latent] = text
    return found


def write_delphi_scores(
    folder: Path, hookpoint: str, records: Mapping[int, Sequence[ClassifierRecord]]
) -> None:
    """A file for every latent into ``…/scores/{scorer}``."""
    for latent, several in records.items():
        write_json(folder / f"{_file(hookpoint, latent)}.txt", [asdict(each) for each in several])


def read_delphi_scores(folder: Path | str, hookpoint: str) -> dict[int, list[ClassifierRecord]]:
    """Records of a hookpoint's latents. MechlabError for a file that holds others."""
    found = {}
    for latent, path in _files(Path(folder), hookpoint).items():
        try:
            found[latent] = [ClassifierRecord(**each) for each in read_json(path)]
        except TypeError as error:
            raise MechlabError("file holds no classifier records", path, str(error)) from None
    return found


def write_delphi_neighbours(
    folder: Path, hookpoint: str, method: str, neighbours: Mapping[int, Sequence[tuple[int, float]]]
) -> None:
    """One file into ``…/neighbours``.

    Args:
        method: "co-occurrence", "decoder_similarity" or "encoder_similarity".
        neighbours: latent → (other latent, closeness), closest first.
    """
    content = {
        str(latent): [[float(close), other] for other, close in near] for latent, near in neighbours.items()
    }
    write_json(folder / f"{hookpoint}-{method}.json", content)


def read_delphi_neighbours(path: Path | str) -> dict[int, list[tuple[int, float]]]:
    """What ``write_delphi_neighbours`` was given. MechlabError for another file."""
    try:
        return {
            int(latent): [(int(other), float(close)) for close, other in near]
            for latent, near in read_json(Path(path)).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise MechlabError("file holds no neighbours", path, str(error)) from None


def _file(hookpoint: str, latent: int) -> str:
    return f"{hookpoint}_latent{latent}".replace("/", "--")


def _files(folder: Path, hookpoint: str) -> dict[int, Path]:
    wanted = hookpoint.replace("/", "--")
    found = {}
    for path in folder.glob("*.txt"):
        match = _NAME.fullmatch(path.stem)
        if match and match[1] == wanted:
            found[int(match[2])] = path
    if not found:
        raise MechlabError(f"nothing about {hookpoint}", folder, "check the folder and the hookpoint")
    return dict(sorted(found.items()))
