"""Corpora: splits by document, contexts that never cross documents, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mechlab.data.corpus import SPLITS, Corpus, open_corpus, require_tokens, split_of
from mechlab.errors import MechlabError


def texts(corpus: Corpus, split: str) -> list[str]:
    return [str(document.text) for document in corpus.documents(split)]


def test_splits_are_by_document_disjoint_complete_and_stable(tiny_corpus: Path) -> None:
    corpus = open_corpus(tiny_corpus)
    ids = {split: [d.id for d in corpus.documents(split)] for split in SPLITS}
    assert sorted(i for found in ids.values() for i in found) == list(range(400))
    assert all(split_of(i) == split for split in SPLITS for i in ids[split])
    assert ids == {split: [d.id for d in corpus.documents(split)] for split in SPLITS}
    assert 280 <= len(ids["train"]) <= 360
    assert min(len(ids["validation"]), len(ids["test"])) >= 20


def test_same_documents_from_every_format(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [f"document number {i}\nwith two lines" for i in range(30)]
    (tmp_path / "a.txt").write_text("\n\n".join(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
    by_format = [texts(open_corpus(tmp_path / f"a.{kind}"), "train") for kind in ("txt", "jsonl", "parquet")]
    assert [t.strip() for t in by_format[0]] == by_format[1] == by_format[2]


def test_directory_is_read_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n\n{name} two")
    corpus = open_corpus(tmp_path)
    everything = sorted((d.id, str(d.text).strip()) for split in SPLITS for d in corpus.documents(split))
    assert [text for _, text in everything] == ["a one", "a two", "b one", "b two"]


def test_fingerprint_follows_content_and_column(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one", "body": "two"}\n')
    first = open_corpus(file).fingerprint
    assert open_corpus(file).fingerprint == first
    assert open_corpus(file, column="body").fingerprint != first
    file.write_text('{"text": "other", "body": "two"}\n')
    assert open_corpus(file).fingerprint != first


def test_bundled_corpus() -> None:
    corpus = open_corpus("fable")
    documents = iter(corpus.documents("test"))
    first, second = next(documents), next(documents)
    assert first.id != second.id
    assert first.text
    assert first.text != second.text
    other = next(corpus.documents("train"))
    assert other.id not in (first.id, second.id)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", None, "corpus does not exist"),
        ("a.jsonl", b"", "corpus is empty"),
        ("a.txt", b"\n\n \n", "corpus is empty"),
        ("a.jsonl", b'{"txet": "hello"}\n', r"no text column 'text'.*line 1 \(did you mean txet\?"),
        ("a.jsonl", b'{"text": 3}\n', "no text column"),
        ("a.jsonl", b'["text"]\n', "no text column"),
        ("a.jsonl", b"{broken\n", "row is not JSON: .*line 1"),
        ("a.txt", b"caf\xe9 au lait\n", "corpus is not UTF-8: .*byte 3"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "corpus is not UTF-8"),
        ("a.parquet", b"not parquet", "not a parquet file"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "row is not valid text: .*line 1"),
        ("a.csv", b"text\nhello\n", "format is not known"),
    ],
)
def test_bad_corpora(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MechlabError, match=message) as caught:
        open_corpus(file)
    assert "\n" not in str(caught.value)


def test_directories_that_look_like_files_are_entered(tmp_path: Path) -> None:
    (tmp_path / "part.jsonl").mkdir()
    (tmp_path / "part.jsonl" / "0.jsonl").write_text('{"text": "one"}\n')
    corpus = open_corpus(tmp_path)
    assert [d.text for split in SPLITS for d in corpus.documents(split)] == ["one"]
    with pytest.raises(MechlabError, match="corpus has no name"):
        open_corpus("")


def test_corpus_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    with pytest.raises(MechlabError, match=r"not a file and the hub cannot be reached: some/dataset"):
        open_corpus("some/dataset")


def test_corpus_shorter_than_one_context(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    require_tokens(open_corpus(tiny_corpus), tokenizer, n_ctx=32)
    (tmp_path / "a.txt").write_text("the cat sat")
    with pytest.raises(MechlabError, match=r"shorter than one context \(32 tokens\)"):
        require_tokens(open_corpus(tmp_path / "a.txt"), tokenizer, n_ctx=32)


def test_unknown_split(tiny_corpus: Path) -> None:
    with pytest.raises(MechlabError, match=r"unknown split: tset \(did you mean test\?"):
        next(open_corpus(tiny_corpus).documents("tset"))
