"""A real model as teacher: activations, effects, 8-bit weights, a language model as student."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechlab.activations.capture import read_sites
from mechlab.errors import MechlabError
from mechlab.features.investigate.fragments import Fragments, fragments_of
from mechlab.features.investigate.llm_student import LlmStudent
from mechlab.features.investigate.loop import lesson
from mechlab.features.investigate.model_teacher import Direction, FeatureTeacher, Latent, quantised
from mechlab.features.investigate.quiz import make_quiz
from mechlab.features.investigate.students import RuleStudent
from mechlab.features.investigate.teachers import Query
from mechlab.features.llm.job import LlmJob
from mechlab.features.llm.openai_client import OpenAIClient
from mechlab.features.llm.server import ScriptedServer
from mechlab.features.planted.corpora import fable_text
from mechlab.models.subject import Subject, load_model
from mechlab.sae.splice import At
from mechlab.sae.topk import TopK, TopKConfig

SITE = "blocks.1.hook_resid_post"


@functools.cache
def setting() -> tuple[Subject, Fragments]:
    return load_model("fable"), fragments_of(fable_text(8000)[0], 200, seed=1)


def latent() -> Latent:
    """A latent of a dictionary with random weights."""
    sae = TopK(TopKConfig(site=SITE, d_sae=128, k=16), 128)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / 11)
    return Latent(At(sae, (SITE,), (SITE,)), 3)


def test_activations_are_the_dictionarys_own() -> None:
    subject, fragments = setting()
    feature = latent()
    teacher = FeatureTeacher(subject, feature, fragments, floor=0.0)
    passage = fragments.passages[3]
    x = read_sites(subject, torch.tensor([[subject.bos, *passage]]), [SITE])[SITE][0]
    codes = feature.dictionary.sae.encode(x)
    dense = torch.zeros(len(x), 128).scatter_add(1, codes.indices, codes.values)[1:, 3]
    (answer,) = teacher.ask([Query("activation", passage)])
    assert answer.activation == pytest.approx(dense.double().numpy(), abs=1e-4)
    floored = FeatureTeacher(subject, feature, fragments, floor=0.5)
    loud = np.concatenate(floored.activations(fragments.passages))
    every = np.concatenate(teacher.activations(fragments.passages))
    assert np.array_equal(loud > 0, every >= 0.5 * every.max())


@pytest.mark.parametrize("kind", ["latent", "direction"])
def test_effects_of_a_feature(kind: str) -> None:
    subject, fragments = setting()
    vector = torch.randn(128, generator=torch.Generator().manual_seed(1))
    feature = latent() if kind == "latent" else Direction(SITE, vector, 0.5)
    teacher = FeatureTeacher(subject, feature, fragments)
    (shown,) = teacher.ask([Query("example")])
    passage, other = shown.query.passage, fragments.passages[0]
    queries = [Query("ablation", passage), Query("steering", passage), Query("patching", other, passage)]
    ablated, steered, patched = (answer.effect for answer in teacher.ask(queries))
    assert teacher.asked == 4
    assert ablated["kl"] > 0
    assert steered["kl"] == pytest.approx(0.1, rel=0.02)
    assert patched["activation"] == pytest.approx(shown.activation.max(), rel=1e-3)
    assert len(steered["more likely next"]) == 5
    with pytest.raises(MechlabError, match="empty"):
        teacher.ask([Query("patching", passage)])


def test_texts_must_be_the_models() -> None:
    subject, fragments = setting()
    teacher = FeatureTeacher(subject, Direction(SITE, torch.ones(128)), fragments)
    assert "".join(fragments.vocabulary.texts[t] for t in teacher.passage("the dog")) == " the dog"
    for text, message in (("", "empty"), ("qwertz", "does not know"), ("the " * 200, "too long")):
        with pytest.raises(MechlabError, match=message):
            teacher.passage(text)
    with pytest.raises(MechlabError, match="feature does not exist"):
        FeatureTeacher(subject, Latent(latent().dictionary, 128), fragments)


def test_eight_bits_are_near_and_two_are_not() -> None:
    subject, fragments = setting()
    tokens = torch.tensor([[subject.bos, *fragments.passages[0]]])
    before = {name: weight.clone() for name, weight in subject.module.named_parameters()}
    clean = subject.logits(tokens).log_softmax(-1)
    gaps = []
    for bits in (8, 2):
        changed = quantised(subject, bits).logits(tokens).log_softmax(-1)
        gaps.append(float((clean.exp() * (clean - changed)).sum(-1).mean()))
    assert 0 < gaps[0] < 0.01 < gaps[1]
    assert all(torch.equal(weight, before[name]) for name, weight in subject.module.named_parameters())
    with pytest.raises(MechlabError, match="bits are out of range"):
        quantised(subject, 1)


def test_the_rule_student_learns_a_direction_of_the_embedding() -> None:
    subject, fragments = setting()
    held_out = fragments_of(fable_text(30_000, start=3000)[0], 800, seed=2)
    word = fragments.vocabulary.ids([" said"])[0]
    vector = subject.module.get_input_embeddings().weight[int(word)].clone()
    site = "hook_embed"
    feature = Direction(site, vector, 0.9 * float(vector.norm()))
    teacher = FeatureTeacher(subject, feature, held_out)
    quiz = make_quiz(teacher, held_out, items=16)
    found = lesson(RuleStudent(held_out, seed=0), teacher, quiz, turns=3)
    assert found.marks[-1].detection >= 0.95


def test_a_language_model_asks_by_tools(tmp_path: Path) -> None:
    subject, fragments = setting()
    teacher = FeatureTeacher(subject, Direction(SITE, torch.ones(128)), fragments)
    quiz = make_quiz(teacher, fragments, items=8, explanations=("right", "near", "far"))

    def answer(body: dict[str, Any]) -> str:
        user = body["messages"][1]["content"]
        if "Ask up to" in user:
            asked = [("example", "", ""), ("activation", "the dog", ""), ("activation", "qwertz", "")]
            asked += [("edit", "the dog", "the cat")]
            return json.dumps({"queries": [{"tool": t, "text": x, "other": o} for t, x, o in asked]})
        if "TEXTS" in user:
            return json.dumps({"active": [80] * 8}) if "the" in user else "{}"
        if "Which explanation" in user:
            return json.dumps({"choice": quiz.right[0]})
        return json.dumps({"explanation": "the word dog"})

    with ScriptedServer(answer) as server:
        job = LlmJob(OpenAIClient("scripted", base_url=server.url, key="none"), tmp_path / "answers")
        student = LlmStudent(job, fragments.vocabulary, teacher.passage, tools=teacher.tools)
        found = lesson(student, teacher, quiz, turns=2, budget=4)
    # The text that cannot be read is dropped; what is left costs four.
    assert [answer.query.tool for answer in found.answers[0]] == ["example", "activation", "edit"]
    assert student.failed == {"query": 2}
    assert teacher.asked == 8
    assert found.sentences == ("the word dog", "the word dog")
    assert (found.marks[-1].detection, found.marks[-1].choice) == (0.5, 1.0)
