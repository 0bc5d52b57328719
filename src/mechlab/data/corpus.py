"""Corpora: documents from the bundled grammar, local files or Hugging Face ``datasets``.

A corpus gives documents with stable ids, divided into train, validation and test by
document. Contexts are cut from one document each, so nothing ever crosses a document.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechlab.errors import MechlabError, near
from mechlab.files import file_sha256, fingerprint

BUNDLED = "fable"
SPLITS = ("train", "validation", "test")
# Of every ten documents eight are for training and one each for validation and test.
_SHARES = (8, 1, 1)
_SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class TextDocument:
    """One document: its stable id within the corpus and its text."""

    id: int
    text: str


@dataclass(frozen=True)
class Corpus:
    """A named source of documents.

    Attributes:
        name: what it was opened by.
        fingerprint: SHA-256 that changes when local documents do; of a hub dataset, its name,
            version and column.
        files: local files it reads, in order; empty for the bundled and the hub's corpora.
        column: field that holds the text.
    """

    name: str
    fingerprint: str
    files: tuple[Path, ...] = ()
    column: str = "text"

    def documents(self, split: str) -> Iterator[TextDocument]:
        """Documents of one split, in a fixed order.

        The split of a document follows from its id alone. Raises MechlabError for an
        unknown split or a file that cannot be read.
        """
        if split not in SPLITS:
            raise MechlabError("unknown split", split, near(split, SPLITS))
        if self.name == BUNDLED and not self.files:
            from mechlab.data import fable

            for document in fable.documents(split):
                # Fable numbers each split from 0; here a number names one document of the corpus.
                yield TextDocument(document.id * len(SPLITS) + SPLITS.index(split), document.text)
            return
        rows = _hub_rows(self.name, self.column) if not self.files else _file_rows(self.files, self.column)
        for i, text in enumerate(rows):
            if split_of(i) == split and text.strip():
                yield TextDocument(i, text)


@dataclass(frozen=True)
class Contexts:
    """A batch of contexts, padded on the right.

    Attributes:
        tokens: token ids ``[context, pos]``; BOS first where the model has one.
        mask: True on real tokens ``[context, pos]``.
        document: id of the document each context is cut from ``[context]``.
    """

    tokens: Int[Tensor, "context pos"]
    mask: Bool[Tensor, "context pos"]
    document: Int[Tensor, "context"]


def split_of(document: int) -> str:
    """The split that document number ``document`` belongs to (8 : 1 : 1, by hash of the number)."""
    bucket = int.from_bytes(hashlib.sha256(str(document).encode()).digest()[:8]) % sum(_SHARES)
    return SPLITS[0 if bucket < _SHARES[0] else 1 if bucket < _SHARES[0] + _SHARES[1] else 2]


def open_corpus(source: str | Path = BUNDLED, *, column: str = "text") -> Corpus:
    """Open a corpus.

    Args:
        source: "fable" (bundled), a ``.txt`` (documents separated by blank lines), ``.jsonl``
            or ``.parquet`` file, a directory of such files, or a dataset name of the hub.
        column: field of a row that holds the text.

    Raises MechlabError when the corpus is missing, empty, not UTF-8, or has no such column.
    """
    name = str(source)
    path = Path(source).expanduser()
    if name == BUNDLED:
        from mechlab.data import fable

        sample = [d.text for d in itertools.islice(fable.documents("train"), 20)]
        return Corpus(name, fingerprint({"corpus": name, "sample": sample}))
    if not name.strip():
        raise MechlabError("corpus has no name", repr(name), "check --data")
    if path.exists() and not os.access(path, os.R_OK):
        raise MechlabError("corpus cannot be read", name, "check its permissions")
    if not path.exists():
        if path.suffix in _SUFFIXES or path.is_absolute() or name.startswith("."):
            around = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise MechlabError(
                "corpus does not exist", name, near(name, around) if around else "check --data"
            )
        return _open_hub(name, column)
    files = (
        sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
        if path.is_dir()
        else [path]
    )
    if not files or any(f.suffix not in _SUFFIXES for f in files):
        raise MechlabError("corpus format is not known", name, f"use {', '.join(_SUFFIXES)} files")
    if next(_file_rows(tuple(files), column), None) is None:
        raise MechlabError("corpus is empty", name, "add documents")
    return Corpus(name, fingerprint([file_sha256(f) for f in files] + [column]), tuple(files), column)


def hub_is_offline() -> bool:
    """True when the hub's host name does not resolve: saves half a minute of retries."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return False
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return True
    return False


def contexts(
    documents: Iterator[TextDocument], tokenizer: Any, *, n_ctx: int, batch: int = 32
) -> Iterator[Contexts]:
    """Cut documents into contexts of at most ``n_ctx`` tokens, BOS included, ``batch`` at a time.

    A document longer than a context gives several contexts, each starting with BOS. A
    document of the corpus never shares a context with another.
    """
    bos = tokenizer.bos_token_id
    room = n_ctx - (bos is not None)
    rows: list[tuple[int, list[int]]] = []
    while chunk := list(itertools.islice(documents, 256)):
        encoded = tokenizer([d.text for d in chunk], add_special_tokens=False)["input_ids"]
        for document, ids in zip(chunk, encoded, strict=True):
            for start in range(0, len(ids), room):
                piece = ids[start : start + room]
                rows.append((document.id, piece if bos is None else [bos, *piece]))
        while len(rows) >= batch:
            yield _pad(rows[:batch])
            del rows[:batch]
    if rows:
        yield _pad(rows)


def require_tokens(corpus: Corpus, tokenizer: Any, *, n_ctx: int) -> None:
    """MechlabError unless the corpus has at least one context worth of tokens in every split."""
    for split in SPLITS:
        found = 0
        for batch in contexts(corpus.documents(split), tokenizer, n_ctx=n_ctx, batch=1):
            found += int(batch.mask.sum())
            if found >= n_ctx:
                break
        else:
            raise MechlabError(
                f"corpus is shorter than one context ({n_ctx} tokens) in its {split} split",
                f"{corpus.name} has {found} tokens there",
                "add documents",
            )


def _pad(rows: list[tuple[int, list[int]]]) -> Contexts:
    width = max(len(ids) for _, ids in rows)
    # Padding repeats the last token: models warn when they meet their padding token without a mask.
    tokens = torch.tensor([[ids[-1]] * width for _, ids in rows])
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (_, ids) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
        mask[i, : len(ids)] = True
    return Contexts(tokens, mask, torch.tensor([document for document, _ in rows]))


def _file_rows(files: tuple[Path, ...], column: str) -> Iterator[str]:
    for file in files:
        try:
            if file.suffix == ".txt":
                yield from _paragraphs(file)
            elif file.suffix == ".jsonl":
                yield from _json_rows(file, column)
            else:
                yield from _parquet_rows(file, column)
        except OSError as error:
            raise MechlabError("corpus cannot be read", f"{file}: {error.strerror}", "check --data") from None
        except UnicodeDecodeError as error:
            raise MechlabError(
                "corpus is not UTF-8", f"{file}, byte {error.start}", "convert it to UTF-8"
            ) from None


def _paragraphs(file: Path) -> Iterator[str]:
    lines: list[str] = []
    with file.open(encoding="utf-8") as handle:
        for line in handle:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines)
                lines = []
    if lines:
        yield "".join(lines)


def _json_rows(file: Path, column: str) -> Iterator[str]:
    with file.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise MechlabError(
                    "corpus row is not JSON", f"{file}, line {number}", "repair the line"
                ) from None
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                columns = list(row) if isinstance(row, dict) else []
                raise MechlabError(
                    f"corpus has no text column {column!r}", f"{file}, line {number}", near(column, columns)
                )
            if any("\ud800" <= character <= "\udfff" for character in row[column]):
                raise MechlabError(
                    "corpus row is not valid text", f"{file}, line {number}", "repair the line"
                )
            yield row[column]


def _parquet_rows(file: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError):
        raise MechlabError("corpus is not a parquet file", file, "check --data") from None
    if column not in table.schema_arrow.names:
        raise MechlabError(
            f"corpus has no text column {column!r}", file, near(column, table.schema_arrow.names)
        )
    for batch in table.iter_batches(columns=[column]):
        for text in batch.column(0).to_pylist():
            if not isinstance(text, str):
                raise MechlabError(f"column {column!r} does not hold text", file, "name the text column")
            yield text


def _open_hub(name: str, column: str) -> Corpus:
    if next(_hub_rows(name, column), None) is None:
        raise MechlabError("corpus is empty", name, "add documents")
    import datasets

    info = datasets.load_dataset_builder(name).info
    return Corpus(
        name, fingerprint({"hub": name, "version": str(info.version), "column": column}), (), column
    )


def _hub_rows(name: str, column: str) -> Iterator[str]:
    """Rows of a hub dataset's train split, streamed."""
    if hub_is_offline():
        raise MechlabError(
            "corpus is not a file and the hub cannot be reached",
            name,
            f"go online, pass a file, or use {BUNDLED}",
        )
    import datasets

    try:
        stream = datasets.load_dataset(name, split="train", streaming=True)
    except Exception as error:  # the library raises many unrelated types here
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MechlabError(
            "corpus is neither a file nor reachable on the hub", f"{name}: {first}", "check --data"
        ) from error
    for row in stream:
        if not isinstance(row.get(column), str):
            raise MechlabError(f"corpus has no text column {column!r}", name, near(column, list(row)))
        yield row[column]
