"""Contexts: equal to a plain reference, and a stream goes on exactly where it stopped."""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from numbers_tokenizer import Numbers
from transformers import AutoTokenizer

from mechlab.data.corpus import SPLITS, Corpus, open_corpus
from mechlab.data.rows import Fault
from mechlab.data.stream import BOS_POLICIES, Contexts, Position, contexts
from mechlab.errors import MechlabError

KINDS = ("txt", "jsonl", "parquet", "directory", "dataset", "iterable", "saved")
POLICIES = list(itertools.product(BOS_POLICIES, (False, True)))


def random_texts(seed: int, count: int = 60) -> list[str]:
    """Documents of 0 to 40 tokens ("-" is none); a few are blank, a few are long."""
    dice = random.Random(seed)
    texts = []
    for _ in range(count):
        length = dice.choice([0, 1, 2, 5, 5, 5, 11, 40])
        words = [str(dice.randint(1, 999)) for _ in range(length)]
        texts.append(" ".join(words) if words else "-")
    return texts


def write(folder: Path, kind: str, texts: list[str]) -> Any:
    """The texts as a source of that kind for open_corpus."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    if kind == "txt":
        (folder / "a.txt").write_text("\n\n".join(texts))
        return folder / "a.txt"
    if kind == "jsonl":
        (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        return folder / "a.jsonl"
    if kind == "parquet":
        table = pyarrow.table({"n": range(len(texts)), "text": texts})
        pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=7)
        return folder / "a.parquet"
    if kind == "directory":
        third = len(texts) // 3
        for part, chosen in zip(("txt", "jsonl", "parquet"), (0, 1, 2), strict=True):
            inner = folder / f"d/{chosen}"
            inner.mkdir(parents=True)
            write(inner, part, texts[chosen * third : (chosen + 1) * third if chosen < 2 else None])
        return folder / "d"
    dataset = datasets.Dataset.from_dict({"text": texts})
    if kind == "saved":
        dataset.save_to_disk(str(folder / "saved"))
        return folder / "saved"
    return dataset.to_iterable_dataset(num_shards=3) if kind == "iterable" else dataset


def reference(
    corpus: Corpus, split: str, tokenizer: Numbers, n_ctx: int, pack: bool, bos: str
) -> list[tuple[list[int], list[int]]]:
    """(tokens, documents) of every context, a token at a time."""
    token = tokenizer.bos_token_id if bos != "none" else None
    found: list[tuple[list[int], list[int]]] = []
    row: list[tuple[int, int]] = []

    def end() -> None:
        if row:
            found.append(([t for t, _ in row], [d for _, d in row]))
            row.clear()

    for document in corpus.documents(split):
        ids = tokenizer([str(document.text)])["input_ids"][0]
        if not pack:
            end()
        for i, t in enumerate(ids):
            if token is not None and i == 0:
                row.append((token, document.id))
            if len(row) == n_ctx:
                end()
            if token is not None and bos == "each" and not row:
                row.append((token, document.id))
            row.append((t, document.id))
            if len(row) == n_ctx:
                end()
    end()
    return found


def flat(batches: Iterator[Contexts]) -> list[tuple[list[int], list[int]]]:
    return [
        (ids[mask].tolist(), document[mask].tolist())
        for batch in batches
        for ids, mask, document in zip(batch.tokens, batch.mask, batch.document, strict=True)
    ]


def same(left: Contexts, right: Contexts) -> bool:
    return (
        torch.equal(left.tokens, right.tokens)
        and torch.equal(left.mask, right.mask)
        and torch.equal(left.document, right.document)
        and (left.faults, left.next) == (right.faults, right.next)
    )


@pytest.mark.parametrize(("bos", "pack"), POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_contexts_equal_a_plain_reference(tmp_path: Path, seed: int, bos: str, pack: bool) -> None:
    corpus = open_corpus(write(tmp_path, "jsonl", random_texts(seed, 60)))
    for split, n_ctx, batch in itertools.product(SPLITS, (2, 7, 64), (3, 1000)):
        for tokenizer in (Numbers(), Numbers(bos=None)):
            want = reference(corpus, split, tokenizer, n_ctx, pack, bos)
            got = flat(contexts(corpus, split, tokenizer, n_ctx=n_ctx, batch=batch, pack=pack, bos=bos))
            assert got == want
            assert not pack or all(len(tokens) == n_ctx for tokens, _ in got[:-1])


@pytest.mark.parametrize(
    ("kind", "bos", "pack"),
    [("jsonl", *policy) for policy in POLICIES]
    + [(kind, *policy) for kind in KINDS for policy in (("each", False), ("document", True))],
)
def test_a_stream_goes_on_exactly(
    tmp_path: Path, kind: str, bos: str, pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechlab.data.stream._DOCUMENTS", 16)
    corpus = open_corpus(write(tmp_path, kind, random_texts(KINDS.index(kind), 40)))
    n_ctx, batch = [(2, 9), (8, 4), (13, 1)][KINDS.index(kind) % 3]
    settings = {"n_ctx": n_ctx, "batch": batch, "pack": pack, "bos": bos, "threads": False}
    whole = list(contexts(corpus, "train", Numbers(), **settings))
    assert len(whole) > 3
    for i, stop in enumerate(whole):
        assert Position(**json.loads(json.dumps(vars(stop.next)))) == stop.next
        rest = list(contexts(corpus, "train", Numbers(), start=stop.next, **settings))
        assert len(rest) == len(whole) - i - 1
        assert all(same(a, b) for a, b in zip(rest, whole[i + 1 :], strict=True))


def test_every_kind_gives_the_same_contexts(tmp_path: Path) -> None:
    found = []
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        corpus = open_corpus(write(tmp_path / kind, kind, random_texts(9)))
        found.append([flat(contexts(corpus, split, Numbers(), n_ctx=8, pack=True)) for split in SPLITS])
    assert all(other == found[0] for other in found)
    assert [len(each) > 0 for each in found[0]] == [True] * 3


def test_the_bundled_corpus_goes_on_exactly() -> None:
    from mechlab.data import fable

    tokenizer, corpus = fable.build_tokenizer(), open_corpus("fable")
    for pack in (False, True):
        stream = contexts(corpus, "test", tokenizer, n_ctx=64, batch=8, pack=pack)
        first = list(itertools.islice(stream, 6))
        stream.close()
        for i, stop in enumerate(first[:-1]):
            again = contexts(corpus, "test", tokenizer, n_ctx=64, batch=8, pack=pack, start=stop.next)
            assert same(next(again), first[i + 1])


def test_what_lies_behind_is_not_tokenised_again(tmp_path: Path) -> None:
    corpus = open_corpus(write(tmp_path, "jsonl", random_texts(1, 600)))
    *_, before, _last = contexts(corpus, "train", Numbers(), n_ctx=16, batch=4)
    tokenizer = Numbers()
    list(contexts(corpus, "train", tokenizer, n_ctx=16, batch=4, start=before.next))
    assert 1 <= tokenizer.texts <= 10


@pytest.mark.parametrize("kind", ["dataset", "iterable"])
def test_rows_behind_are_skipped_by_the_dataset_itself(kind: str, tmp_path: Path) -> None:
    corpus = open_corpus(write(tmp_path, kind, [f"{i}" for i in range(3000)]))
    (*_, last) = corpus.documents("test")
    assert [d.id for d in corpus.documents("test", last.id)] == [last.id]
    assert list(corpus.documents("test", last.id + 1)) == []


def test_bos_policies_on_a_small_case(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join('{"text": "%s"}' % t for t in ("1 2 3 4 5", "6", "7 8")))  # noqa: UP031
    corpus = open_corpus(tmp_path / "a.jsonl")
    assert [d.id for d in corpus.documents("train")] == [0, 1, 2]

    def rows(bos: str, pack: bool) -> list[list[int]]:
        return [ids for ids, _ in flat(contexts(corpus, "train", Numbers(), n_ctx=4, pack=pack, bos=bos))]

    assert rows("each", False) == [[0, 1, 2, 3], [0, 4, 5], [0, 6], [0, 7, 8]]
    assert rows("document", False) == [[0, 1, 2, 3], [4, 5], [0, 6], [0, 7, 8]]
    assert rows("none", False) == [[1, 2, 3, 4], [5], [6], [7, 8]]
    assert rows("each", True) == [[0, 1, 2, 3], [0, 4, 5, 0], [0, 6, 0, 7], [0, 8]]
    assert rows("document", True) == [[0, 1, 2, 3], [4, 5, 0, 6], [0, 7, 8]]
    assert rows("none", True) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    (batch,) = contexts(corpus, "train", Numbers(bos=None, cls=99), n_ctx=4, pack=True, bos="document")
    assert batch.tokens.tolist() == [[99, 1, 2, 3], [4, 5, 99, 6], [99, 7, 8, 8]]
    assert batch.mask.tolist() == [[True] * 4, [True] * 4, [True, True, True, False]]
    assert batch.document.tolist() == [[0] * 4, [0, 0, 1, 1], [2, 2, 2, 2]]
    assert batch.assistant is None
    assert batch.next == Position(3, 0, 0)


def test_real_text_keeps_every_token(stories_model: Path, stories_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stories_model)
    corpus = open_corpus(stories_data)
    rebuilt: dict[int, list[int]] = {}
    for batch in contexts(corpus, "test", tokenizer, n_ctx=512, pack=True):
        real = batch.mask & (batch.tokens != tokenizer.bos_token_id)
        for token, document in zip(batch.tokens[real].tolist(), batch.document[real].tolist(), strict=True):
            rebuilt.setdefault(document, []).append(token)
    for document in itertools.islice(corpus.documents("test"), 50):
        assert rebuilt[document.id] == tokenizer.encode(document.text, add_special_tokens=False)


BAD_LINES = {
    b"{broken": "corpus row is not JSON",
    b'{"body": "1"}': "no text column 'text'",
    b'{"text": null}': "no text column 'text'",
    b'{"text": "\\udc00"}': "not valid text",
    b'{"text": "caf\xe9"}': "corpus is not UTF-8",
    b"[" * 100_000: "corpus row is not JSON",
    b'["text"]': "no text column 'text'",
}


def spoiled(tmp_path: Path) -> tuple[Path, dict[int, str]]:
    """300 rows without a newline at the end; every ninth is corrupt, the very first and last two too."""
    dice, lines, why = random.Random(0), [], {}
    for i in range(300):
        if i % 9 == 0 or i >= 298:
            line, why[i] = dice.choice(list(BAD_LINES.items()))
            lines.append(line)
        else:
            lines.append(json.dumps({"text": " ".join([str(i)] * dice.randint(1, 20))}).encode())
    (tmp_path / "bad.jsonl").write_bytes(b"\n\n".join(lines))
    return tmp_path / "bad.jsonl", why


@pytest.mark.parametrize(("bos", "pack"), [("each", False), ("document", True)])
def test_corrupt_rows_are_skipped_counted_and_named_once(tmp_path: Path, bos: str, pack: bool) -> None:
    file, why = spoiled(tmp_path)
    with pytest.raises(MechlabError, match=rf"{file}, line 1\b.*or pass --skip-corrupt"):
        open_corpus(file)
    corpus = open_corpus(file, skip_corrupt=True)
    ids = {split: [d.id for d in corpus.documents(split)] for split in SPLITS}
    assert sorted(i for found in ids.values() for i in found) == [i for i in range(300) if i not in why]
    named = []
    for split, batch in itertools.product(SPLITS, (5, 1000)):
        whole = list(contexts(corpus, split, Numbers(), n_ctx=8, batch=batch, pack=pack, bos=bos))
        faults = [fault for each in whole for fault in each.faults]
        assert whole[-1].next.corrupt == len(faults) == len(set(faults))
        named += faults if batch == 5 else []
    assert len(named) == len(why)
    for i, reason in why.items():
        (found,) = [fault for fault in named if re.match(rf"{file}, line {2 * i + 1}\b", fault)]
        assert reason in found


@pytest.mark.parametrize(("bos", "pack"), POLICIES)
@pytest.mark.parametrize("group", [1, 16])
def test_faults_are_told_once_wherever_a_stream_goes_on(
    tmp_path: Path, group: int, bos: str, pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechlab.data.stream._FIRST", group)
    monkeypatch.setattr("mechlab.data.stream._DOCUMENTS", group)
    dice = random.Random(group)
    lines = [dice.choice([json.dumps({"text": text}), "{"]) for text in random_texts(group, 60)] + ["{"] * 9
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    corpus = open_corpus(tmp_path / "a.jsonl", skip_corrupt=True)
    corrupt = sum(isinstance(row, Fault) for _, row in corpus.rows("train"))
    for n_ctx, batch in ((5, 1), (5, 3), (50, 2)):
        settings = {"n_ctx": n_ctx, "batch": batch, "bos": bos, "pack": pack, "threads": False}
        whole = list(contexts(corpus, "train", Numbers(), **settings))
        assert sum(len(each.faults) for each in whole) == whole[-1].next.corrupt == corrupt > 20
        for i, stop in enumerate(whole):
            rest = list(contexts(corpus, "train", Numbers(), start=stop.next, **settings))
            assert len(rest) == len(whole) - i - 1
            assert all(same(a, b) for a, b in zip(rest, whole[i + 1 :], strict=True))


def test_the_first_corrupt_row_ends_a_stream_after_the_batches_before_it(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{i} {i}"}) for i in range(400)]
    number = next(i for i in range(300, 400) if i in {d.id for d in _all(tmp_path, lines).documents("train")})
    lines[number] = "{"
    corpus = _all(tmp_path, lines)
    seen = []
    with pytest.raises(
        MechlabError, match=rf"row is not JSON: .*line {number + 1} \(repair the line or pass"
    ):
        for batch in contexts(corpus, "train", Numbers(), n_ctx=8, batch=10):
            seen += batch.document[:, 0].tolist()
    assert len(seen) > 200
    assert max(seen) < number
    # Another split does not meet that row.
    assert flat(contexts(corpus, "test", Numbers(), n_ctx=8))


def _all(folder: Path, lines: list[str]) -> Corpus:
    (folder / "a.jsonl").write_text("\n".join(lines))
    return open_corpus(folder / "a.jsonl")


def test_threads_give_the_same_and_end_with_the_stream(tmp_path: Path) -> None:
    corpus = open_corpus(write(tmp_path, "jsonl", random_texts(3, 300)))
    before = set(threading.enumerate())
    beside = contexts(corpus, "train", Numbers(), n_ctx=8, batch=3)
    first = next(beside)
    assert len(set(threading.enumerate()) - before) == 1
    beside.close()
    assert set(threading.enumerate()) <= before
    here = contexts(corpus, "train", Numbers(), n_ctx=8, batch=3, threads=False)
    assert same(next(here), first)
    assert set(threading.enumerate()) <= before


def test_mistakes(tmp_path: Path) -> None:
    corpus = open_corpus(write(tmp_path, "jsonl", ["1 2 3"] * 30))
    tokenizer = Numbers()
    with pytest.raises(MechlabError, match=r"unknown BOS policy: eahc \(did you mean each\?"):
        contexts(corpus, "train", tokenizer, n_ctx=8, bos="eahc")
    with pytest.raises(MechlabError, match=r"context length is too short: 1 \(at least 2"):
        contexts(corpus, "train", tokenizer, n_ctx=1)
    with pytest.raises(MechlabError, match="batch must be positive: 0"):
        contexts(corpus, "train", tokenizer, n_ctx=8, batch=0)
    with pytest.raises(MechlabError, match="unknown split: tset"):
        next(contexts(corpus, "tset", tokenizer, n_ctx=8))
    for wrong in (Position(0, 4), Position(0, 99)):
        with pytest.raises(MechlabError, match="position is not one of this stream"):
            next(contexts(corpus, "train", tokenizer, n_ctx=8, start=wrong))
    assert flat(contexts(corpus, "train", tokenizer, n_ctx=1, bos="none"))[:3] == [
        ([1], [0]),
        ([2], [0]),
        ([3], [0]),
    ]
    assert list(contexts(corpus, "train", tokenizer, n_ctx=8, start=Position(30))) == []


def test_a_text_that_brings_its_bos_has_one(tiny_model: Path, tmp_path: Path) -> None:
    from mechlab.models.subject import load_model

    (tmp_path / "a.txt").write_text("\n\n".join(["<bos> the cat sat", "the cat sat"] * 20))
    tokenizer = load_model(tiny_model).tokenizer
    stream = contexts(open_corpus(tmp_path / "a.txt"), "train", tokenizer, n_ctx=8)
    for batch in stream:
        assert (batch.tokens == 2).sum(1).tolist() == [1] * len(batch.tokens)
