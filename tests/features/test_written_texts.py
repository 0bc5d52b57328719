"""Texts written by a (scripted) language model, over real HTTP: features and functions scored on them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.llm_questions import job
from mechlab.data.fable import documents
from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation
from mechlab.features.index import index_of
from mechlab.features.llm.server import ScriptedServer, first
from mechlab.features.llm.simulator import Written, write_texts
from mechlab.features.ngram_writer import explain_ngrams_llm
from mechlab.features.scoring.written_texts import Texts, feature_module, score_written
from mechlab.features.text import Text, text_of
from mechlab.features.vocabulary import vocabulary_of
from mechlab.models.subject import Subject, load_model

CORPUS = [" ".join(document.tokens) for _, document in zip(range(60), documents("train"), strict=False)]
LISTS = {"animals": ("dog", "cat", "bird", "fox"), "colours": ("red", "green", "blue", "yellow")}


def writer(body: dict[str, Any]) -> str:
    """Sees which list most phrases are from; writes sentences with words of the list it is told of."""
    said = body["messages"][-1]["content"]
    if "- " in said:
        counts = {name: sum(said.count(word) for word in words) for name, words in LISTS.items()}
        return json.dumps({"explanation": max(counts, key=lambda name: counts[name])})
    count = int(re.findall(r"Write (\d+) texts", said)[0])
    words = next((words for name, words in LISTS.items() if name in said), ("stone",))
    positive = [f"we saw the {words[i % len(words)]} in the park" for i in range(count)]
    return json.dumps(
        {"positive": positive, "negative": [f"the man said {i} was here" for i in range(count)]}
    )


def module(words: Sequence[str]) -> Callable[[list[str]], np.ndarray]:
    return lambda texts: np.array([float(sum(word in text.split() for word in words)) for text in texts])


@pytest.mark.parametrize("name", LISTS)
def test_a_writer_explains_a_function(name: str, tmp_path: Path) -> None:
    with ScriptedServer(writer, faults=first("500")) as server:
        asked = job(server.url, tmp_path / "cache")
        found = explain_ngrams_llm(module(LISTS[name]), CORPUS, asked, feature=4)
        sent = len(server.answered)
        assert explain_ngrams_llm(module(LISTS[name]), CORPUS, asked, feature=4) == found
        assert len(server.answered) == sent
    assert found.explanation.text == name
    assert found.explanation.explainer == "ngrams:scripted"
    assert found.explanation.about["fresh"]
    assert found.explanation.about["failed"] == 0
    assert found.score.value > 2
    assert found.score.beats_null
    shown = [
        each["messages"][-1]["content"] for each in server.requests if "- " in each["messages"][-1]["content"]
    ]
    assert {len(each.splitlines()) for each in shown} == {30}
    assert len(set(shown)) == 3


def test_refusals_are_counted_and_all_of_them_an_error(tmp_path: Path) -> None:
    with ScriptedServer(writer, faults=first("refusal", "refusal")) as server:
        asked = job(server.url, tmp_path / "one", again=0)
        with pytest.raises(MechlabError, match="no summary"):
            explain_ngrams_llm(module(LISTS["animals"]), CORPUS, asked)
    with pytest.raises(MechlabError, match="does not vary"):
        explain_ngrams_llm(lambda texts: np.zeros(len(texts)), CORPUS, asked)


@pytest.fixture(scope="module")
def fable() -> Subject:
    return load_model("fable")


def test_features_are_scored_on_written_texts(fable: Subject, tmp_path: Path) -> None:
    """Features of the bundled model's tokens: one active on animals, one on colours."""
    vocabulary = vocabulary_of(fable)
    ids = [vocabulary.ids([f" {word}" for word in words]) for words in LISTS.values()]
    text = text_of([fable.tokens(each)[1:].numpy() for each in CORPUS], vocabulary)

    def activate(given: Text, features: Sequence[int]) -> np.ndarray:
        return np.stack([2.0 * np.isin(given.tokens, ids[f]) for f in features], axis=1)

    index = index_of(text, dict(enumerate(activate(text, [0, 1]).T)))
    with ScriptedServer(writer) as server:
        said = [Explanation(f, "person", name) for f, name in enumerate(LISTS)]
        written = write_texts(job(server.url, tmp_path / "cache"), said, 12)
    texts = {
        f: Texts(each.positive, each.negative) for f, each in enumerate(written) if isinstance(each, Written)
    }
    found = score_written(index, texts, lambda f: feature_module(fable, activate, f))
    for feature, score in found.items():
        assert score.beats_null
        assert score.null is not None
        assert score.null.value == pytest.approx(0.0, abs=1e-9)
        windows = index.dense(feature)[: len(text) // 16 * 16]
        assert score.value > 1
        assert windows.max() == 2.0


def test_a_feature_is_its_largest_activation_on_a_text(fable: Subject) -> None:
    def activate(given: Text, features: Sequence[int]) -> np.ndarray:
        return np.arange(1.0, len(given) + 1)[:, None] + np.array(features)

    found = feature_module(fable, activate, 5)(["the dog ran", "", "a cat"])
    assert found.tolist() == [8.0, 0.0, 10.0]
    with pytest.raises(MechlabError, match="longer than the model's context"):
        feature_module(fable, activate, 0)(["the dog " * 400])
