"""Functions of text as features: what each mode gives them, on which token the value stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed import dense

from mechlab.data.corpus import open_corpus
from mechlab.errors import MechlabError
from mechlab.features.sources import TextRows, index_function, model_rows
from mechlab.features.sources import block as block_module
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import Vocabulary
from mechlab.models.subject import load_model

VOCABULARY = Vocabulary((" the", " cat", " sat", ".", " dog"))
PASSAGES = [[0, 1, 2, 3, 0, 4], [4, 4], [1]]
TEXT = text_of(PASSAGES, VOCABULARY)


def cats(text: str) -> float:
    return float(text.count("cat") + 2 * text.count("dog"))


def per_token(tokens: list[str]) -> list[float]:
    return [float(len(token)) for token in tokens]


def naive(mode: str, window: int) -> np.ndarray:
    found = []
    for passage in PASSAGES:
        texts = [VOCABULARY[token] for token in passage]
        for at in range(len(texts)):
            first = max(0, at + 1 - window) if mode == "window" else 0
            last = at == len(texts) - 1
            found.append(cats("".join(texts[first : at + 1])) if mode != "passage" or last else 0.0)
    return np.array(found, np.float32)


@pytest.mark.parametrize("mode", ["prefix", "window", "passage"])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_values_stand_on_the_last_token_given(
    mode: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechlab.features.sources.rows.BLOCK", block)
    index = index_function(cats, TextRows(TEXT), tmp_path / "i", mode=mode, window=2)
    assert np.array_equal(index.dense(0), naive(mode, 2))
    assert index.text.tokens.tolist() == [token for passage in PASSAGES for token in passage]
    assert index.about["names"][0].endswith(":cats")
    assert block_module.BLOCK == 4096


def test_several_functions_and_one_value_a_token(tmp_path: Path) -> None:
    functions: dict[str, Callable[..., Any]] = {"length": per_token, "none": lambda tokens: [0] * len(tokens)}
    index = index_function(functions, TextRows(TEXT), tmp_path / "i", mode="tokens")
    assert index.n_features == 2
    assert index.live.tolist() == [0]
    assert index.dense(0).tolist() == [len(VOCABULARY[token]) for passage in PASSAGES for token in passage]
    assert index.about["names"] == ["length", "none"]


def test_a_function_sees_each_window_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def counting(text: str) -> float:
        asked.append(text)
        return 1.0

    index_function(counting, TextRows(TEXT), tmp_path / "i", mode="window", window=1)
    assert sorted(asked) == sorted(VOCABULARY.texts)


def test_a_models_corpus_is_read_without_the_model(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = load_model(tiny_model)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(subject.module, "forward", never)
    corpus = open_corpus(tiny_corpus)
    index = index_function(cats, model_rows(subject, corpus, tokens=500), tmp_path / "i", mode="window")
    assert len(index.text) == 500
    vocabulary, tokens = index.text.vocabulary, index.text.tokens
    for row in np.random.default_rng(0).integers(0, 500, 40).tolist():
        first = max(row - 7, int(index.text.bounds[index.text.passage[row]]))
        assert dense(index)[row, 0] == cats(vocabulary.string(np.asarray(tokens[first : row + 1])))


def failing(text: str) -> float:
    raise KeyError(text)


@pytest.mark.parametrize(
    ("function", "mode", "message"),
    [
        (failing, "prefix", "function .*:failing failed on ' the': KeyError"),
        (lambda text: float("nan"), "prefix", "gave no finite number on ' the': nan"),
        (lambda text: "high", "prefix", "gave no finite number on ' the': 'high'"),
        (lambda tokens: [1.0], "tokens", "does not give one number a token: 1 .6 were given"),
        (cats, "prefx", "unknown mode: prefx .did you mean prefix"),
    ],
)
def test_what_is_refused(function: Any, mode: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MechlabError) as caught:
        index_function(function, TextRows(TEXT), tmp_path / "i", mode=mode)
    assert re.search(message, str(caught.value))
    assert not (tmp_path / "i").exists()


def test_another_text_or_function_is_another_index(tmp_path: Path) -> None:
    index_function(cats, TextRows(TEXT), tmp_path / "i")
    with pytest.raises(MechlabError, match="made from another text"):
        other = Text(TEXT.tokens[::-1].copy(), TEXT.context, TEXT.position, TEXT.document, VOCABULARY)
        index_function(cats, TextRows(other), tmp_path / "i")
    with pytest.raises(MechlabError, match="made from another functions"):
        index_function({index_name(): per_token}, TextRows(TEXT), tmp_path / "i")


def index_name() -> str:
    return f"{cats.__module__}:cats"
