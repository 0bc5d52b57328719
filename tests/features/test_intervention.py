"""Intervention: steered text at matched KL, what it promotes, and whether a scorer hears it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.features.explanations import Explanation, Explanations
from mechlab.features.scoring.intervention import (
    Steered,
    intervention_score,
    plausibility_of,
    promotion_score,
    steer,
)
from mechlab.features.scoring.interventions import prompts_of, score_interventions
from mechlab.features.scoring.readers import model_reader
from mechlab.features.text import text_of
from mechlab.features.vocabulary import Vocabulary, vocabulary_of
from mechlab.models.subject import Subject, load_model

SITE = "blocks.3.hook_resid_post"
WORDS = (" friend", " mom", " Timmy")


@pytest.fixture(scope="module")
def stories(stories_model: Path) -> Subject:
    return load_model(stories_model)


@pytest.fixture(scope="module")
def prompts(stories: Subject) -> torch.Tensor:
    said = (
        "Once upon a time there was",
        "One day Tim went to the",
        "The little girl saw a big",
        "Mom and dad",
    )
    rows = [stories.tokens(each).tolist()[:5] for each in said] * 20
    return torch.tensor(rows)


@pytest.fixture(scope="module")
def steered(stories: Subject, prompts: torch.Tensor) -> dict[str, Steered]:
    """Text under the directions that the unembedding reads as one word each."""
    rows = stories.module.get_output_embeddings().weight
    found = {}
    for word in WORDS:
        token = next(t for t in range(len(rows)) if stories.token_text(t) == word)
        found[word] = steer(
            stories, SITE, rows[token] - rows.mean(0), prompts, kl=1.0, new_tokens=6, controls=2
        )
    return found


def test_promoted_words_are_written_more_often(steered: dict[str, Steered]) -> None:
    for word, written in steered.items():
        found = promotion_score([word], written)
        assert found.n == 80
        assert found.beats_null, word
        share = np.mean(written.steered.numpy() == written.vocabulary.ids([word])[0])
        before = np.mean(written.clean.numpy() == written.vocabulary.ids([word])[0])
        assert found.value == pytest.approx(share - before)
        others = [other for other in WORDS if other != word]
        assert promotion_score(others, written).value < found.value / 3


def test_both_directions_are_pushed_to_the_same_kl(steered: dict[str, Steered]) -> None:
    for written in steered.values():
        assert written.kl == pytest.approx(1.0, rel=0.011)
        assert min(written.strength, *written.random_strengths) > 0
        assert written.clean.shape == written.steered.shape == (80, 6)
        assert written.random.shape == (2, 80, 6)


def test_a_scorer_that_reads_recovers_the_explanation(stories: Subject, steered: dict[str, Steered]) -> None:
    """The scorer knows which words it has just read: all that a model of this size can tell."""
    scorer = plausibility_of(model_reader(stories), template="{passage} The")
    for word, written in steered.items():
        right = intervention_score(Explanation(0, "person", word.strip()), written, scorer)
        assert right.null is not None
        assert right.low > max(0, right.null.value), word
        wrong = [
            intervention_score(Explanation(0, "person", other.strip()), written, scorer).value
            for other in WORDS
            if other != word
        ]
        assert right.value > np.mean(wrong) + 0.2, word


def test_the_score_by_hand() -> None:
    vocabulary = Vocabulary((" a", " b"))
    rows = [torch.tensor(each) for each in ([[0], [0], [0]], [[1], [0], [1]], [[0], [1], [0]])]
    written = Steered(vocabulary, *rows[:2], rows[2][None], 1.0, (1.0,), 0.5)
    told = {" a": -3.0, " b": -1.0}

    def plausibility(passages: list[str], explanation: str) -> np.ndarray:
        return np.array([told[passage] for passage in passages]) - len(explanation)

    found = intervention_score(Explanation(0, "person", "b"), written, plausibility)
    assert found.value == pytest.approx((2 + 0 + 2) / 3)
    assert found.null is not None
    assert found.null.value == pytest.approx(2 / 3)
    deaf = intervention_score(Explanation(0, "person", "b"), written, lambda p, _: np.full(len(p), math.nan))
    assert math.isnan(deaf.value)
    assert deaf.n == 0


def test_same_seed_same_text_and_no_push_no_difference(stories: Subject, prompts: torch.Tensor) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))
    once = steer(stories, SITE, vector, prompts[:4], kl=0.1, new_tokens=4, seed=3)
    twice = steer(stories, SITE, vector, prompts[:4], kl=0.1, new_tokens=4, seed=3)
    assert torch.equal(once.steered, twice.steered)
    assert torch.equal(once.random, twice.random)
    # The noise is shared: at a tiny KL nearly every token is the same.
    slight = steer(stories, SITE, vector, prompts, kl=1e-4, new_tokens=4)
    assert (slight.steered == slight.clean).double().mean() > 0.95


def test_many_features(stories: Subject, prompts: torch.Tensor) -> None:
    rows = stories.module.get_output_embeddings().weight
    friend = next(t for t in range(len(rows)) if stories.token_text(t) == " friend")
    said = (Explanation(0, "person", "friend"), Explanation(0, "self", "dog"), Explanation(1, "person", "x"))
    card = score_interventions(
        stories,
        SITE,
        {0: rows[friend] - rows.mean(0), 2: rows[0]},
        Explanations(said, (), 3),
        prompts[:12],
        plausibility=plausibility_of(model_reader(stories), template="{passage} The"),
        promoted={0: [" friend"]},
        kl=1.0,
        new_tokens=5,
    )
    assert [(each.explainer, each.scorer) for each in card] == [
        ("person", "intervention"),
        ("self", "intervention"),
        ("", "promotion"),
    ]
    assert card.of("promotion")[0].score.beats_null
    assert [each.failed for each in card] == [0, 0, 0]
    assert ["no direction" in each.reason for each in card.unscored] == [True]


def test_prompts_are_beginnings_of_passages(stories: Subject) -> None:
    generator = np.random.default_rng(0)
    text = text_of([generator.integers(0, 500, n) for n in (3, 8, 20, 9)], vocabulary_of(stories))
    found = prompts_of(stories, text, 3, 8, generator)
    firsts = [text.tokens[at : at + 8].tolist() for at in text.bounds[1:-1]]
    assert found[:, 1:].tolist() == firsts
    assert set(found[:, 0].tolist()) == {stories.bos}
    with pytest.raises(MechlabError, match="too few passages: 2 of 9"):
        prompts_of(stories, text, 3, 9, generator)


def test_refusals(stories: Subject, steered: dict[str, Steered]) -> None:
    with pytest.raises(MechlabError, match="no word is a token"):
        promotion_score(["antidisestablishment"], steered[WORDS[0]])
    with pytest.raises(MechlabError, match="random direction"):
        steer(stories, SITE, torch.ones(64), torch.ones(1, 2, dtype=torch.long), controls=0)
    with pytest.raises(MechlabError, match=r"put \{passage\} in it"):
        plausibility_of(model_reader(stories), template="nothing")
