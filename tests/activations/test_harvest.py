"""Harvesting: rows equal to the slow way, whatever the settings; resumed without losing a byte."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_way import SITE, naive_rows

from mechlab.activations import harvest as harvest_module
from mechlab.activations.capture import activations
from mechlab.activations.harvest import harvest
from mechlab.activations.ranks import Ranks
from mechlab.activations.selection import Selection
from mechlab.activations.storage import FORMATS
from mechlab.activations.store import open_store
from mechlab.artifacts import exists
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model

SITES = [SITE, "blocks.0.attn.hook_z", "blocks.1.attn.hook_k", "blocks.0.mlp.hook_pre", "hook_embed"]


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_bit_equal_to_the_slow_way(
    subject: Subject, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(harvest_module, "_SHARD_ROWS", draw.choice([64, 200, 1000]))
    sites = draw.sample(SITES, draw.randint(1, 3))
    settings = {
        "tokens": draw.choice([1, 137, 900]),
        "n_ctx": draw.choice([5, 16, 32]),
        "batch": draw.choice([1, 3, 8]),
        "select": Selection(
            bos=draw.random() < 0.5,
            special=draw.random() < 0.5,
            first=draw.choice([0, 0, 2]),
            last=draw.choice([None, 4]),
        ),
        "pack": draw.random() < 0.5,
        "bos": draw.choice(["each", "document", "none"]),
        "split": draw.choice(["train", "test"]),
    }
    made = harvest(subject, corpus, sites, tmp_path / "s", **settings)
    expected = naive_rows(subject, corpus, sites, **settings)
    assert made.n_rows == len(expected["tokens"]) > 0
    for name in ("tokens", "document", "context", "position"):
        assert torch.equal(made.column(name).long(), expected[name]), name
    for site in sites:
        assert torch.equal(made.activations(site), expected[site]), site
    made.artifact.verify()


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_formats_keep_what_they_say(subject: Subject, corpus: Corpus, tmp_path: Path, storage: str) -> None:
    exact = harvest(subject, corpus, SITE, tmp_path / "a", tokens=3000)
    made = harvest(subject, corpus, SITE, tmp_path / "b", tokens=3000, storage=storage)
    x, kept = exact.activations(SITE), made.activations(SITE)
    if storage == "int8":
        scale = x.abs().amax(-1, keepdim=True) / 127
        assert bool(((x - kept).abs() <= scale * 0.5001).all())
        assert kept.dtype == torch.float32
    else:
        assert torch.equal(kept, x.to(getattr(torch, storage)))
    error = (x - kept.float()).double().square().sum() / (x - x.mean(0)).double().square().sum()
    assert made.statistics(SITE)["storage_error"] == pytest.approx(float(error), rel=1e-4)
    assert exact.statistics(SITE)["storage_error"] == 0 < error
    small, large = (sum(f["bytes"] for f in s.artifact.manifest.files.values()) for s in (made, exact))
    assert small < large


def test_statistics_are_those_of_the_rows(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    made = harvest(subject, corpus, SITES, tmp_path / "s", tokens=5000)
    for site in SITES:
        x, found = made.activations(site).double(), made.statistics(site)
        torch.testing.assert_close(torch.tensor(found["mean"]).double(), x.mean(0), rtol=1e-5, atol=1e-5)
        variance = torch.tensor(found["variance"]).double()
        torch.testing.assert_close(variance, x.var(0, unbiased=False), rtol=1e-4, atol=1e-7)
        assert found["mean_norm"] == pytest.approx(float(x.norm(dim=-1).mean()), rel=1e-6)
        assert found["max"] == pytest.approx(float(x.abs().max()), rel=1e-6)
        assert found["massive_share"] == 0


@pytest.mark.parametrize("storage", FORMATS)
def test_massive_activations_are_counted(
    tiny_model: Path, corpus: Corpus, tmp_path: Path, storage: str
) -> None:
    loud = load_model(tiny_model)
    with torch.no_grad():
        loud.module.transformer.wte.weight[5].mul_(0.01)[7] = 5000.0  # the word "dog"
        # Large, but below a thousand times its median, which eight bits cannot hold.
        loud.module.transformer.wte.weight[4] = torch.tensor([0.5] * 15 + [400.0])  # the word "cat"
    made = harvest(loud, corpus, "hook_embed", tmp_path / "s", tokens=4000, storage=storage)
    assert 4 in made.column("tokens")
    dogs = int((made.column("tokens") == 5).sum())
    assert dogs > 0
    assert made.statistics("hook_embed")["massive_share"] == dogs / 4000
    assert made.statistics("hook_embed")["max"] == 5000


def test_a_head_has_one_name(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    made = harvest(subject, corpus, "blocks.0.attn.hook_z:02", tmp_path / "s", tokens=50)
    assert made.sites == ("blocks.0.attn.hook_z:2",)
    assert made.activations("blocks.0.attn.hook_z:2").shape == (50, 4)
    assert made.statistics("blocks.0.attn.hook_z:2")["max"] > 0


def test_tokens_without_an_embedding_are_named(tiny_model: Path, tmp_path: Path) -> None:
    small = load_model(tiny_model)
    small.tokenizer.add_tokens(["zebra"])
    (tmp_path / "c.jsonl").write_text('{"text": "the zebra sat"}\n' * 40)
    with pytest.raises(MechlabError, match="token has no embedding: 20 of 20"):
        harvest(
            small, open_corpus(tmp_path / "c.jsonl"), SITE, tmp_path / "s", tokens=9,
            select=Selection(special=False),
        )  # fmt: skip
    with pytest.raises(MechlabError, match="token has no embedding: 20 of 20"):
        activations(small, "the zebra sat", SITE, Selection(special=False))


def test_heads_and_their_concatenation(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    z, head = "blocks.0.attn.hook_z", "blocks.0.attn.hook_z:2"
    made = harvest(subject, corpus, [z, head], tmp_path / "s", tokens=500)
    assert made.activations(z).shape == (500, 16)
    assert torch.equal(made.activations(head), made.activations(z)[:, 8:12])


@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_an_exception_loses_no_finished_shard(
    subject: Subject, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr(harvest_module, "_SHARD_ROWS", 512)
    whole = harvest(subject, corpus, SITE, tmp_path / "whole", tokens=5000, batch=4)
    assert len(whole.shards) > 5

    class Stopped(Exception):
        pass

    started: list[int] = []

    def interrupt(done: int, total: int) -> None:
        started.append(done)
        if len(started) > 5 * stop_at:
            raise Stopped

    for _ in range(2):
        with pytest.raises(Stopped):
            harvest(subject, corpus, SITE, tmp_path / "s", tokens=5000, batch=4, progress=interrupt)
        last, started[:] = started[0], []
    if stop_at > 2:
        assert last > 0  # the second attempt went on from the first one's shards
    parts = harvest(subject, corpus, SITE, tmp_path / "s", tokens=5000, batch=4)
    assert parts.artifact.manifest.files == whole.artifact.manifest.files
    assert parts.artifact.manifest.fingerprint == whole.artifact.manifest.fingerprint
    assert parts.artifact.manifest.facts == whole.artifact.manifest.facts
    assert not any("shard writer" in thread.name for thread in threading.enumerate())


def test_called_again_it_does_nothing(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    first = harvest(subject, corpus, SITE, tmp_path / "s", tokens=100)
    times = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "s").iterdir()}
    again = harvest(subject, corpus, SITE, tmp_path / "s", tokens=100)
    assert again.artifact.manifest == first.artifact.manifest
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "s").iterdir()} == times


def test_a_corpus_that_ends_early_says_so(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"corpus ended after \d,\d{3} of 1,000,000 tokens"):
        made = harvest(subject, corpus, SITE, tmp_path / "s", tokens=10**6, split="test")
    texts = [d.text for d in corpus.documents("test")]
    assert made.n_rows == sum(len(text.split()) for text in texts)


def test_corrupt_rows_are_refused_or_counted(subject: Subject, tiny_corpus: Path, tmp_path: Path) -> None:
    lines = tiny_corpus.read_text().splitlines()
    lines[7:7] = ["{broken", '{"id": 3}']
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(MechlabError, match=r"line 8.*skip-corrupt"):
        harvest(subject, open_corpus(tmp_path / "bad.jsonl"), SITE, tmp_path / "s", tokens=2000)
    forgiving = open_corpus(tmp_path / "bad.jsonl", skip_corrupt=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [
            harvest(subject, forgiving, SITE, tmp_path / split, tokens=10**5, split=split)
            for split in ("train", "validation", "test")
        ]
    facts = [each.artifact.manifest.facts for each in made]
    assert sum(each["corrupt"] for each in facts) == 2
    named = [fault for each in facts for fault in each["faults"]]
    assert len(named) == 2
    assert any("line 8" in fault for fault in named)


def test_another_model_corpus_or_setting_is_refused_and_the_store_survives(
    subject: Subject, corpus: Corpus, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    made = harvest(subject, corpus, SITE, tmp_path / "s", tokens=100)
    other = load_model(tiny_model)
    with torch.no_grad():
        other.module.transformer.wte.weight[3] += 1
    with pytest.raises(MechlabError, match="made from another model"):
        harvest(other, corpus, SITE, tmp_path / "s", tokens=100)
    (tmp_path / "c.jsonl").write_text(tiny_corpus.read_text() + '{"text": "the cat"}\n')
    with pytest.raises(MechlabError, match="made from another corpus"):
        harvest(subject, open_corpus(tmp_path / "c.jsonl"), SITE, tmp_path / "s", tokens=100)
    changes = {"tokens": 200, "storage": "int8", "n_ctx": 8, "batch": 3, "pack": True, "bos": "none"}
    for name, value in changes.items():
        with pytest.raises(MechlabError, match=f"made with another {name}: "):
            harvest(subject, corpus, SITE, tmp_path / "s", **{"tokens": 100, name: value})
    assert open_store(tmp_path / "s").artifact.manifest == made.artifact.manifest


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_are_named_and_leave_no_store(
    corpus: Corpus, tiny_model: Path, tmp_path: Path, bad: float
) -> None:
    broken = load_model(tiny_model)
    with torch.no_grad():
        broken.module.transformer.wte.weight[5] = bad  # the word "dog"
    with pytest.raises(
        MechlabError, match=r"activations at .* are NaN or infinite: document \d+, position \d+"
    ) as error:
        harvest(broken, corpus, SITE, tmp_path / "s", tokens=1000)
    assert not exists(tmp_path / "s")
    document = int(str(error.value).split("document ")[1].split(",")[0])
    text = next(d.text for d in corpus.documents("train") if d.id == document)
    assert "dog" in text.split()


def test_values_too_large_for_float16_are_named(corpus: Corpus, tiny_model: Path, tmp_path: Path) -> None:
    loud = load_model(tiny_model)
    with torch.no_grad():
        loud.module.transformer.wte.weight[5, 0] = 1e5
    with pytest.raises(MechlabError, match=r"too large for float16: document .* bfloat16"):
        harvest(loud, corpus, "hook_embed", tmp_path / "s", tokens=1000, storage="float16")
    assert harvest(loud, corpus, "hook_embed", tmp_path / "t", tokens=1000, storage="bfloat16").n_rows == 1000


def test_mistakes(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    def fails(match: str, site: str | list[str] = SITE, **settings: object) -> None:
        with pytest.raises(MechlabError, match=match):
            harvest(subject, corpus, site, tmp_path / "s", **{"tokens": 10, **settings})
        assert not (tmp_path / "s").exists()

    fails("no site", "blocks.9.hook_resid_post")
    fails("cannot be stored: blocks.0.attn.hook_pattern", "blocks.0.attn.hook_pattern")
    fails("sites must be named once each", [SITE, SITE])
    fails("sites must be named once each: none", [])
    fails(r"context length is out of range: 64 \(between 2 and 32\)", n_ctx=64)
    fails("must be positive: 0", tokens=0)
    fails("batch must be positive: 0", batch=0)
    fails("unknown storage format: int4", storage="int4")
    fails("unknown split: tran", split="tran")
    fails("unknown BOS policy: all", bos="all")
    fails("no assistant turns.*column must hold chats", select=Selection(assistant=True))
    fails(r"first position is beyond the context: 32 \(below 32", select=Selection(first=32))
    fails("only BOS stands before the last position", select=Selection(last=1))
    fails("sites must be named once each", ["blocks.0.attn.hook_z:2", "blocks.0.attn.hook_z:02"])


def test_chats_that_the_template_refuses_are_corrupt_rows(tiny_model: Path, tmp_path: Path) -> None:
    talker = load_model(tiny_model)
    good = [{"role": "user", "content": "the cat sat"}, {"role": "assistant", "content": "a dog ran"}]
    refused = [[], [{"role": "wizard", "content": "it fell"}], [good[1]]]
    chats = [refused.pop() if i in (3, 20, 21) else good for i in range(40)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"chat": chat}) + "\n" for chat in chats))
    strict = open_corpus(tmp_path / "c.jsonl", column="chat")
    forgiving = open_corpus(tmp_path / "c.jsonl", column="chat", skip_corrupt=True)
    select = Selection(assistant=True)
    with pytest.raises(MechlabError, match="tokenizer has no chat template"):
        harvest(talker, forgiving, SITE, tmp_path / "s", tokens=9, select=select)
    talker.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'wizard' %}{{ raise_exception('no wizards') }}{% endif %}"
        "{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
    )
    with pytest.raises(MechlabError, match=r"c\.jsonl, row 3: .*or pass --skip-corrupt"):
        harvest(talker, strict, SITE, tmp_path / "s", tokens=10**4, select=select)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [
            harvest(talker, forgiving, SITE, tmp_path / split, tokens=10**4, split=split, select=select)
            for split in ("train", "validation", "test")
        ]
    facts = [each.artifact.manifest.facts for each in made]
    assert sum(each["corrupt"] for each in facts) == 3
    assert sum(len(each.column("document").unique()) for each in made) == 37
    faults = " ".join(fault for each in facts for fault in each["faults"])
    assert "row 3: chat opens with an assistant turn" in faults
    assert "row 20: chat template refuses the messages: no wizards" in faults


@pytest.mark.parametrize("tokens", [300, 700])
def test_shards_that_another_rank_wrote_elsewhere_are_missed(
    subject: Subject, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    class Apart(Ranks):
        """The first of two ranks, whose output directories are two."""

        def first_does(self, work: Callable[[], Any]) -> Any:
            return work()

        each_does = first_does

    monkeypatch.setattr(harvest_module, "_SHARD_ROWS", 400)
    monkeypatch.setattr(harvest_module, "together", lambda: contextlib.nullcontext(Apart(0, 2)))
    with pytest.raises(MechlabError, match="shards of other processes are not here"):
        harvest(subject, corpus, SITE, tmp_path / "s", tokens=tokens, batch=4)
    assert not exists(tmp_path / "s")
