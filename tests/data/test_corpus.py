"""Corpora: splits by document, contexts that never cross documents, and bad input."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
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


def test_the_bundled_texts_are_fable_itself() -> None:
    from mechlab.data import fable

    corpus = open_corpus("fable")
    for split in SPLITS:
        want = [document.text for document in fable.documents(split, count=60)]
        got = list(itertools.islice(corpus.documents(split), 60))
        assert [d.text for d in got] == want
        for start in (1, 2, 3, 59, 100):
            after = next(corpus.documents(split, start))
            assert after.id >= start
            assert after == next(d for d in got if d.id >= start)
    assert list(corpus.documents("test", 10**9)) == []


def test_ids_count_what_they_always_counted(tmp_path: Path) -> None:
    """Blank lines take no number in a .jsonl; blank texts do; all kinds of line ends are read."""
    rows = ['{"text": "zero"}', "", " \u00a0", '{"text": " "}', '{"text": "two"}']
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "a.jsonl").write_bytes(end.join(rows).encode())
        assert _everything(open_corpus(tmp_path / "a.jsonl")) == {0: "zero", 2: "two"}
        (tmp_path / "a.txt").write_bytes(end.join(["one", "and", "\u3000", "", "two", ""]).encode())
        assert _everything(open_corpus(tmp_path / "a.txt")) == {0: "one\nand\n", 1: "two\n"}


def _everything(corpus: Corpus) -> dict[int, object]:
    return {d.id: d.text for split in SPLITS for d in corpus.documents(split)}


def test_any_start_gives_what_is_left(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [str(i) for i in range(40)]
    for name, chosen in (("a", texts[:13]), ("c", texts[30:])):
        table = pyarrow.table({"text": chosen})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[13:22]))
    (tmp_path / "b.txt").write_text("\n\n".join(texts[22:30]))
    corpus = open_corpus(tmp_path)
    whole = list(corpus.documents("train"))
    assert [str(d.text).strip() for d in whole] == [str(d.id) for d in whole]
    for start in range(42):
        assert list(corpus.documents("train", start)) == [d for d in whole if d.id >= start]


def test_corrupt_rows_of_a_table(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    broken = pyarrow.Array.from_buffers(
        pyarrow.string(),
        2,
        [None, pyarrow.py_buffer(b"\0\0\0\0\3\0\0\0\5\0\0\0"), pyarrow.py_buffer(b"one\xff\xfe")],
    )
    for name, column, why in (
        ("utf8", broken, "corpus is not UTF-8"),
        ("null", pyarrow.array(["one", None]), "no text column 'text'"),
    ):
        file = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), file)
        assert split_of(0) == split_of(1) == "train"
        with pytest.raises(MechlabError, match=rf"{why}.*{name}.parquet, row 1 .*or pass --skip-corrupt"):
            list(open_corpus(file).documents("train"))
        corpus = open_corpus(file, skip_corrupt=True)
        assert _everything(corpus) == {0: "one"}
        assert [number for number, _ in corpus.rows("train")] == [0, 1]


def test_nothing_to_read_is_an_error_even_with_skipping(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n{\n")
    with pytest.raises(MechlabError, match=r"no row that can be read: .*line 1: corpus row is not JSON"):
        open_corpus(tmp_path / "a.jsonl", skip_corrupt=True)
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(MechlabError, match="corpus is empty"):
        open_corpus(tmp_path / "a.jsonl", skip_corrupt=True)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    rows = "one\n\ntwo" if name == "a.txt" else '{"text": "one\\n"}\n{"text": "two"}'
    (tmp_path / name).write_bytes(rows.encode("utf-8-sig"))
    assert _everything(open_corpus(tmp_path / name)) == {0: "one\n", 1: "two"}


def test_broken_bytes_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\n\n\nzwölf\nfünf ".encode() + b"\xff\xfe\n\nthree")
    with pytest.raises(MechlabError, match=r"a.txt, line 5, byte 6 \(convert it to UTF-8 or pass"):
        list(open_corpus(tmp_path / "a.txt").documents("train"))
    assert _everything(open_corpus(tmp_path / "a.txt", skip_corrupt=True)) == {0: "one\n", 2: "three"}


@pytest.mark.parametrize("where", ["end", "middle"])
def test_a_damaged_parquet_file_is_not_a_row_to_skip(tmp_path: Path, where: str) -> None:
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    texts = [f"{i} {'word ' * (i % 7)}" for i in range(5000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file, row_group_size=500)
    data = bytearray(file.read_bytes())
    if where == "end":
        file.write_bytes(data[:-100])
    else:
        data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
        file.write_bytes(data)
    with pytest.raises(MechlabError, match=r"corpus (is not a parquet file|cannot be read): .*a.parquet"):
        list(open_corpus(file, skip_corrupt=True).documents("train"))


def test_datasets_in_memory(tmp_path: Path) -> None:
    rows = {"text": ["one", "two", None, "four"], "body": ["a", "b", "c", "d"]}
    dataset = datasets.Dataset.from_dict(rows)
    corpus = open_corpus(dataset, skip_corrupt=True)
    assert _everything(corpus) == {0: "one", 1: "two", 3: "four"}
    assert _everything(open_corpus(dataset.select([3, 0]))) == {0: "four", 1: "one"}
    assert _everything(open_corpus(datasets.DatasetDict(train=dataset, x=dataset), column="body"))[3] == "d"
    assert _everything(open_corpus(datasets.DatasetDict(x=dataset), column="body"))[2] == "c"
    prints = {open_corpus(dataset, column="body").fingerprint, corpus.fingerprint}
    prints.add(open_corpus(dataset.select([0, 1])).fingerprint)
    assert len(prints) == 3
    assert open_corpus(datasets.Dataset.from_dict(rows)).fingerprint == corpus.fingerprint
    with pytest.raises(MechlabError, match=r"no text column 'txt': .* \(did you mean text\?"):
        open_corpus(dataset, column="txt")
    with pytest.raises(MechlabError, match="several parts and no train: a, b"):
        open_corpus(datasets.DatasetDict(a=dataset, b=dataset))
    with pytest.raises(MechlabError, match="corpus is empty"):
        open_corpus(datasets.Dataset.from_dict({"text": []}))
    with pytest.raises(MechlabError, match="neither a path nor a dataset: list"):
        open_corpus(["one", "two"])


def test_saved_datasets(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_dict({"text": [f"number {i}" for i in range(50)]})
    dataset.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(str(tmp_path / "more"))
    one, more = open_corpus(tmp_path / "one"), open_corpus(str(tmp_path / "more"))
    assert _everything(one) == _everything(more) == {i: f"number {i}" for i in range(50)}
    assert one.fingerprint == open_corpus(tmp_path / "one").fingerprint
    other = datasets.Dataset.from_dict({"text": ["other"]})
    other.save_to_disk(str(tmp_path / "other"))
    assert open_corpus(tmp_path / "other").fingerprint != one.fingerprint
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    with pytest.raises(MechlabError, match=r"saved dataset cannot be read: .*one"):
        open_corpus(tmp_path / "one")


def test_streams(tmp_path: Path) -> None:
    def rows(count: int, stop: int) -> Iterator[dict[str, object]]:
        for i in range(count):
            if i == stop:
                raise ConnectionError("the line went dead")
            yield {"text": f"number {i}" if i != 7 else None}

    def stream(count: int = 30, stop: int = -1) -> datasets.IterableDataset:
        return datasets.IterableDataset.from_generator(rows, gen_kwargs={"count": count, "stop": stop})

    corpus = open_corpus(stream(), skip_corrupt=True)
    assert _everything(corpus) == {i: f"number {i}" for i in range(30) if i != 7}
    assert corpus.fingerprint == open_corpus(stream()).fingerprint
    assert corpus.fingerprint != open_corpus(stream(8)).fingerprint
    with pytest.raises(MechlabError, match=r"stopped in mid-stream: .*row 25: the line went dead"):
        list(open_corpus(stream(30, 25), skip_corrupt=True).documents("train"))
    with pytest.raises(MechlabError, match="no text column 'txt'"):
        open_corpus(stream(), column="txt")
    open_corpus(datasets.IterableDatasetDict({"train": stream()}))
