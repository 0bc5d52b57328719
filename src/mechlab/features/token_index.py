"""The feature index: for every feature, the tokens on which it fires.

The index is self-contained: it keeps the tokens it was built from, so contexts can be
shown without the activations or the model. Same rows, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int
from safetensors.numpy import load_file, save

from mechlab.artifacts import Artifact, open_artifact, writing
from mechlab.errors import MechlabError
from mechlab.features.token_rows import Rows, context_starts
from mechlab.files import write_atomic
from mechlab_kernels.csr import build_csr

KIND = "feature-index"
_FILE = "index.safetensors"


@dataclass(frozen=True)
class Context:
    """Tokens around one peak of a feature.

    Attributes:
        tokens: token ids, consecutive, of one context.
        activations: the feature's activation on each; 0 where it is not active.
        centre: which of them is the peak.
        row: the peak's row in the index.
        document: the document they come from.
    """

    tokens: Int[np.ndarray, "token"]
    activations: Float[np.ndarray, "token"]
    centre: int
    row: int
    document: int


@dataclass(frozen=True)
class FeatureIndex:
    """Codes by feature: feature f is active on ``row[indptr[f]:indptr[f+1]]``, in stream order.

    Attributes:
        indptr: where each feature's entries begin and end.
        row, value: row and activation (> 0) of each entry.
        tokens, context, position, document: of every row, as in ``Rows``.
    """

    indptr: Int[np.ndarray, "feature_plus_1"]
    row: Int[np.ndarray, "entry"]
    value: Float32[np.ndarray, "entry"]
    tokens: Int[np.ndarray, "row"]
    context: Int[np.ndarray, "row"]
    position: Int[np.ndarray, "row"]
    document: Int[np.ndarray, "row"]

    @property
    def d_sae(self) -> int:
        """Number of features, live or dead."""
        return len(self.indptr) - 1

    @cached_property
    def active(self) -> Int[np.ndarray, "feature"]:
        """Number of rows on which each feature is active."""
        return np.diff(self.indptr)

    @cached_property
    def density(self) -> Float[np.ndarray, "feature"]:
        """Share of rows on which each feature is active; 0 without rows."""
        return self.active / max(len(self.tokens), 1)

    @cached_property
    def maximum(self) -> Float[np.ndarray, "feature"]:
        """Largest activation of each feature; 0 when dead."""
        largest = np.zeros(self.d_sae)
        live = np.flatnonzero(self.active)
        if len(live):
            largest[live] = np.maximum.reduceat(self.value, self.indptr[live])
        return largest

    @cached_property
    def mean(self) -> Float[np.ndarray, "feature"]:
        """Mean activation of each feature over the rows where it is active; 0 when dead."""
        feature = np.repeat(np.arange(self.d_sae), self.active)
        total = np.bincount(feature, weights=self.value, minlength=self.d_sae)
        mean: np.ndarray = total / np.maximum(self.active, 1)
        return mean

    @cached_property
    def passage(self) -> Int[np.ndarray, "row"]:
        """Number of the run of equal ``context`` that each row lies in."""
        return np.cumsum(context_starts(self.context))

    def entries(self, feature: int) -> tuple[Int[np.ndarray, "entry"], Float32[np.ndarray, "entry"]]:
        """Rows (ascending) and activations of one feature. MechlabError when it does not exist."""
        if not 0 <= feature < self.d_sae:
            raise MechlabError("feature does not exist", feature, f"give a number from 0 to {self.d_sae - 1}")
        here = slice(self.indptr[feature], self.indptr[feature + 1])
        return self.row[here], self.value[here]

    def histogram(
        self, feature: int, bins: int = 24
    ) -> tuple[Int[np.ndarray, "bin"], Float[np.ndarray, "bin_plus_1"]]:
        """Active rows per bin of equal width over ``[0, maximum]``: ``(counts, edges)``."""
        _, value = self.entries(feature)
        top = float(self.maximum[feature])
        return np.histogram(value, bins=bins, range=(0.0, top if top > 0 else 1.0))

    def top_contexts(self, feature: int, count: int = 10, radius: int = 12) -> list[Context]:
        """The strongest peaks, strongest first; one per context and none with the same text twice.

        Args:
            count: how many at most.
            radius: tokens shown on either side of the peak, within its context.

        Equal activations are ordered by place in the stream, so the choice is deterministic.
        """
        row, value = self.entries(feature)
        order = np.lexsort((row, -value))
        chosen: list[Context] = []
        passages, texts = set(), set()
        for peak, strength in zip(row[order].tolist(), value[order], strict=True):
            if len(chosen) == count or strength <= 0:
                break
            if self.passage[peak] in passages:
                continue
            passages.add(self.passage[peak])
            found = self._around(peak, radius, row, value)
            text = found.tokens.tobytes()
            if text not in texts:
                texts.add(text)
                chosen.append(found)
        return chosen

    def _around(
        self, peak: int, radius: int, row: Int[np.ndarray, "entry"], value: Float32[np.ndarray, "entry"]
    ) -> Context:
        low, high = max(0, peak - radius), min(len(self.tokens), peak + radius + 1)
        inside = np.flatnonzero(self.passage[low:high] == self.passage[peak])
        low, high = low + int(inside[0]), low + int(inside[-1]) + 1
        first, last = np.searchsorted(row, (low, high))
        activations = np.zeros(high - low, np.float32)
        activations[row[first:last] - low] = value[first:last]
        return Context(self.tokens[low:high], activations, peak - low, peak, int(self.document[peak]))


def build_index(rows: Rows) -> FeatureIndex:
    """Sort the codes of ``rows`` by feature. MechlabError when a code names no feature."""
    try:
        indptr, row, value = build_csr(rows.values, rows.indices, rows.d_sae)
    except ValueError as error:
        raise MechlabError("codes do not fit the dictionary", str(error), "check d_sae") from error
    stream = (rows.tokens, rows.context, rows.position, rows.document)
    return FeatureIndex(indptr, row, value, *(_compact(each) for each in stream))


def save_index(
    index: FeatureIndex, path: Path | str, *, seed: int, inputs: Mapping[str, str], overwrite: bool = False
) -> Artifact:
    """Write the index as an artifact of kind "feature-index".

    Args:
        inputs: role → fingerprint of what the codes were made from ({"dictionary": …}).

    Raises MechlabError as ``mechlab.artifacts.writing`` does.
    """
    config = {"d_sae": index.d_sae, "rows": len(index.tokens)}
    with writing(path, KIND, config=config, seed=seed, inputs=inputs, overwrite=overwrite) as writer:
        if writer.finished is not None:
            return writer.finished
        arrays = {each.name: getattr(index, each.name) for each in fields(index)}
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_atomic(writer.work / _FILE, content)
        facts = {"live": int((index.active > 0).sum()), "entries": len(index.row)}
        return writer.commit([_FILE], facts)


def load_index(path: Path | str) -> FeatureIndex:
    """Read an index back. MechlabError when ``path`` holds none."""
    return FeatureIndex(**load_file(open_artifact(path, KIND).file(_FILE)))


def _compact(array: Int[np.ndarray, "row"]) -> Int[np.ndarray, "row"]:
    """int32 where the numbers fit: half the bytes on disk."""
    fits = not len(array) or (abs(int(array.min())) < 2**31 and abs(int(array.max())) < 2**31)
    return array.astype(np.int32 if fits else np.int64)
