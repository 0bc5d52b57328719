"""Steering samples and heads of a dictionary's features against running one feature at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.activations.live import live
from mechlab.dashboards import feature_heads, steering
from mechlab.dashboards.feature_blocks import feature_blocks
from mechlab.dashboards.feature_heads import head_contributions
from mechlab.dashboards.feature_material import gather_material
from mechlab.dashboards.steering import opening_prompts, steering_samples
from mechlab.data.corpus import open_corpus
from mechlab.errors import MechlabError
from mechlab.features.building import load_index
from mechlab.features.logits import dictionary_directions, logit_effects
from mechlab.features.sources import index_dictionary, model_rows
from mechlab.interventions.edit import editing
from mechlab.interventions.edits import add
from mechlab.models.forward import DecomposedForward
from mechlab.models.subject import Subject, load_model
from mechlab.sae.abstopk import AbsTopKConfig
from mechlab.sae.dictionary import Dictionary, train_sae
from mechlab.sae.topk import TopKConfig
from tiny import save_tiny_model

SHORT = {"d_sae": 40, "k": 4, "tokens": 512, "batch_size": 256}
LAST = "blocks.1.hook_resid_post"
CONFIGS = {
    "gpt2": ("gpt2", TopKConfig(site=LAST, **SHORT)),
    "middle": ("llama", TopKConfig(site="blocks.1.hook_resid_mid", **SHORT)),
    "pre": ("gpt_neox", TopKConfig(site="blocks.1.hook_resid_pre", **SHORT)),
    "signs": ("gpt2", AbsTopKConfig(site=LAST, **SHORT)),
    "crosscoder": ("llama", TopKConfig(site=f"blocks.0.hook_resid_post,{LAST}", **SHORT)),
    "transcoder": ("gpt2", TopKConfig(site="blocks.1.mlp.hook_in", target="blocks.1.hook_mlp_out", **SHORT)),
}
PROMPTS = ("the cat sat on", "a red dog saw it and ran")


@pytest.fixture(scope="module", params=CONFIGS)
def made(request, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory):
    """(name, subject, dictionary, index) of one architecture and site."""
    folder, (architecture, config) = tmp_path_factory.mktemp("made"), CONFIGS[request.param]
    subject = load_model(save_tiny_model(folder / "model", architecture))
    corpus = open_corpus(tiny_corpus)
    sites = list(dict.fromkeys((*config.inputs, *config.outputs)))
    dictionary = train_sae(live(subject, corpus, sites), folder / "sae", config)
    signs = request.param == "signs"
    index_dictionary(dictionary, model_rows(subject, corpus, tokens=2000), folder / "i", signs=signs)
    return request.param, subject, dictionary, load_index(folder / "i")


def direction(dictionary: Dictionary, feature: int) -> torch.Tensor:
    rows = dictionary.sae.W_dec.detach()
    return rows[feature] if feature < len(rows) else -rows[feature - len(rows)]


@contextlib.contextmanager
def steered_by(subject: Subject, dictionary: Dictionary, feature: int, strength: float) -> Iterator[None]:
    """One feature added at every place that the dictionary writes."""
    with contextlib.ExitStack() as stack:
        parts = direction(dictionary, feature).split(list(dictionary.sae.out_sizes))
        for site, part in zip(dictionary.outputs, parts, strict=True):
            stack.enter_context(editing(subject, site, add(part, strength)))
        yield


@torch.no_grad()
def greedy(subject: Subject, prompt: str, count: int) -> str:
    tokens = subject.tokens(prompt)[None]
    start = tokens.shape[1]
    for _ in range(count):
        tokens = torch.cat([tokens, subject.logits(tokens)[:, -1:].argmax(-1)], dim=1)
    return "".join(subject.token_text(token) for token in tokens[0, start:].tolist())


@torch.no_grad()
def test_samples_are_those_of_one_feature_at_a_time(made, monkeypatch: pytest.MonkeyPatch) -> None:
    _, subject, dictionary, index = made
    features = index.live[[0, 3, -1]].tolist()
    found = steering_samples(
        subject, dictionary, index, features, prompts=PROMPTS, strengths=(2.0, -1.0, 40.0), new_tokens=5
    )
    assert found.prompts == PROMPTS
    assert sorted(found.of) == sorted(features)
    changed = 0
    for feature in features:
        samples = found.of[feature]
        assert [each.strength for each in samples] == [-1.0, 0.0, 2.0, 40.0]
        for sample in samples:
            strength = sample.strength * float(index.maximum[feature])
            divergence, counted = 0.0, 0
            for prompt, text in zip(PROMPTS, sample.texts, strict=True):
                tokens = subject.tokens(prompt)[None]
                clean = subject.logits(tokens).double().log_softmax(-1)
                with steered_by(subject, dictionary, feature, strength):
                    steered = subject.logits(tokens).double().log_softmax(-1)
                    assert text == greedy(subject, prompt, 5)
                divergence += float((clean.exp() * (clean - steered)).sum())
                counted += tokens.shape[1]
                changed += text != greedy(subject, prompt, 5)
            assert sample.kl == pytest.approx(divergence / counted, rel=1e-3, abs=1e-6)
        assert samples[1].kl == 0
    assert changed
    # In batches of one feature: the same.
    monkeypatch.setattr(steering, "_BUDGET", 1)
    seen: list[tuple[int, int]] = []
    again = steering_samples(
        subject, dictionary, index, features, prompts=PROMPTS, strengths=(2.0, -1.0, 40.0), new_tokens=5,
        progress=lambda *now: seen.append(now),
    )  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for feature in features:
        for one, other in zip(found.of[feature], again.of[feature], strict=True):
            assert one.texts == other.texts
            assert one.kl == pytest.approx(other.kl, rel=1e-3, abs=1e-6)


def test_prompts_leave_room_and_differ(made) -> None:
    _, subject, _, index = made
    prompts = opening_prompts(index, subject)
    assert len(set(prompts)) == 3
    assert all(len(subject.tokens(prompt)) + steering.NEW_TOKENS <= subject.n_ctx for prompt in prompts)


def test_what_cannot_be_steered_is_refused(made) -> None:
    _, subject, dictionary, index = made
    dead = np.flatnonzero(index.active == 0)
    feature = int(index.live[0])
    with pytest.raises(MechlabError, match="no prompt"):
        steering_samples(subject, dictionary, index, [feature], prompts=())
    with pytest.raises(MechlabError, match="longer than the model's context"):
        steering_samples(subject, dictionary, index, [feature], prompts=["the cat " * 14])
    if len(dead):
        with pytest.raises(MechlabError, match="never active"):
            steering_samples(subject, dictionary, index, [int(dead[0])], prompts=PROMPTS)


@torch.no_grad()
def test_heads_are_those_of_the_decomposed_forward(made) -> None:
    name, subject, dictionary, index = made
    found = head_contributions(subject, dictionary, index, tokens=10**6)
    if name in ("transcoder", "crosscoder"):
        assert found == {}
        return
    text, forward = index.text, DecomposedForward(subject.module)
    layers = {"pre": 1}.get(name, 2)
    heads = [f"a{layer}.h{head}" for layer in range(layers) for head in range(4)]
    written = np.zeros((len(text), len(heads), 16))
    for context in np.unique(text.context):
        rows = np.flatnonzero(text.context == context)
        tokens = torch.tensor([subject.bos, *text.tokens[rows].tolist()])[None]
        sources = forward.run(tokens, keep=True).sources
        for layer in range(layers):
            for head in range(4):
                out = sources[1 + layer * 5 + head, 0, 1:]
                written[rows, layer * 4 + head] = out.numpy()
    encoder = dictionary.sae.encoder.detach().double().numpy()
    whole = (np.diff(np.flatnonzero(np.append(text.starts, True))) > 0).all()
    assert whole
    assert sorted(found) == index.live.tolist()
    for feature in index.live.tolist():
        row = encoder[feature % len(encoder)] * (1 if feature < len(encoder) else -1)
        means = (written[index.entries(feature)[0]] @ row).mean(0)
        wanted = np.argsort(-np.abs(means))[: feature_heads.TOP]
        got = dict(found[feature])
        assert [abs(value) for value in got.values()] == sorted((abs(v) for v in got.values()), reverse=True)
        np.testing.assert_allclose(list(got.values()), means[wanted], rtol=1e-3, atol=1e-5)
        assert all(got[each] == pytest.approx(means[heads.index(each)], rel=1e-3, abs=1e-5) for each in got)


def test_a_sample_of_tokens_leaves_out_features_that_are_not_active_in_it(made) -> None:
    name, subject, dictionary, index = made
    if name in ("transcoder", "crosscoder"):
        pytest.skip("does not read one place of the residual stream")
    few = head_contributions(subject, dictionary, index, tokens=20)
    assert 0 < len(few) <= len(index.live)
    assert few == head_contributions(subject, dictionary, index, tokens=20)


@torch.no_grad()
def test_all_of_it_reaches_the_records(made) -> None:
    name, subject, dictionary, index = made
    steps: list[str] = []
    material = gather_material(
        index, dictionary=dictionary, subject=subject, steer=2, progress=lambda step, *_: steps.append(step)
    )
    assert list(dict.fromkeys(steps)) == ["neighbours", "logits", "heads", "steering"]
    block = dict(feature_blocks(material))["features-0"]
    records = {int(number): record for number, record in block["features"].items()}
    steered = [feature for feature, record in records.items() if "steer" in record]
    assert len(steered) == 2
    for feature in steered:
        assert 0 < index.density[feature] <= 0.1
        grid = records[feature]["steer"]
        assert [each["strength"] for each in grid] == [-1, 0, 1, 2, 4]
        assert len(grid[0]["rows"]) == 3
    rows = torch.cat([dictionary.sae.W_dec, -dictionary.sae.W_dec]).detach()[: index.n_features]
    unit = (rows / rows.norm(dim=1, keepdim=True)).double()
    for feature, record in records.items():
        cosine = record["near"]["cosine"]
        assert feature not in [other for other, _ in cosine]
        for other, value in cosine:
            assert value == pytest.approx(float(unit[feature] @ unit[other]), rel=1e-2, abs=1e-6)
        assert ("heads" in record["near"]) == (feature in material.heads)
    if name == "crosscoder":  # it writes at two places of one stream: no direct effect
        assert not any("logits" in record for record in records.values())
        return
    directions = dictionary_directions(subject, dictionary, signs=name == "signs")
    effects = logit_effects(subject, directions, top=10)
    for feature, record in records.items():
        up = record["logits"]["up"]
        vocabulary = index.text.vocabulary
        assert [block["strings"][n] for n, _ in up] == list(effects.words(feature, vocabulary))
        assert [value for _, value in up] == pytest.approx(effects.promoted_value[feature].tolist(), rel=1e-3)


def test_a_dictionary_of_another_index_is_refused(made) -> None:
    _, subject, dictionary, index = made
    half = index.restrict(np.arange(len(index.text)) < 100)
    wrong = type(half)(
        half.text, half.indptr[:11], half.row[: half.indptr[10]], half.value[: half.indptr[10]]
    )
    with pytest.raises(MechlabError, match="not that of the index"):
        gather_material(wrong, dictionary=dictionary, subject=subject)
