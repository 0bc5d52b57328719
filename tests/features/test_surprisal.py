"""Surprisal: equal to naive log probabilities, and above chance where the model can read the explanation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.features.continuations import continuations, log_probabilities
from mechlab.features.explanations import Explanation
from mechlab.features.scoring.items import Items, Judge
from mechlab.features.scoring.metrics import auroc
from mechlab.features.scoring.readers import model_reader, word_reader
from mechlab.features.scoring.surprisal import NEUTRAL, SurprisalJudge
from mechlab.features.text import text_of
from mechlab.features.vocabulary import vocabulary_of
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add
from mechlab.models.subject import Subject, load_model
from tiny import save_tiny_model


@pytest.fixture(scope="module")
def stories(stories_model: Path) -> Subject:
    return load_model(stories_model)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


def naive(subject: Subject, first: str, second: str) -> float:
    before = subject.tokens(first).tolist()
    total = 0.0
    for token in subject.tokenizer.encode(second, add_special_tokens=False):
        logits = subject.logits(torch.tensor([before]))[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        before.append(token)
    return total


def test_log_probabilities_equal_one_token_at_a_time(stories: Subject) -> None:
    pairs = [
        ("Once", "upon a time"),
        ("The dog", "ran."),
        ("", "Lily"),
        ("The cat sat", ""),
        ("A", "b c d e f"),
    ]
    found = log_probabilities(stories, pairs, batch=2)
    assert found == pytest.approx([naive(stories, *pair) for pair in pairs], abs=1e-4)
    assert log_probabilities(stories, []).shape == (0,)


def test_a_pair_longer_than_the_context_has_no_log_probability(tiny: Subject) -> None:
    found = log_probabilities(tiny, [("the cat " * 20, "sat"), ("the", "cat")])
    assert np.isnan(found).tolist() == [True, False]
    assert found[1] == pytest.approx(naive(tiny, "the", "cat"), abs=1e-4)


def test_word_reader_equals_its_formula() -> None:
    read = word_reader(["a b b", "B, c!"], copied=0.2)
    found = read([("b z", "b"), ("b z", "a z"), ("b z", ""), ("", "a")])
    wanted = [
        np.log(0.8 * 3 / 5 + 0.2 / 2),
        np.log(0.8 / 5) + np.log(0.8 * 0.5 / 5 + 0.2 / 2),
        0.0,
        np.log(0.8 / 5),
    ]
    assert found == pytest.approx(wanted)
    running = word_reader(["running running singing the"], copied=0.5)([("ing", "running"), ("the", "the")])
    assert running == pytest.approx([np.log(0.5 * 2 / 4 + 0.5 * 2 / 3), np.log(0.5 / 4 + 0.5)])
    with pytest.raises(MechlabError, match="between 0 and 1"):
        word_reader(["a"], copied=1.0)
    with pytest.raises(MechlabError, match="empty"):
        word_reader([" ,"])


def test_information_is_the_difference_to_the_neutral_explanation(stories: Subject) -> None:
    words = vocabulary_of(stories)
    text = text_of([stories.tokens("Tim saw a big red ball in the park.")[1:].tolist()], words)
    items = Items(
        np.array([0, 3]), 5, np.array([True, False]), None, np.zeros(2, np.int64), np.zeros(2, np.int64)
    )
    judge = SurprisalJudge(model_reader(stories), template="{explanation}\n")
    assert isinstance(judge, Judge)
    found = judge(Explanation(0, "person", "A big ball."), text, items)
    said = [words.string(text.tokens[at : at + 5]) for at in (0, 3)]
    wanted = [naive(stories, "A big ball.\n", x) - naive(stories, f"{NEUTRAL}\n", x) for x in said]
    assert found == pytest.approx(wanted, abs=1e-4)
    assert judge(Explanation(0, "person", NEUTRAL), text, items) == pytest.approx([0.0, 0.0], abs=1e-6)


def test_explanations_that_the_model_can_read_beat_chance_and_each_other(
    stories: Subject, stories_data: Path
) -> None:
    """A model of 260,000 parameters reads what is worded like its own stories."""
    with stories_data.open() as lines:
        texts = [json.loads(next(lines))["text"] for _ in range(250)]
    rows = [stories.tokens(said)[1:41].tolist() for said in texts]
    text = text_of([row for row in rows if len(row) == 40], vocabulary_of(stories))
    judge = SurprisalJudge(model_reader(stories), neutral="Once upon a time.", template="{explanation}\n")
    found = {}
    for word, other in (("park", "house"), ("dog", "cat")):
        says = [f" {word}" in text.vocabulary.string(text.tokens[at : at + 40]) for at in text.bounds[:-1]]
        label = np.array(says)
        kept = np.sort(np.concatenate([np.flatnonzero(label)[:30], np.flatnonzero(~label)[:30]]))
        items = Items(text.bounds[:-1][kept], 40, label[kept], None, kept, np.zeros(len(kept), np.int64))
        for named in (word, other):
            said = Explanation(0, "person", f"There was a {named}. The {named} was happy.")
            found[named] = auroc(named, judge(said, text, items), items.label, len(items))
        assert found[word].low > 0.5
        assert found[word].value > found[other].value + 0.05


def test_sampling_follows_the_softmax_and_the_generator(tiny: Subject) -> None:
    prompt = torch.tensor([[2, 4, 6]]).expand(4000, 3)
    found = continuations(tiny, prompt, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    wanted = tiny.logits(prompt[:1])[0, -1].softmax(-1)
    share = torch.bincount(found, minlength=len(wanted)) / len(found)
    assert float((share - wanted).abs().max()) < 0.03
    state = torch.random.get_rng_state()
    again = continuations(tiny, prompt[:5], 6, generator=torch.Generator().manual_seed(1))
    same = continuations(tiny, prompt[:5], 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again, same)
    assert torch.equal(state, torch.random.get_rng_state())
    greedy = continuations(tiny, prompt[:1], 4, temperature=0.0)
    written = tiny.module.generate(
        prompt[:1], attention_mask=torch.ones_like(prompt[:1]), max_new_tokens=4, min_new_tokens=4,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    assert greedy.tolist() == written[:, 3:].tolist()
    with editing(tiny, "blocks.0.hook_resid_post", add(torch.zeros(16))):
        assert torch.equal(
            again, continuations(tiny, prompt[:5], 6, generator=torch.Generator().manual_seed(1))
        )


def test_refusals(tiny: Subject, tmp_path: Path) -> None:
    prompt = torch.tensor([[2, 4, 6]])
    with pytest.raises(MechlabError, match="needs a generator"):
        continuations(tiny, prompt, 1)
    with pytest.raises(MechlabError, match="longer than the model's context"):
        continuations(tiny, prompt, 40, temperature=0.0)
    with pytest.raises(MechlabError, match=r"put \{explanation\} in it"):
        SurprisalJudge(model_reader(tiny), template="nothing")
    with pytest.raises(MechlabError, match="causal"):
        log_probabilities(load_model(save_tiny_model(tmp_path / "bert", "bert")), [("the", "cat")])
