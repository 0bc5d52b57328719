"""An index built from shards must equal one built at once, whatever comes between."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mechlab.artifacts import exists, open_artifact
from mechlab.errors import MechlabError
from mechlab.features import building, merging
from mechlab.features.building import IndexWriter, load_index
from mechlab.features.statistics import load_statistics, statistics_of
from mechlab.features.text import Text
from mechlab.features.vocabulary import Vocabulary
from mechlab_kernels.csr import build_csr

WORDS = Vocabulary(tuple(f" w{n}" for n in range(50)), {3: b"\xf0"})
PLAN = {"about": {"kind": "made up"}, "seed": 3, "inputs": {"dictionary": "abc"}}


def made(seed: int, rows: int, k: int, features: int):
    """A text in passages and codes with zeros."""
    rng = np.random.default_rng(seed)
    context = np.cumsum(rng.random(rows) < 0.1)
    text = Text(rng.integers(50, size=rows), context, np.arange(rows), context // 2, WORDS)
    values = rng.random((rows, k)).astype(np.float32)
    values[rng.random((rows, k)) < 0.4] = 0
    indices = np.argsort(rng.random((rows, features)), axis=1)[:, :k]
    return text, values, indices


def give(writer: IndexWriter, text: Text, values, indices, cuts=()) -> None:
    """Add the rows in portions."""
    edges = [0, *sorted(cuts), len(text)]
    for start, stop in itertools.pairwise(edges):
        writer.add(*columns(text.cut(start, stop)), values[start:stop], indices[start:stop])


def columns(text: Text):
    return text.tokens, text.context, text.position, text.document


def equal(index, text: Text, values, indices, features: int) -> None:
    indptr, row, value = build_csr(values, indices, features)
    assert np.array_equal(index.indptr, indptr)
    assert np.array_equal(index.row, row)
    assert np.array_equal(index.value, value)
    for ours, theirs in zip(columns(index.text), columns(text), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("rows", "k", "features", "shard"),
    [(0, 2, 3, 1), (1, 1, 1, 1), (20, 3, 9, 1), (40, 3, 9, 20), (700, 6, 30, 600), (700, 6, 30, 10**6)],
)
def test_shards_of_any_size_make_the_same_index(tmp_path, monkeypatch, seed, rows, k, features, shard):
    monkeypatch.setattr(building, "_SHARD", shard)
    monkeypatch.setattr(merging, "_BLOCK", 3 * shard)
    text, values, indices = made(seed, rows, k, features)
    cuts = np.random.default_rng(seed).integers(rows + 1, size=4).tolist()
    with IndexWriter(tmp_path / "i", WORDS, features, **PLAN) as writer:
        give(writer, text, values, indices, cuts)
        assert writer.rows == rows
        artifact = writer.finish()
    index = load_index(tmp_path / "i")
    equal(index, text, values, indices, features)
    assert index.text.vocabulary == WORDS
    assert index.about == {"kind": "made up"}
    assert artifact.manifest.facts == {"rows": rows, "entries": len(index.row), "live": len(index.live)}
    artifact.verify()
    assert not (tmp_path / "i" / ".partial").exists()
    kept, now = load_statistics(tmp_path / "i"), statistics_of(index)
    assert all(np.array_equal(a, b) for a, b in zip(vars(kept).values(), vars(now).values(), strict=True))


def test_same_bytes_whatever_the_shards(tmp_path, monkeypatch):
    text, values, indices = made(1, 300, 4, 20)
    found = []
    for number, shard in enumerate((40, 10**6)):
        monkeypatch.setattr(building, "_SHARD", shard)
        with IndexWriter(tmp_path / str(number), WORDS, 20, **PLAN) as writer:
            give(writer, text, values, indices, [100] * number)
            found.append(writer.finish().manifest)
    assert found[0].fingerprint == found[1].fingerprint


@pytest.mark.parametrize("shard", [70, 10**6])
def test_entries_in_any_order(tmp_path, monkeypatch, shard):
    monkeypatch.setattr(building, "_SHARD", shard)
    text, values, indices = made(2, 200, 5, 20)
    row, slot = np.nonzero(values >= 0)
    order = np.random.default_rng(0).permutation(len(row))
    row, slot = row[order], slot[order]
    with IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        for start, stop in ((0, 90), (90, 90), (90, 200)):
            here = (row >= start) & (row < stop)
            entries = row[here] - start, indices[row, slot][here], values[row, slot][here]
            writer.add_entries(*columns(text.cut(start, stop)), *entries)
        writer.finish()
    equal(load_index(tmp_path / "i"), text, values, indices, 20)


def test_codes_of_any_width(tmp_path):
    text, values, indices = made(2, 200, 5, 20)
    with IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        writer.add(*columns(text.cut(0, 80)), values[:80], indices[:80])
        wide = np.pad(values[80:150], ((0, 0), (0, 3))), np.pad(indices[80:150], ((0, 0), (0, 3)))
        writer.add(*columns(text.cut(80, 150)), *wide)
        writer.add(*columns(text.cut(150, 200)), np.zeros((50, 0), np.float32), np.zeros((50, 0), np.int64))
        writer.finish()
    values[150:] = 0
    equal(load_index(tmp_path / "i"), text, values, indices, 20)


def test_arrays_may_be_used_again(tmp_path):
    text, values, indices = made(2, 60, 5, 20)
    buffers = [np.empty_like(each[:20]) for each in (*columns(text), values, indices)]
    with IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        for start in range(0, 60, 20):
            for buffer, array in zip(buffers, (*columns(text), values, indices), strict=True):
                buffer[:] = array[start : start + 20]
            writer.add(*buffers)
        writer.finish()
    equal(load_index(tmp_path / "i"), text, values, indices, 20)


def test_large_numbers_of_contexts_and_documents(tmp_path):
    text, values, indices = made(2, 30, 2, 5)
    text = Text(text.tokens, text.context + 2**40, text.position, text.document, WORDS)
    with IndexWriter(tmp_path / "i", WORDS, 5, **PLAN) as writer:
        give(writer, text, values, indices)
        writer.finish()
    index = load_index(tmp_path / "i")
    equal(index, text, values, indices, 5)
    assert index.text.document.dtype == np.int32


@pytest.mark.parametrize("damage", ["nothing", "cut", "altered", "empty"])
def test_what_is_stored_is_found_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(building, "_SHARD", 60)
    text, values, indices = made(5, 300, 4, 20)
    with pytest.raises(RuntimeError), IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        give(writer, text.cut(0, 200), values[:200], indices[:200], [33, 150])
        raise RuntimeError("stopped")
    shards = sorted((tmp_path / "i" / ".partial").glob("shard-*"))
    assert len(shards) > 3
    if damage != "nothing":
        content = bytearray(shards[2].read_bytes())
        content[len(content) // 2] ^= 1
        shards[2].write_bytes({"cut": content[:-3], "altered": content, "empty": b""}[damage])
    with IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        stored = writer.rows
        assert 0 < stored <= 200
        assert writer.skip(stored // 2)
        assert not writer.skip(stored)
        rest = slice(stored // 2, None)
        give(writer, text.cut(stored // 2, 300), values[rest], indices[rest], [40])
        assert writer.rows == 300
        writer.finish()
    equal(load_index(tmp_path / "i"), text, values, indices, 20)


def test_rows_must_be_given_from_the_first_on(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_SHARD", 10)
    text, values, indices = made(5, 30, 4, 20)
    with pytest.raises(RuntimeError), IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        give(writer, text, values, indices)
        raise RuntimeError("stopped")
    with (
        pytest.raises(MechlabError, match="earlier attempt stored 30 rows"),
        IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer,
    ):
        give(writer, text.cut(0, 20), values[:20], indices[:20])
        writer.finish()


@pytest.mark.chaos
def test_a_killed_build_goes_on(tmp_path):
    program = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from features.test_building import PLAN, WORDS, IndexWriter, building, columns, give, made, merging
        building._SHARD = 200
        text, values, indices = made(5, 300, 4, 20)
        with IndexWriter(Path(sys.argv[1]), WORDS, 20, **PLAN) as writer:
            print(writer.rows, flush=True)
            give(writer, text, values, indices, range(0, 300, 10))
            if sys.argv[2] == "adding":
                os._exit(9)
            if sys.argv[2] == "merging":
                merging.summary_of = lambda *_: os._exit(9)
            writer.finish()
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def attempt(when: str) -> tuple[int, int]:
        command = [sys.executable, "-c", program, str(tmp_path / "i"), when]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, int(done.stdout)

    assert attempt("adding") == (9, 0)
    assert not exists(tmp_path / "i")
    code, rows = attempt("merging")
    assert code == 9
    assert rows > 200
    assert attempt("never")[0] == 0
    equal(load_index(tmp_path / "i"), *made(5, 300, 4, 20), 20)


def test_another_plan_is_refused(tmp_path):
    text, values, indices = made(5, 30, 4, 20)
    with IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        give(writer, text, values, indices)
        writer.finish()
    other = {**PLAN, "inputs": {"dictionary": "other"}}
    with (
        pytest.raises(MechlabError, match="another dictionary"),
        IndexWriter(tmp_path / "i", WORDS, 20, **other),
    ):
        pass
    with IndexWriter(tmp_path / "i", WORDS, 20, **other, overwrite=True) as writer:
        assert writer.finished is None
        give(writer, text, values[:, :2], indices[:, :2])
        writer.finish()
    equal(load_index(tmp_path / "i"), text, values[:, :2], indices[:, :2], 20)


def test_a_finished_index_takes_no_more(tmp_path):
    text, values, indices = made(5, 30, 4, 20)
    for _ in range(2):
        with IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
            give(writer, text, values, indices)
            assert writer.rows == 30
            writer.finish()
            with pytest.raises(MechlabError, match="finished"):
                give(writer, text, values, indices)


def wrong(change):
    text, values, indices = made(5, 30, 4, 20)
    arrays = {
        "values": values,
        "indices": indices,
        **dict(zip(("t", "c", "p", "d"), columns(text), strict=True)),
    }
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays)
    return arrays["t"], arrays["c"], arrays["p"], arrays["d"], arrays["values"], arrays["indices"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("values", np.nan, "not finite"),
        ("values", np.inf, "not finite"),
        ("values", -1.0, "negative"),
        ("indices", 20, "outside the dictionary"),
        ("indices", -1, "outside the dictionary"),
        ("t", 50, "outside the vocabulary"),
        ("t", -1, "outside the vocabulary"),
        ("p", -1, "position"),
    ],
)
def test_bad_rows_are_refused(tmp_path, name, value, said):
    def change(arrays):
        arrays["values"][7] = 1.0
        arrays[name].reshape(30, -1)[7, 0] = value

    with pytest.raises(MechlabError, match=said), IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        writer.add(*wrong(change))
    assert not (tmp_path / "i").exists()


def test_a_feature_twice_on_a_row_is_refused(tmp_path):
    def change(arrays):
        arrays["values"][7], arrays["indices"][7] = 1.0, 5

    with pytest.raises(MechlabError, match="twice"), IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        writer.add(*wrong(change))
        writer.finish()
    assert not exists(tmp_path / "i")


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    text, values, indices = made(5, 30, 4, 20)
    t, c, p, d = columns(text)
    row, one = np.zeros(1, np.int64), np.ones(1, np.float32)
    with IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        for bad in ((t, c, p, d[:9], values, indices), (t, c, p, d, values[:9], indices[:9])):
            with pytest.raises((MechlabError, TypeError)):
                writer.add(*bad)
        for bad in (row - 1, row + 30):
            with pytest.raises(MechlabError, match="do not fit the rows"):
                writer.add_entries(t, c, p, d, bad, row, one)
    with pytest.raises(MechlabError, match="not open"):
        IndexWriter(tmp_path / "j", WORDS, 20, **PLAN).add(t, c, p, d, values, indices)


def test_a_full_disk(tmp_path):
    text, values, indices = made(5, 3000, 4, 20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with (
            pytest.raises(MechlabError, match="no room on disk"),
            IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer,
        ):
            give(writer, text, values, indices)
            writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert not exists(tmp_path / "i")


@pytest.mark.parametrize("name", ["row.npy", "indptr.npy", "tokens.npy", "vocabulary.json"])
def test_damaged_files_are_named(tmp_path, name):
    text, values, indices = made(5, 300, 4, 20)
    with IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        give(writer, text, values, indices)
        writer.finish()
    path = tmp_path / "i" / name
    content = path.read_bytes()
    path.write_bytes(b"\xff" * 20 + content[20:])
    with pytest.raises(MechlabError, match=name.replace(".", r"\.")):
        load_index(tmp_path / "i")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MechlabError, match="checksum"):
        open_artifact(tmp_path / "i").verify()
    path.write_bytes(content[:-8])
    with pytest.raises(MechlabError, match="cut short"):
        load_index(tmp_path / "i")


def test_damaged_pointers_are_found(tmp_path):
    text, values, indices = made(5, 300, 4, 20)
    with IndexWriter(tmp_path / "i", WORDS, 20, **PLAN) as writer:
        give(writer, text, values, indices)
        writer.finish()
    pointers = np.load(tmp_path / "i" / "indptr.npy", mmap_mode="r+")
    pointers[7] = 10**9
    pointers.flush()
    with pytest.raises(MechlabError, match="indptr"):
        load_index(tmp_path / "i")


def test_no_index_here(tmp_path):
    with pytest.raises(MechlabError, match="no feature-index here"):
        load_index(tmp_path)
