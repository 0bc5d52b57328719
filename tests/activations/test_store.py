"""Reading stores, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors import safe_open
from slow_way import SITE

from mechlab.activations.harvest import harvest
from mechlab.activations.store import open_store, read_journals
from mechlab.data.corpus import Corpus
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model


def test_contexts_are_kept_whole(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    made = harvest(subject, corpus, SITE, tmp_path / "s", tokens=700, n_ctx=8)
    context, position, tokens = (made.column(name) for name in ("context", "position", "tokens"))
    whole = torch.cat([shard.contexts() for shard in made.shards])
    assert torch.equal(whole[context.long(), position.long()], tokens)
    assert set(whole[:, 0].tolist()) == {subject.bos}
    assert made.artifact.manifest.facts["contexts"] == len(whole)


def test_any_safetensors_reader_opens_a_shard(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    made = harvest(subject, corpus, SITE, tmp_path / "s", tokens=301, storage="int8")
    with safe_open(str(made.shards[0].path), framework="np") as shard:
        values, scale = shard.get_tensor(SITE), shard.get_tensor(f"{SITE}.scale")
    assert torch.equal(torch.from_numpy(values * scale[:, None]), made.activations(SITE))


def test_part_of_a_shard(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    for storage in ("float32", "int8"):
        made = harvest(subject, corpus, SITE, tmp_path / storage, tokens=301, storage=storage)
        assert torch.equal(made.shards[0].values(SITE, 17, 40), made.activations(SITE)[17:40])


def test_torn_journal_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "journal-0.jsonl").write_text('\n{"number": 1}\n\n{"number": 2, "na')
    (tmp_path / "journal-1.jsonl").write_bytes(b'\n{"number": 0}\n\n\xff\xfe{"nu\n{"number": 3}\n')
    assert [entry["number"] for entry in read_journals(tmp_path)] == [0, 1, 3]


@pytest.mark.parametrize("remade_by", [0, 1])
def test_of_two_journals_the_one_that_tells_of_the_file_counts(tmp_path: Path, remade_by: int) -> None:
    """A damaged shard was made again by another rank, and came out differently."""
    (tmp_path / "s").write_bytes(b"new")
    for journal, content in ((remade_by, b"new"), (1 - remade_by, b"old")):
        entry = {"number": 0, "name": "s", "bytes": 3, "xxh3_128": xxhash.xxh3_128(content).hexdigest()}
        (tmp_path / f"journal-{journal}.jsonl").write_text(f"\n{json.dumps(entry)}\n")
    (entry,) = read_journals(tmp_path)
    assert entry["xxh3_128"] == xxhash.xxh3_128(b"new").hexdigest()


def test_mistakes(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    made = harvest(subject, corpus, SITE, tmp_path / "s", tokens=10)
    with pytest.raises(MechlabError, match="does not hold the site"):
        made.activations("hook_embed")
    with pytest.raises(MechlabError, match="does not hold the site"):
        made.statistics("hook_embed")
    with pytest.raises(MechlabError, match="no column: word"):
        made.column("word")
    with pytest.raises(MechlabError, match="no activations here"):
        open_store(tmp_path / "nothing")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_harvest_on_a_gpu(tiny_model: Path, corpus: Corpus, tmp_path: Path) -> None:
    on_gpu = load_model(tiny_model, device="cuda")
    made = harvest(on_gpu, corpus, SITE, tmp_path / "s", tokens=5000)
    on_cpu = harvest(load_model(tiny_model, device="cpu"), corpus, SITE, tmp_path / "c", tokens=5000)
    torch.testing.assert_close(made.activations(SITE), on_cpu.activations(SITE), atol=1e-3, rtol=1e-3)
    assert torch.equal(made.column("tokens"), on_cpu.column("tokens"))
