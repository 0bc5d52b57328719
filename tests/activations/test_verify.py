"""Damage to a store is found, named and repaired; a changed model is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from slow_way import SITE

from mechlab.activations.harvest import harvest
from mechlab.activations.repair import damaged_store, repair
from mechlab.activations.selection import Selection
from mechlab.activations.storage import FORMATS
from mechlab.activations.store import Store, open_store
from mechlab.activations.verify import verify
from mechlab.data.corpus import Corpus, open_corpus
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject, load_model

SITES = [SITE, "blocks.0.attn.hook_q"]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechlab.activations.harvest._SHARD_ROWS", 600)


@pytest.fixture
def store(subject: Subject, corpus: Corpus, tmp_path: Path, small_shards: None) -> Store:
    return harvest(subject, corpus, SITES, tmp_path / "s", tokens=3001, batch=5, bos="document", pack=True)


def contents(store: Store) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(store.artifact.path.iterdir()) if f.is_file()}


@pytest.mark.parametrize("storage", FORMATS)
def test_a_sound_store_passes(subject: Subject, corpus: Corpus, tmp_path: Path, storage: str) -> None:
    made = harvest(subject, corpus, SITES, tmp_path / "s", tokens=2000, storage=storage, batch=9)
    found = verify(made, subject, batches=20)
    assert found.passed
    assert found.rows == 2000
    assert found.shards == len(made.shards)
    if storage == "float32":
        assert found.equal == 1.0
        assert set(found.difference.values()) == {0.0}
    else:
        assert 0 < max(found.difference.values()) <= found.tolerance


def test_selected_rows_are_verified_too(subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
    select = Selection(first=3, last=9)
    made = harvest(subject, corpus, SITES, tmp_path / "s", tokens=500, select=select, batch=4)
    found = verify(made, subject, batches=1000)
    assert (found.rows, found.equal) == (500, 1.0)


def test_values_that_the_model_does_not_give_are_found(subject: Subject, store: Store) -> None:
    """A store whose checksums are right but whose values are not: another model's, say."""
    raw = store.shards[0].raw(SITE)
    assert raw.shape[1] == 16
    file = store.shards[0].path
    content = bytearray(file.read_bytes())
    # The last byte of a little-endian float32 holds the sign and most of the exponent.
    at = content.find(raw[4, 3].numpy().tobytes())
    content[at + 3] ^= 0x80
    file.write_bytes(content)
    manifest = store.artifact.path / "manifest.json"
    fields = json.loads(manifest.read_text())

    import xxhash

    fields["files"][file.name]["xxh3_128"] = xxhash.xxh3_128(file.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(fields))
    found = verify(open_store(store.artifact.path), subject, batches=1000)
    assert not found.passed
    assert found.equal < 1
    assert found.difference[SITE] > found.tolerance


def damage(store: Store, how: str) -> Path:
    file = store.shards[2].path
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "header":
        content = bytearray(file.read_bytes())
        content[:8] = b"\xff" * 8
        file.write_bytes(content)
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    return file


@pytest.mark.parametrize("how", ["deleted", "truncated", "empty", "header", "flipped"])
def test_a_damaged_shard_is_named_and_made_again(
    subject: Subject, corpus: Corpus, store: Store, how: str
) -> None:
    before = contents(store)
    file = damage(store, how)
    if how in ("deleted", "truncated", "empty"):
        with pytest.raises(MechlabError, match=f"missing or cut short.*{file.name}"):
            open_store(store.artifact.path)
    else:
        with pytest.raises(MechlabError, match=f"1 of {len(store.shards)} shards .*{file.name}.*--repair"):
            verify(open_store(store.artifact.path), subject)
    if how == "header":
        with pytest.raises(MechlabError, match="shard cannot be read"):
            open_store(store.artifact.path).activations(SITE)
    assert repair(damaged_store(store.artifact.path), subject, corpus) == [file.name]
    assert contents(store) == before
    assert sorted(f.name for f in store.artifact.path.iterdir()) == sorted(before)
    assert verify(open_store(store.artifact.path), subject).passed


@pytest.fixture
def sparse(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Corpus]:
    """A store of three batches a shard, most of which hold no row."""
    monkeypatch.setattr("mechlab.activations.harvest._SHARD_ROWS", 400)
    texts = ["the cat sat on the mat" * (4 if i % 17 == 5 else 1) for i in range(90)]
    data = tmp_path / "sparse.jsonl"
    data.write_text("".join(json.dumps({"text": text.replace("mat", "mat ")}) + "\n" for text in texts))
    corpus = open_corpus(data)
    with pytest.warns(UserWarning, match="corpus ended"):
        made = harvest(
            subject, corpus, SITE, tmp_path / "s", tokens=10**6, batch=4, select=Selection(first=10)
        )
    rows = [shard.rows for shard in made.shards]
    assert 0 in rows
    assert any(rows)
    assert {shard.entry["contexts"] for shard in made.shards[:-1]} == {12}
    return made, corpus


def test_shards_are_repaired_whose_last_batches_hold_no_row(
    subject: Subject, sparse: tuple[Store, Corpus]
) -> None:
    store, corpus = sparse
    before = contents(store)
    for shard in store.shards:
        shard.path.unlink()
    assert len(repair(damaged_store(store.artifact.path), subject, corpus)) == len(store.shards)
    assert contents(store) == before


@pytest.mark.parametrize("seed", range(4))
def test_batches_without_rows_are_no_evidence(
    subject: Subject, sparse: tuple[Store, Corpus], seed: int
) -> None:
    found = verify(sparse[0], subject, batches=1, seed=seed)
    assert found.rows > 0
    assert found.equal == 1


def test_nan_is_a_difference(subject: Subject, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        broken = load_model(subject.name)
        broken.module.transformer.wte.weight[4] = torch.nan  # as if this machine computed NaN
    monkeypatch.setitem(broken.__dict__, "fingerprint", subject.fingerprint)
    found = verify(store, broken, batches=1000)
    assert not found.passed
    assert found.difference[SITE] == torch.inf


@pytest.mark.parametrize("how", ["deleted", "flipped"])
def test_a_lost_list_of_shards_is_named(subject: Subject, corpus: Corpus, store: Store, how: str) -> None:
    file = store.artifact.path / "shards.jsonl"
    if how == "deleted":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(MechlabError, match=r"list of shards is lost.*harvest again"):
            verify(open_store(store.artifact.path), subject)
    with pytest.raises(MechlabError, match=r"list of shards is lost.*harvest again"):
        repair(damaged_store(store.artifact.path), subject, corpus)


def test_all_shards_lost_and_made_again(subject: Subject, corpus: Corpus, store: Store) -> None:
    before = contents(store)
    for shard in store.shards:
        shard.path.unlink()
    assert len(repair(damaged_store(store.artifact.path), subject, corpus)) == len(store.shards)
    assert contents(store) == before


def test_nothing_to_repair(subject: Subject, corpus: Corpus, store: Store) -> None:
    assert repair(damaged_store(store.artifact.path), subject, corpus) == []


def test_another_model_or_corpus_repairs_nothing(
    subject: Subject, corpus: Corpus, store: Store, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    file = damage(store, "flipped")
    broken = file.read_bytes()
    other = load_model(tiny_model)
    with torch.no_grad():
        other.module.transformer.h[1].mlp.c_fc.weight[0, 0] += 1
    (tmp_path / "c.jsonl").write_text(tiny_corpus.read_text() + '{"text": "the cat"}\n')
    with pytest.raises(MechlabError, match="made from another model"):
        repair(damaged_store(store.artifact.path), other, corpus)
    with pytest.raises(MechlabError, match="made from another model"):
        verify(store, other)
    with pytest.raises(MechlabError, match="made from another corpus"):
        repair(damaged_store(store.artifact.path), subject, open_corpus(tmp_path / "c.jsonl"))
    assert file.read_bytes() == broken


def test_a_shard_that_comes_out_differently_is_not_put_in_place(
    subject: Subject, corpus: Corpus, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = damage(store, "deleted")
    fingerprint = subject.fingerprint
    other = load_model(subject.name)
    with torch.no_grad():
        other.module.transformer.wte.weight[4, 0] += 1e-3  # as if this machine rounded otherwise
    object.__setattr__(other, "fingerprint", fingerprint)
    with pytest.raises(MechlabError, match=f"came out differently.*{file.name}"):
        repair(damaged_store(store.artifact.path), other, corpus)
    assert not file.exists()
    assert not (store.artifact.path / ".repair").exists()
