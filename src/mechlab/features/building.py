"""Building a feature index from codes as they come, and opening one.

1. Codes are gathered until there are some millions of entries; those are sorted by feature and
   written as a shard, whole or not at all. A build that was killed finds its shards again.
2. At the end the shards are merged, some features at a time: each shard has those features in
   one place, and so has the index. Neither the shards nor the index are ever in memory whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from mechlab.artifacts import Artifact, Writer, open_artifact, writing
from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.features.merging import merge_shards, within
from mechlab.features.shards import COLUMNS, Shard, open_shard, write_shard
from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary
from mechlab.files import canonical_json, fingerprint, write_atomic
from mechlab_kernels.entries import gather, sort_entries

KIND = "feature-index"
_VOCABULARY = "vocabulary.json"
_SHARD = 2**21  # entries of a shard, and slots of codes gathered at a time
_LARGEST = 2**31 - 1


class IndexWriter:
    """Makes an artifact of kind "feature-index" from codes in the order of the text.

    Use as a context manager; give all rows from the first on, then ``finish``. Rows that an earlier
    attempt has stored are passed over; ``skip`` tells whether their codes need be computed.

    Args:
        vocabulary: what the tokens say.
        n_features: number of features, live or dead.
        about: what the features are (kind, site, …); plain JSON values.
        inputs: role → fingerprint of everything the codes are made from ({"dictionary": …}).

    Entering raises MechlabError as ``mechlab.artifacts.writing`` does.

    Attributes:
        finished: the artifact, when it is finished (or was already, from the same inputs).
        rows: rows so far, those of an earlier attempt among them.
    """

    def __init__(
        self,
        path: Path | str,
        vocabulary: Vocabulary,
        n_features: int,
        about: Mapping[str, Any],
        seed: int,
        inputs: Mapping[str, str],
        overwrite: bool = False,
    ) -> None:
        self.vocabulary, self.n_features = vocabulary, n_features
        self.finished: Artifact | None = None
        self.rows = 0
        words = fingerprint(vocabulary.to_dict())
        config = {"n_features": n_features, "about": dict(about), "vocabulary": words}
        self._plan: dict[str, Any] = {
            "config": config,
            "seed": seed,
            "inputs": inputs,
            "overwrite": overwrite,
        }
        self._path, self._stack = Path(path), ExitStack()
        self._writer: Writer | None = None
        self._shards: list[Shard] = []
        self._given, self._waiting = 0, _Waiting()

    def __enter__(self) -> IndexWriter:
        self._writer = self._stack.enter_context(writing(self._path, KIND, **self._plan))
        self.finished = self._writer.finished
        if self.finished is not None:
            self.rows = int(self.finished.manifest.facts["rows"])
            return self
        while shard := open_shard(self._shard_path(len(self._shards)), self.n_features):
            self._shards.append(shard)
        self.rows = sum(shard.rows for shard in self._shards)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def skip(self, rows: int) -> bool:
        """Pass over the next ``rows`` rows if all of them are stored already; whether they are."""
        if self._given + rows > self.rows:
            return False
        self._given += rows
        return True

    def add(
        self,
        tokens: Int[np.ndarray, "row"],
        context: Int[np.ndarray, "row"],
        position: Int[np.ndarray, "row"],
        document: Int[np.ndarray, "row"],
        values: Float[np.ndarray, "row k"],
        indices: Int[np.ndarray, "row k"],
    ) -> None:
        """Add rows with their codes.

        Args:
            tokens, context, position, document: as in ``Text``.
            values: activations, at least 0; 0 means not active. Kept in float32.
            indices: feature of each activation; of inactive slots, anything.

        Raises MechlabError for activations that are negative or not finite, features outside the index or
        twice on a row, tokens outside the vocabulary, and arrays that do not fit together.
        """
        text = self._columns(tokens, context, position, document)
        if not len(values) == len(indices) == len(tokens) or values.shape != indices.shape:
            raise MechlabError(
                "codes do not fit the rows", f"{values.shape} for {len(tokens)}", "one row of codes per token"
            )
        step = max(_SHARD // max(values.shape[1], 1), 1)
        for start in range(self._passed(len(tokens)), len(tokens), step):
            here = slice(start, start + step)
            with _codes():
                entries = gather(values[here], indices[here], self.rows, self.n_features)
            self._take([each[here] for each in text], entries)

    def add_entries(
        self,
        tokens: Int[np.ndarray, "row"],
        context: Int[np.ndarray, "row"],
        position: Int[np.ndarray, "row"],
        document: Int[np.ndarray, "row"],
        row: Int[np.ndarray, "entry"],
        feature: Int[np.ndarray, "entry"],
        value: Float[np.ndarray, "entry"],
    ) -> None:
        """``add`` for codes given as entries in any order, rows counted from 0 within this call."""
        text = self._columns(tokens, context, position, document)
        if not len(row) == len(feature) == len(value) or (len(row) and not within(row, 0, len(tokens) - 1)):
            raise MechlabError("entries do not fit the rows", f"{len(tokens)} rows", "number rows from 0")
        if len(row) and (np.diff(row) < 0).any():
            order = np.argsort(row, kind="stable")
            row, feature, value = row[order], feature[order], value[order]
        start = self._passed(len(tokens))
        while start < len(tokens):
            first = int(np.searchsorted(row, start))
            # As many rows as have a shard's entries between them, one at least.
            last = len(tokens) if first + _SHARD >= len(row) else max(int(row[first + _SHARD]), start + 1)
            stop = int(np.searchsorted(row, last))
            with _codes():  # as codes with one slot a row
                at, found, strength = gather(
                    value[first:stop, None], feature[first:stop, None], 0, self.n_features
                )
            rows = (row[first:stop][at] - start + self.rows).astype(np.int32)
            self._take([each[start:last] for each in text], (rows, found, strength))
            start = last

    def finish(self) -> Artifact:
        """Merge the shards, write the statistics, publish the artifact."""
        if self.finished is not None:
            return self.finished
        writer = self._open()
        if self._given < self.rows:
            raise MechlabError(
                f"an earlier attempt stored {self.rows} rows", self._given, "give all rows, from the first on"
            )
        if self._waiting.rows or not self._shards:
            self._flush()
        write_atomic(writer.work / _VOCABULARY, canonical_json(self.vocabulary.to_dict()))
        sums, facts = merge_shards(self._shards, self.n_features, writer.work)
        self.finished = writer.commit([*sums, _VOCABULARY], facts, sums)
        return self.finished

    def _columns(self, *text: Int[np.ndarray, "_"]) -> tuple[Int[np.ndarray, "row"], ...]:
        """The columns of the text, checked."""
        if len({len(each) for each in text}) != 1:
            raise MechlabError(
                "columns of the text differ in length", [len(each) for each in text], "one per token"
            )
        tokens, _, position, _ = text
        if len(tokens) and not within(tokens, 0, len(self.vocabulary) - 1):
            raise MechlabError(
                "token is outside the vocabulary",
                int(tokens.min() if tokens.min() < 0 else tokens.max()),
                f"ids from 0 to {len(self.vocabulary) - 1}",
            )
        if len(tokens) and not within(position, 0, _LARGEST):
            raise MechlabError("position is out of range", int(position.min()), "count from 0")
        return text

    def _passed(self, rows: int) -> int:
        """Take ``rows`` rows as given; how many of them are stored already."""
        self._open()
        stored = min(max(self.rows - self._given, 0), rows)
        if self.finished is not None and stored < rows:
            raise MechlabError("index is already finished", self._path, "add before finish")
        self._given += rows
        if self._given > _LARGEST:
            raise MechlabError("index has too many rows", self._given, "index parts of the text apart")
        return stored

    def _take(
        self, text: list[Int[np.ndarray, "row"]], entries: tuple[Shaped[np.ndarray, "entry"], ...]
    ) -> None:
        # A caller may use its arrays again.
        self._waiting.text.append([each.copy() for each in text])
        self._waiting.entries.append(entries)
        self._waiting.rows += len(text[0])
        self._waiting.count += len(entries[0])
        self.rows += len(text[0])
        # Rows without entries take memory too.
        if self._waiting.count + self._waiting.rows >= _SHARD:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, _Waiting()
        nothing = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
        row, feature, value = (
            np.concatenate(each) for each in zip(*(waiting.entries or [nothing]), strict=True)
        )
        waiting.entries.clear()
        with _codes():
            entries = sort_entries(row, feature, value, self.n_features)
        empty = [np.zeros(0, np.int32)] * len(COLUMNS)
        text = [np.concatenate(each) for each in zip(*(waiting.text or [empty]), strict=True)]
        self._shards.append(write_shard(self._shard_path(len(self._shards)), entries, text))

    def _shard_path(self, number: int) -> Path:
        return self._open().work / f"shard-{number:06}"

    def _open(self) -> Writer:
        if self._writer is None:
            raise MechlabError("index is not open for writing", self._path, "use it in a with statement")
        return self._writer


@dataclass
class _Waiting:
    """What has been gathered since the last shard."""

    text: list[list[Int[np.ndarray, "row"]]] = field(default_factory=list)
    entries: list[tuple[Shaped[np.ndarray, "entry"], ...]] = field(default_factory=list)
    rows: int = 0
    count: int = 0


@contextmanager
def _codes() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise MechlabError(
            "codes do not fit the index", str(error), "give codes after the activation function, all >= 0"
        ) from error


def load_index(path: Path | str) -> FeatureIndex:
    """Open an index; its arrays stay on disk and are read where they are used.

    Raises MechlabError when ``path`` holds none, or one that is damaged so that it shows at a glance;
    ``mechlab.artifacts.Artifact.verify`` compares every byte with its checksum.
    """
    artifact = open_artifact(path, KIND)
    arrays = {name: _mapped(artifact.file(f"{name}.npy")) for name in ("indptr", "row", "value", *COLUMNS)}
    file = artifact.file(_VOCABULARY)
    try:
        vocabulary = Vocabulary.from_dict(json.loads(file.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MechlabError("vocabulary cannot be read", file, "make the index again") from error
    tokens, context, position, document = (arrays[name] for name in COLUMNS)
    text = Text(tokens, context, position, document, vocabulary)
    indptr, row, value = (arrays[name] for name in ("indptr", "row", "value"))
    if indptr[0] or (np.diff(indptr) < 0).any() or not indptr[-1] == len(row) == len(value):
        raise MechlabError("data file is damaged", artifact.file("indptr.npy"), "make the index again")
    return FeatureIndex(text, indptr, row, value, artifact.manifest.config["about"])


def _mapped(path: Path) -> Shaped[np.ndarray, "_"]:
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise MechlabError("data file is damaged", path, "make the index again") from error
    plain: np.ndarray = array.view(np.ndarray)  # over the same pages
    return plain
