"""Evaluation inside a model: dictionaries of several sites against a slow computation, and refusals."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechlab.activations.capture import read_sites
from mechlab.activations.live import live
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.data.stream import contexts
from mechlab.errors import MechlabError
from mechlab.interventions.edit import editing
from mechlab.models.subject import Subject, load_model
from mechlab.sae.base import Sae
from mechlab.sae.clt import Clt, CltConfig
from mechlab.sae.dictionary import Dictionary, train_sae
from mechlab.sae.evaluate import Evaluation, evaluate
from mechlab.sae.topk import TopK, TopKConfig
from tiny import save_tiny_model

RESIDS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
IN, OUT = ("blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"), ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")
CONDITIONS = ("spliced", "mean", "zero")


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


def trained(subject: Subject, corpus: Corpus, out: Path) -> Dictionary:
    config = TopKConfig(site=RESIDS[0], d_sae=24, k=3, tokens=512, batch_size=256)
    return train_sae(live(subject, corpus, RESIDS[0]), out, config)


@pytest.fixture(scope="module")
def dictionary(subject: Subject, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Dictionary:
    return trained(subject, corpus, tmp_path_factory.mktemp("sae") / "d")


def transcoder(subject: Subject, skip: bool = True) -> tuple[Sae, tuple[str, ...], tuple[str, ...]]:
    config = TopKConfig(site=IN[1], target=OUT[1], d_sae=24, k=3, skip=skip)
    return TopK(config, subject.site(IN[1]).dim, subject.site(OUT[1]).dim), IN[1:], OUT[1:]


def crosscoder(subject: Subject) -> tuple[Sae, tuple[str, ...], tuple[str, ...]]:
    sizes = tuple(subject.site(site).dim for site in RESIDS)
    return TopK(TopKConfig(site=",".join(RESIDS), d_sae=24, k=3), sizes), RESIDS, RESIDS


def clt(subject: Subject) -> tuple[Sae, tuple[str, ...], tuple[str, ...]]:
    sizes = [tuple(subject.site(site).dim for site in sites) for sites in (IN, OUT)]
    return Clt(CltConfig(site=",".join(IN), target=",".join(OUT), d_sae=24, k=3), *sizes), IN, OUT


def behind_bos(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda old: torch.cat([old[:, :1], value[None, 1:]], dim=1)


@pytest.mark.parametrize(("make", "n_ctx"), [(transcoder, None), (crosscoder, 16), (clt, None)])
def test_dictionaries_of_several_sites_equal_a_slow_computation(
    subject: Subject,
    corpus: Corpus,
    dictionary: Dictionary,
    make: Callable[[Subject], tuple[Sae, tuple[str, ...], tuple[str, ...]]],
    n_ctx: int | None,
) -> None:
    sae, inputs, outputs = make(subject)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    mean = torch.randn(sae.d_out, generator=generator)
    placed = replace(dictionary, sae=sae.requires_grad_(False), inputs=inputs, outputs=outputs, mean=mean)
    got = evaluate(subject, placed, corpus, tokens=10**6, n_ctx=n_ctx)
    found, made, each = [], [], []
    ce: dict[str, float] = dict.fromkeys(("clean", *CONDITIONS), 0.0)
    kl: dict[str, float] = dict.fromkeys(CONDITIONS, 0.0)
    predicted = 0
    for batch in contexts(corpus, "validation", subject.tokenizer, n_ctx=n_ctx or subject.n_ctx, batch=1):
        tokens = batch.tokens
        values = read_sites(subject, tokens, list(dict.fromkeys((*inputs, *outputs))))
        x, y = (torch.cat([values[site] for site in sites], dim=-1)[0] for sites in (inputs, outputs))
        x_hat = sae(x)
        clean = subject.logits(tokens)[0].log_softmax(-1)
        scored = slice(1, tokens.shape[1] - 1)  # not from BOS, and nothing follows the last
        ce["clean"] -= float(clean[scored].gather(1, tokens[0, 2:, None]).sum())
        predicted += tokens.shape[1] - 2
        for name, value in zip(CONDITIONS, (x_hat, mean.expand_as(y), torch.zeros_like(y)), strict=True):
            with contextlib.ExitStack() as stack:
                for site, part in zip(outputs, value.split(list(sae.out_sizes), dim=1), strict=True):
                    stack.enter_context(editing(subject, site, behind_bos(part)))
                other = subject.logits(tokens)[0].log_softmax(-1)
            ce[name] -= float(other[scored].gather(1, tokens[0, 2:, None]).sum())
            kl[name] += float((clean[scored].exp() * (clean - other)[scored]).sum())
        found.append(y[1:])
        made.append(x_hat[1:])
        each.append(1 - (y - x_hat)[1:].square().sum(1) / (y - mean)[1:].square().sum(1))
    y, x_hat = torch.cat(found), torch.cat(made)
    assert got.tokens == len(y)
    fve = 1 - (y - x_hat).square().sum() / (y - y.mean(0)).square().sum()
    assert got.fve.value == pytest.approx(float(fve), abs=1e-4)
    assert got.fve_per_token.value == pytest.approx(float(torch.cat(each).mean()), rel=1e-4)
    assert got.ce == pytest.approx({name: total / predicted for name, total in ce.items()}, abs=1e-4)
    assert got.kl == pytest.approx({name: total / predicted for name, total in kl.items()}, abs=1e-4)
    assert got.kl_recovered.value == pytest.approx(1 - kl["spliced"] / kl["mean"], abs=1e-3)


def test_a_record_goes_through_json_and_an_older_one_is_refused(
    subject: Subject, corpus: Corpus, dictionary: Dictionary
) -> None:
    values = evaluate(subject, dictionary, corpus, tokens=200).to_dict()
    assert Evaluation.from_dict(json.loads(json.dumps(values))).to_dict() == values
    del values["fve_per_token"]
    with pytest.raises(MechlabError, match="evaluation lacks a figure: fve_per_token"):
        Evaluation.from_dict(values)


@pytest.mark.parametrize("n_ctx", [0, 1, -3, 10_000])
def test_contexts_must_fit_the_model(
    subject: Subject, corpus: Corpus, dictionary: Dictionary, n_ctx: int
) -> None:
    with pytest.raises(MechlabError, match=f"context length is out of range: {n_ctx}"):
        evaluate(subject, dictionary, corpus, n_ctx=n_ctx)


def test_contexts_of_one_token_predict_nothing(
    subject: Subject, corpus: Corpus, dictionary: Dictionary
) -> None:
    with pytest.raises(MechlabError, match="no token is predicted from another but BOS: n_ctx 2"):
        evaluate(subject, dictionary, corpus, tokens=50, n_ctx=2)


def test_a_model_that_fills_gaps_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    bert = load_model(save_tiny_model(tmp_path / "bert", "bert"))
    with pytest.raises(MechlabError, match="predicts the next token"):
        evaluate(bert, trained(bert, corpus, tmp_path / "d"), corpus)
