"""End-to-end training: batches, the loss by definition, gradients, exact resume, better predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.activations.harvest import harvest
from mechlab.activations.live import live
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.data.stream import contexts
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject, load_model
from mechlab.sae.base import Step
from mechlab.sae.contexts import ContextBatch, ContextFeed
from mechlab.sae.dictionary import train_sae
from mechlab.sae.e2e import end_to_end, finetune, train_e2e
from mechlab.sae.evaluate import evaluate
from mechlab.sae.relu import ReluConfig
from mechlab.sae.scaling import look
from mechlab.sae.topk import TopKConfig
from mechlab.sae.trainee import Trainee

SITE = "blocks.0.hook_resid_post"
CONFIG = TopKConfig(site=SITE, d_sae=32, k=3, tokens=4000, batch_size=128)


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


def batches_of(feed: ContextFeed, n: int, size: int = 128, seed: int = 0) -> list[ContextBatch]:
    with feed.opener(feed.sites)(size, seed, None) as batches:
        found = [next(batches) for _ in range(n)]
    assert all(isinstance(batch, ContextBatch) for batch in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("pack", [True, False])
def test_a_batch_holds_rows_and_predictions_of_its_contexts(
    subject: Subject, corpus: Corpus, pack: bool
) -> None:
    feed = ContextFeed(subject, corpus, [SITE], n_ctx=16, pack=pack)
    for batch in batches_of(feed, 3):
        assert batch.tokens.shape[0] == 128 // 15
        assert torch.equal(batch.chosen, batch.mask & (batch.tokens != subject.bos))
        assert len(batch) == int(batch.chosen.sum())
        x = read_sites(subject, batch.tokens, [SITE])[SITE][batch.chosen]
        torch.testing.assert_close(batch[SITE], x, atol=1e-5, rtol=1e-5)
        want = subject.logits(batch.tokens)[batch.chosen].log_softmax(-1)
        torch.testing.assert_close(batch.clean, want, atol=1e-5, rtol=1e-5)


def test_every_context_comes_once_an_epoch_in_another_order(subject: Subject, corpus: Corpus) -> None:
    feed = ContextFeed(subject, corpus, [SITE], n_ctx=16)
    stream = contexts(corpus, "train", subject.tokenizer, n_ctx=16, pack=True)
    whole = sorted(tuple(row[m].tolist()) for b in stream for row, m in zip(b.tokens, b.mask, strict=True))
    seen: list[tuple[int, ...]] = []
    with feed.opener(feed.sites)(1024, 5, None) as batches:
        while len(seen) < 2 * len(whole):
            batch = next(batches)
            assert isinstance(batch, ContextBatch)
            seen += [tuple(row[m].tolist()) for row, m in zip(batch.tokens, batch.mask, strict=True)]
    first, second = seen[: len(whole)], seen[len(whole) : 2 * len(whole)]
    assert sorted(first) == sorted(second) == whole
    assert first != second


@pytest.mark.parametrize("after", [0, 1, 7, 40, 75])
def test_batches_go_on_from_a_state(subject: Subject, corpus: Corpus, after: int) -> None:
    feed = ContextFeed(subject, corpus, [SITE], n_ctx=16)
    opener = feed.opener(feed.sites)
    with opener(256, 0, None) as batches:
        for _ in range(after):
            next(batches)
        state = batches.state()
        want = [next(batches) for _ in range(2)]
    with opener(256, 0, state) as batches:
        for one in want:
            other = next(batches)
            assert torch.equal(one.row, other.row)
            assert torch.equal(one[SITE], other[SITE])
    with pytest.raises(MechlabError, match="belongs to other data"), opener(256, 1, state):
        pass


def trainee_of(feed: ContextFeed, config: TopKConfig | ReluConfig, batch: ContextBatch) -> Trainee:
    sample = {site: batch[site] for site in feed.sites}
    scales = {site: look(site, rows) for site, rows in sample.items()}
    return Trainee(config, scales, sample, seed=0, device=torch.device("cpu"))


def divergence(subject: Subject, batch: ContextBatch, made: Tensor) -> Tensor:
    """Mean KL by definition, context by context."""
    found, at = [], 0
    for tokens, mask, chosen in zip(batch.tokens, batch.mask, batch.chosen, strict=True):
        n = int(mask.sum())
        rows = made[at : at + int(chosen.sum())]
        at += len(rows)

        def put(value: Tensor, rows: Tensor = rows, chosen: Tensor = chosen[:n]) -> Tensor:
            new = value[0].clone()
            new[chosen] = rows
            return new[None]

        clean = subject.logits(tokens[None, :n])[0].softmax(-1)
        with editing(subject, SITE, put):
            spliced = subject.module(tokens[None, :n]).logits[0].softmax(-1)
        found.append((clean * (clean.log() - spliced.log())).sum(-1)[chosen[:n]])
    return torch.cat(found).mean()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("objective", ["kl", "kl+mse"])
def test_the_loss_is_the_one_defined(subject: Subject, corpus: Corpus, objective: str, pack: bool) -> None:
    feed = ContextFeed(subject, corpus, [SITE], n_ctx=16, pack=pack)
    batch = batches_of(feed, 1)[0]
    trainee = trainee_of(feed, CONFIG, batch)
    step = Step(3, 10, trainee.variance, 1.0, torch.tensor([3, 4, 9]))
    got = end_to_end(subject, objective)(trainee, batch, step)
    got.total.backward()
    gradients = {name: p.grad.clone() for name, p in trainee.sae.named_parameters()}
    assert all(p.grad is None for p in subject.module.parameters())
    trainee.sae.zero_grad()
    x, y = trainee.scaled(batch)
    own = trainee.sae.loss(x, y, step)
    assert own.made is not None
    assert own.penalty is not None
    assert float(own.penalty.detach()) > 0
    kl = divergence(subject, batch, own.made / trainee.y_scale)
    mse = (y - own.made).pow(2).sum(1).mean() / step.variance
    want = kl if objective == "kl" else (kl * float(mse / kl) + mse) / 2
    (want + own.penalty).backward()
    assert float(got.total) == pytest.approx(float(want + own.penalty), rel=1e-4)
    assert float(got.figures["kl"]) == pytest.approx(float(kl), rel=1e-4)
    for name, p in trainee.sae.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, atol=1e-5, rtol=1e-3, msg=name)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("config", [CONFIG, ReluConfig(site=SITE, d_sae=32, tokens=4000, batch_size=128)])
def test_interrupted_training_ends_with_the_same_bytes(
    subject: Subject, corpus: Corpus, tmp_path: Path, config: TopKConfig
) -> None:
    before = {name: p.clone() for name, p in subject.module.named_parameters()}
    whole = train_e2e(subject, corpus, tmp_path / "whole", config, n_ctx=16)

    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done >= 0.7 * total:
            raise Stopped

    with pytest.raises(Stopped):
        train_e2e(subject, corpus, tmp_path / "halves", config, n_ctx=16, progress=stop)
    halves = train_e2e(subject, corpus, tmp_path / "halves", config, n_ctx=16)
    for one, other in zip(whole.sae.parameters(), halves.sae.parameters(), strict=True):
        assert torch.equal(one, other)
    facts = whole.artifact.manifest
    assert facts.inputs["objective"] == "kl"
    assert facts.facts["kl"] >= 0
    assert all(torch.equal(p, before[name]) for name, p in subject.module.named_parameters())


@pytest.mark.slow
def test_finetuning_a_dictionary_of_fable_brings_the_predictions_nearer(tmp_path: Path) -> None:
    subject, corpus = load_model("fable"), open_corpus("fable")
    site = "blocks.2.hook_resid_post"
    config = TopKConfig(site=site, d_sae=256, k=8, tokens=60_000, batch_size=1024, lr=4e-3)
    store = harvest(subject, corpus, site, tmp_path / "store", tokens=12_000, n_ctx=64)
    first = train_sae(store, tmp_path / "first", config)
    options = {"n_ctx": 64, "tokens": 20_000, "lr": 1e-3, "batch_size": 1024}
    tuned = finetune(subject, corpus, first, tmp_path / "tuned", **options)
    assert tuned.artifact.manifest.inputs["objective"] == "kl+mse"
    assert tuned.artifact.manifest.inputs["start"] == first.artifact.manifest.fingerprint
    torch.testing.assert_close(tuned.sae.W_dec.norm(dim=1), torch.ones(256), atol=1e-4, rtol=1e-4)
    before, after = (evaluate(subject, each, corpus, tokens=4000, n_ctx=64) for each in (first, tuned))
    assert after.kl["spliced"] < 0.9 * before.kl["spliced"]
    assert after.ce["spliced"] < before.ce["spliced"]
    assert after.fve.value > before.fve.value - 0.05
    assert after.l0.value == pytest.approx(before.l0.value, abs=0.5)


def test_a_transcoder_is_trained_end_to_end(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    config = TopKConfig(
        site="blocks.1.mlp.hook_in", target="blocks.1.hook_mlp_out", d_sae=32, k=4, tokens=20_000,
        batch_size=256, lr=1e-2,
    )  # fmt: skip
    made = train_e2e(subject, corpus, tmp_path / "t", config, n_ctx=16, objective="kl+mse")
    rows = made.artifact.file("metrics.jsonl").read_text().splitlines()
    assert '"kl"' in rows[0]
    losses = [float(row.split('"kl": ')[1].split("}")[0].split(",")[0]) for row in rows]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_refusals(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="unknown objective: k1"):
        end_to_end(subject, "k1")
    with pytest.raises(MechlabError, match="end-to-end training replaces one site: "):
        several = TopKConfig(**{**CONFIG.model_dump(), "site": f"{SITE},blocks.1.hook_resid_post"})
        train_e2e(subject, corpus, tmp_path / "a", several, n_ctx=16)
    with pytest.raises(MechlabError, match=r"site cannot be replaced: blocks.0.attn.hook_pattern"):
        ContextFeed(subject, corpus, ["blocks.0.attn.hook_pattern"])
    with pytest.raises(MechlabError, match="context length does not fit: 99"):
        ContextFeed(subject, corpus, [SITE], n_ctx=99)
    with pytest.raises(MechlabError, match="end-to-end training needs whole contexts"):
        from mechlab.sae.source import mixed
        from mechlab.sae.train import train

        train(mixed(live(subject, corpus, SITE), (SITE,)), [CONFIG], loss=end_to_end(subject))
    made = train_e2e(subject, corpus, tmp_path / "d", CONFIG, n_ctx=16)
    wider = TopKConfig(**{**CONFIG.model_dump(), "d_sae": 33})
    with pytest.raises(MechlabError, match="start from has another d_sae: 32, not 33"):
        train_e2e(subject, corpus, tmp_path / "e", wider, start=made, n_ctx=16)
