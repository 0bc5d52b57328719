"""Stores on disk: rows equal to a direct capture, resumed bit-exactly, and refusals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mechlab.activations import store as store_module
from mechlab.activations.capture import activations
from mechlab.activations.store import harvest, open_store
from mechlab.artifacts import exists
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return open_corpus(tiny_corpus)


def test_rows_equal_direct_capture_without_bos(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    sites = [SITE, "blocks.0.attn.hook_z"]
    made = harvest(subject, corpus, sites, tmp_path / "s", tokens=10**6, split="test")
    texts = {d.id: d.text for d in corpus.documents("test")}
    tokens, document, position = (made.column(c) for c in ("tokens", "document", "position"))
    assert made.n_rows == len(tokens) == sum(len(t.split()) for t in texts.values())
    assert 2 not in tokens
    assert position.min() == 1
    for number in list(texts)[:5]:
        rows = document == number
        direct = activations(subject, " ".join(texts[number].split()[:31]), sites)
        for site in sites:
            want = direct[site][0, 1:].flatten(1)
            torch.testing.assert_close(made.activations(site)[rows][: len(want)], want, atol=1e-5, rtol=1e-5)


def test_contexts_are_numbered_without_mixing_documents(
    subject: Subject, corpus: Corpus, tmp_path: Path
) -> None:
    made = harvest(subject, corpus, SITE, tmp_path / "s", tokens=3000, n_ctx=8)
    context, document, position = (made.column(c) for c in ("context", "document", "position"))
    assert made.n_rows == 3000
    for number in context.unique():
        rows = context == number
        assert len(document[rows].unique()) == 1
        assert position[rows].tolist() == list(range(1, int(rows.sum()) + 1))


def test_shard_size_and_resume_change_no_byte(
    subject: Subject, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_BATCHES_PER_SHARD", 2)
    whole = harvest(subject, corpus, SITE, tmp_path / "whole", tokens=5000)
    assert len(whole.artifact.manifest.files) > 2

    class Stopped(Exception):
        pass

    for stop_at in (1, 2):
        seen = 0

        def interrupt(done: int, total: int, stop_at: int = stop_at) -> None:
            nonlocal seen
            seen += 1
            if seen == stop_at:
                raise Stopped

        with pytest.raises(Stopped):
            harvest(subject, corpus, SITE, tmp_path / "parts", tokens=5000, progress=interrupt)
    parts = harvest(subject, corpus, SITE, tmp_path / "parts", tokens=5000)
    assert parts.artifact.manifest.files == whole.artifact.manifest.files
    assert parts.artifact.manifest.fingerprint == whole.artifact.manifest.fingerprint


HARVEST = """
import sys
from mechlab.activations import store
from mechlab.data.corpus import open_corpus
from mechlab.models.subject import load_model
store._BATCHES_PER_SHARD = 1
subject = load_model(sys.argv[1])
corpus = open_corpus(sys.argv[2])
print("ready", flush=True)
store.harvest(subject, corpus, "blocks.1.hook_resid_post", sys.argv[3], tokens=8000)
"""


@pytest.mark.chaos
def test_killed_harvests_end_with_the_same_bytes(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HARVEST, str(tiny_model), str(tiny_corpus)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    for i in range(5):
        child = subprocess.Popen([*command, str(tmp_path / "parts")], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05 + 0.05 * i)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([*command, str(tmp_path / "parts")], check=True, capture_output=True)
    whole, parts = open_store(tmp_path / "whole"), open_store(tmp_path / "parts")
    parts.artifact.verify()
    assert parts.artifact.manifest.fingerprint == whole.artifact.manifest.fingerprint


def test_another_model_is_refused_and_the_store_survives(
    subject: Subject, corpus: Corpus, tiny_model: Path, tmp_path: Path
) -> None:
    harvest(subject, corpus, SITE, tmp_path / "s", tokens=100)
    other = load_model(tiny_model)
    with torch.no_grad():
        other.module.transformer.wte.weight[3] += 1
    with pytest.raises(MechlabError, match="made from another model"):
        harvest(other, corpus, SITE, tmp_path / "s", tokens=100)
    assert open_store(tmp_path / "s").n_rows == 100
    with pytest.raises(MechlabError, match="another tokens: 100, not 200"):
        harvest(subject, corpus, SITE, tmp_path / "s", tokens=200)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_are_named_and_leave_no_store(
    corpus: Corpus, tiny_model: Path, tmp_path: Path, bad: float
) -> None:
    broken = load_model(tiny_model)
    with torch.no_grad():
        broken.module.transformer.wte.weight[5] = bad  # the word "dog"
    with pytest.raises(
        MechlabError, match=r"activations at .* are NaN or infinite: document \d+, position \d+"
    ):
        harvest(broken, corpus, SITE, tmp_path / "s", tokens=1000)
    assert not exists(tmp_path / "s")


def test_mistakes(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="no site"):
        harvest(subject, corpus, "blocks.9.hook_resid_post", tmp_path / "s", tokens=10)
    with pytest.raises(MechlabError, match=r"context length is out of range: 64 \(between 2 and 32\)"):
        harvest(subject, corpus, SITE, tmp_path / "s", tokens=10, n_ctx=64)
    with pytest.raises(MechlabError, match="must be positive: 0"):
        harvest(subject, corpus, SITE, tmp_path / "s", tokens=0)
    made = harvest(subject, corpus, SITE, tmp_path / "s", tokens=10)
    with pytest.raises(MechlabError, match="does not hold the site"):
        made.activations("hook_embed")
    with pytest.raises(MechlabError, match="no column"):
        made.column("text")
    with pytest.raises(MechlabError, match="no activations here"):
        open_store(tmp_path / "none")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_harvest_on_a_gpu(corpus: Corpus, tiny_model: Path, subject: Subject, tmp_path: Path) -> None:
    on_card = load_model(tiny_model, device="cuda", dtype="float32")
    made = harvest(on_card, corpus, SITE, tmp_path / "gpu", tokens=500)
    here = harvest(subject, corpus, SITE, tmp_path / "cpu", tokens=500)
    torch.testing.assert_close(made.activations(SITE), here.activations(SITE), atol=1e-3, rtol=1e-3)
