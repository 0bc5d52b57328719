"""Streams of chats: tokens of assistant turns are told apart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from numbers_tokenizer import Numbers

from mechlab.data.corpus import Corpus, open_corpus
from mechlab.data.stream import BOS_POLICIES, contexts
from mechlab.errors import MechlabError

CHAT = [
    {"role": "user", "content": "1 2"},
    {"role": "assistant", "content": "3 4 5"},
    {"role": "user", "content": "6"},
]


def render(chat: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    ids = [int(word) for turn in chat for word in turn["content"].split()]
    said = [turn["role"] == "assistant" for turn in chat for _ in turn["content"].split()]
    return ids, said


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset", "iterable"])
def test_chats(tmp_path: Path, kind: str) -> None:
    import datasets

    source: Any
    dataset = datasets.Dataset.from_dict({"messages": [CHAT] * 5})
    if kind == "jsonl":
        source = tmp_path / "a.jsonl"
        source.write_text("\n".join(json.dumps({"messages": CHAT}) for _ in range(5)))
    elif kind == "parquet":
        source = tmp_path / "a.parquet"
        dataset.to_parquet(str(source))
    else:
        source = dataset if kind == "dataset" else dataset.to_iterable_dataset()
    corpus = open_corpus(source, column="messages")
    assert next(corpus.documents("train")).text == CHAT
    batch = next(contexts(corpus, "train", Numbers(), n_ctx=5, render=render))
    assert batch.tokens[:2].tolist() == [[0, 1, 2, 3, 4], [0, 5, 6, 6, 6]]
    assert batch.assistant is not None
    assert batch.assistant[:2].tolist() == [[False] * 3 + [True] * 2, [False, True, False, False, False]]
    for pack, bos in itertools.product((False, True), BOS_POLICIES):
        whole = list(
            contexts(corpus, "train", Numbers(), n_ctx=4, batch=1, pack=pack, bos=bos, render=render)
        )
        for each in whole:
            assert each.assistant is not None
            assert torch.equal(each.assistant, (each.tokens >= 3) & (each.tokens <= 5) & each.mask)
    with pytest.raises(MechlabError, match=r"corpus holds chats: .*row 0"):
        list(contexts(corpus, "train", Numbers(), n_ctx=5))


def test_texts_among_chats_have_no_assistant(tmp_path: Path) -> None:
    rows = [{"messages": CHAT}, {"messages": "7 8"}, {"messages": []}]
    corpus = _chats(tmp_path, rows)
    (batch,) = contexts(corpus, "train", Numbers(), n_ctx=9, pack=True, bos="document", render=render)
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 7], [8] * 9]
    assert batch.assistant is not None
    assert batch.assistant.sum() == 3


def _chats(folder: Path, rows: list[Any]) -> Corpus:
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return open_corpus(folder / "a.jsonl", column="messages")


def test_a_bad_chat_is_a_corrupt_row(tmp_path: Path) -> None:
    for bad in (
        [{"role": "user"}],
        [{"role": 1, "content": "1"}],
        ["hello"],
        {"role": "user", "content": "1"},
    ):
        with pytest.raises(MechlabError, match="no text column 'messages'"):
            _chats(tmp_path, [{"messages": bad}])
