"""Corpora: documents from the bundled grammar, local files or Hugging Face ``datasets``.

A corpus gives documents with stable ids, divided into train, validation and test by
document: the split of a document follows from its id alone.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mechlab.data.rows import SUFFIXES, Chat, Content, Fault, Wanted, dataset_rows, file_rows
from mechlab.errors import MechlabError, near
from mechlab.files import file_sha256, fingerprint

BUNDLED = "fable"
SPLITS = ("train", "validation", "test")
# Of every ten documents eight are for training and one each for validation and test.
_SHARES = (8, 1, 1)
# Documents that stand for a stream in its fingerprint.
_SAMPLE = 20


@dataclass(frozen=True)
class TextDocument:
    """One document: its stable id within the corpus, and its text or the turns of its chat."""

    id: int
    text: str | Chat


@dataclass(frozen=True)
class Corpus:
    """A named source of documents.

    Attributes:
        name: what it was opened by.
        fingerprint: SHA-256 that changes when local documents do; of a hub dataset, its name,
            version and column; of a stream, its description and first rows only, which is weak.
        files: local files it reads, in order; empty for the bundled corpus and for datasets.
        column: field that holds the text, or a chat as a list of {"role", "content"}.
        skip_corrupt: pass over corrupt rows; otherwise the first one is an error.
        dataset: the ``datasets`` object it reads, where there is one.
    """

    name: str
    fingerprint: str
    files: tuple[Path, ...] = ()
    column: str = "text"
    skip_corrupt: bool = False
    dataset: Any = field(default=None, repr=False, compare=False)

    def documents(self, split: str, start: int = 0) -> Iterator[TextDocument]:
        """Documents of one split in order of their ids, from id ``start`` on.

        An id is the number of a row in the corpus, corrupt rows counted. Raises MechlabError
        for an unknown split, a file that cannot be read, and a corrupt row of this split
        unless they are skipped.
        """
        for number, content in self.rows(split, start):
            if not isinstance(content, Fault):
                yield TextDocument(number, content)

    def rows(self, split: str, start: int = 0) -> Iterator[tuple[int, Content]]:
        """As ``documents``, as (id, text) and with the corrupt rows that are skipped in their places."""
        if split not in SPLITS:
            raise MechlabError("unknown split", split, near(split, SPLITS))
        if self.name == BUNDLED and not self.files and self.dataset is None:
            yield from _fable_rows(split, start)
            return
        for number, content in self._all_rows(lambda i: split_of(i) == split, start):
            if isinstance(content, Fault) and not self.skip_corrupt:
                raise content.error()
            if not isinstance(content, str) or content.strip():
                yield number, content

    def _all_rows(self, wanted: Wanted, start: int = 0) -> Iterator[tuple[int, Content]]:
        if self.dataset is not None:
            return dataset_rows(self.dataset, self.column, self.name, wanted, start)
        return file_rows(self.files, self.column, wanted, start)

    def check(self) -> Corpus:
        """This corpus; MechlabError unless it has a row that can be read."""
        fault = None
        for _, content in self._all_rows(lambda _: True):
            if not isinstance(content, Fault):
                return self
            if not self.skip_corrupt:
                raise content.error()
            fault = fault or content
        if fault:
            raise MechlabError("corpus has no row that can be read", str(fault), fault.remedy)
        raise MechlabError("corpus is empty", self.name, "add documents")


def split_of(document: int) -> str:
    """The split that document number ``document`` belongs to (8 : 1 : 1, by hash of the number)."""
    bucket = int.from_bytes(hashlib.sha256(str(document).encode()).digest()[:8]) % sum(_SHARES)
    return SPLITS[0 if bucket < _SHARES[0] else 1 if bucket < _SHARES[0] + _SHARES[1] else 2]


def open_corpus(source: Any = BUNDLED, *, column: str = "text", skip_corrupt: bool = False) -> Corpus:
    """Open a corpus.

    Args:
        source: "fable" (bundled), a ``.txt`` (documents separated by blank lines), ``.jsonl``
            or ``.parquet`` file, a directory of such files or one that ``save_to_disk`` wrote,
            a dataset name of the hub, or a ``datasets`` object (of several parts "train" is read).
        column: field of a row that holds the text or the chat.
        skip_corrupt: pass over corrupt rows, counted and named by ``contexts``.

    Raises MechlabError when the corpus is missing or empty, has no such column, or its first row
    is corrupt (with ``skip_corrupt``: every row).
    """
    if not isinstance(source, str | Path):
        return _open_dataset(source, column, skip_corrupt)
    name = str(source)
    path = Path(source).expanduser()
    if name == BUNDLED:
        from mechlab.data import fable

        sample = [d.text for d in itertools.islice(fable.documents("train"), _SAMPLE)]
        return Corpus(name, fingerprint({"corpus": name, "sample": sample}))
    if not name.strip():
        raise MechlabError("corpus has no name", repr(name), "check --data")
    if path.exists() and not os.access(path, os.R_OK):
        raise MechlabError("corpus cannot be read", name, "check its permissions")
    if not path.exists():
        if path.suffix in SUFFIXES or path.is_absolute() or name.startswith("."):
            around = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise MechlabError(
                "corpus does not exist", name, near(name, around) if around else "check --data"
            )
        return _open_hub(name, column, skip_corrupt)
    if any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        return _open_saved(path, name, column, skip_corrupt)
    files = (
        sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if path.is_dir()
        else [path]
    )
    if not files or any(f.suffix not in SUFFIXES for f in files):
        raise MechlabError("corpus format is not known", name, f"use {', '.join(SUFFIXES)} files")
    made_of = fingerprint([file_sha256(f) for f in files] + [column])
    return Corpus(name, made_of, tuple(files), column, skip_corrupt).check()


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


def require_tokens(corpus: Corpus, tokenizer: Any, *, n_ctx: int) -> None:
    """MechlabError unless the corpus has at least one context worth of tokens in every split."""
    from mechlab.data.stream import contexts

    for split in SPLITS:
        found = 0
        for batch in contexts(corpus, split, tokenizer, n_ctx=n_ctx, batch=1, threads=False):
            found += int(batch.mask.sum())
            if found >= n_ctx:
                break
        else:
            raise MechlabError(
                f"corpus is shorter than one context ({n_ctx} tokens) in its {split} split",
                f"{corpus.name} has {found} tokens there",
                "add documents",
            )


def _fable_rows(split: str, start: int) -> Iterator[tuple[int, str]]:
    from mechlab.data import fable

    # Fable numbers each split from 0; here a number names one document of the corpus.
    offset = SPLITS.index(split)
    first = max(0, -((offset - start) // len(SPLITS)))
    pad = fable.TOKEN_ID["<pad>"]
    # Rows of tokens come without labels, in half the time of the documents.
    for index, row in fable.token_rows(split, fable.MAX_TOKENS + 1, start=first):
        text = fable.render([fable.VOCABULARY[token] for token in row[1:].tolist() if token != pad])
        yield index * len(SPLITS) + offset, text


def _open_dataset(source: Any, column: str, skip_corrupt: bool) -> Corpus:
    if not hasattr(source, "column_names"):
        raise MechlabError("corpus is neither a path nor a dataset", type(source).__name__, "check --data")
    dataset = _one_part(source)
    name = f"{dataset.info.dataset_name or 'dataset'} in memory"
    if hasattr(dataset, "__len__"):
        made_of = fingerprint({"dataset": dataset._fingerprint, "column": column})
        return Corpus(name, made_of, (), column, skip_corrupt, dataset).check()
    rows = dataset_rows(dataset, column, name, lambda _: True)
    sample = [
        content if isinstance(content, str | list) else str(content)
        for _, content in itertools.islice(rows, _SAMPLE)
    ]
    made_of = fingerprint({"stream": repr(dataset), "sample": sample, "column": column})
    return Corpus(name, made_of, (), column, skip_corrupt, dataset).check()


def _open_saved(path: Path, name: str, column: str, skip_corrupt: bool) -> Corpus:
    import datasets

    try:
        dataset = _one_part(datasets.load_from_disk(str(path)))
    except MechlabError:
        raise
    except Exception as error:  # the library raises many unrelated types here
        raise MechlabError("saved dataset cannot be read", f"{name}: {error}", "check --data") from None
    files = [file["filename"] for file in dataset.cache_files]
    made_of = fingerprint([file_sha256(file) for file in files] + [column])
    return Corpus(name, made_of, (), column, skip_corrupt, dataset).check()


def _one_part(dataset: Any) -> Any:
    """A dataset as it is; of a dictionary of them, "train" or the only one."""
    if not isinstance(dataset, dict):
        return dataset
    part = "train" if "train" in dataset or len(dataset) != 1 else next(iter(dataset))
    if part not in dataset:
        raise MechlabError("dataset has several parts and no train", ", ".join(dataset), "pass one of them")
    return dataset[part]


def _open_hub(name: str, column: str, skip_corrupt: bool) -> Corpus:
    """A hub dataset's train split, streamed."""
    if hub_is_offline():
        raise MechlabError(
            "corpus is not a file and the hub cannot be reached",
            name,
            f"go online, pass a file, or use {BUNDLED}",
        )
    import datasets

    try:
        stream = datasets.load_dataset(name, split="train", streaming=True)
        version = datasets.load_dataset_builder(name).info.version
    except Exception as error:  # the library raises many unrelated types here
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MechlabError(
            "corpus is neither a file nor reachable on the hub", f"{name}: {first}", "check --data"
        ) from error
    made_of = fingerprint({"hub": name, "version": str(version), "column": column})
    return Corpus(name, made_of, (), column, skip_corrupt, stream).check()
