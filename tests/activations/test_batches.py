"""Shuffled batches: every row once, the right values, mixed, and resumed anywhere."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from slow_way import SITE

from mechlab.activations import gather
from mechlab.activations.batch import Batch, Mixing, mixing
from mechlab.activations.batches import shuffled
from mechlab.activations.harvest import harvest
from mechlab.activations.live import Chunk, LiveSource, live
from mechlab.activations.store import Store
from mechlab.data.corpus import Corpus
from mechlab.errors import MechlabError
from mechlab.models.subject import Subject

SITES = [SITE, "blocks.0.attn.hook_z"]


@pytest.fixture(scope="module")
def store(subject: Subject, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechlab.activations.harvest._SHARD_ROWS", 1000)
        return harvest(subject, corpus, SITES, tmp_path_factory.mktemp("store") / "s", tokens=6000)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_RUN_BYTES", 16 * 8 * 37)


def source_of(kind: str, store: Store, subject: Subject, corpus: Corpus) -> Store | LiveSource:
    return store if kind == "store" else live(subject, corpus, SITES, batch=7)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.row, y.row)
        and torch.equal(x.document, y.document)
        and all(torch.equal(x[site], y[site]) for site in SITES)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("seed", range(4))
def test_every_row_once_an_epoch_with_its_own_values(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    size, buffer, epochs = draw.choice([1, 64, 100]), draw.choice([1, 500, 10**5]), draw.choice([1, 3])
    with shuffled(store, batch_size=size, buffer=buffer, seed=seed, epochs=epochs) as batches:
        found = list(batches)
    short = [i for i, batch in enumerate(found) if len(batch) != size]
    assert len(short) <= epochs  # the last of an epoch
    assert len(found) == epochs * -(-6000 // size)
    rows = torch.cat([batch.row for batch in found])
    assert torch.equal(rows.bincount(), torch.full((6000,), epochs))
    assert torch.equal(torch.cat([batch.document for batch in found]), store.column("document")[rows])
    for site in SITES:
        assert torch.equal(torch.cat([batch[site] for batch in found]), store.activations(site)[rows])


def test_a_live_model_gives_the_rows_that_a_harvest_stores(
    store: Store, subject: Subject, corpus: Corpus
) -> None:
    found = []
    with shuffled(live(subject, corpus, SITES), batch_size=128, buffer=1024, seed=3) as batches:
        for batch in batches:
            found.append(batch)
    rows = torch.cat([batch.row for batch in found])
    assert torch.equal(rows.sort().values, torch.arange(len(rows)))
    stored = rows < 6000
    for site in SITES:
        values = torch.cat([batch[site] for batch in found])[stored]
        assert torch.equal(values, store.activations(site)[rows[stored]])


@pytest.mark.parametrize("kind", ["store", "live"])
@pytest.mark.parametrize("seed", range(3))
def test_resumed_anywhere_the_next_batches_are_the_same(
    store: Store, subject: Subject, corpus: Corpus, kind: str, seed: int
) -> None:
    draw = random.Random(seed)
    settings = {
        "batch_size": draw.choice([32, 100]),
        "buffer": draw.choice([200, 1500]),
        "seed": seed,
        "epochs": draw.choice([1, 2]),
    }
    with shuffled(source_of(kind, store, subject, corpus), **settings) as batches:
        states, whole = [batches.state()], []
        for batch in batches:
            whole.append(batch)
            states.append(batches.state())
    for at in [*draw.sample(range(len(states)), 6), 0, 1, len(whole) - 1, len(whole)]:
        with shuffled(source_of(kind, store, subject, corpus), **settings, state=states[at]) as resumed:
            assert same(list(resumed), whole[at:]), at


def test_states_are_small_and_can_be_saved(
    store: Store, subject: Subject, corpus: Corpus, tmp_path: Path
) -> None:
    for source in (store, live(subject, corpus, SITES, batch=7)):
        settings = {"batch_size": 64, "buffer": 640, "epochs": None}
        with shuffled(source, **settings) as batches:
            for _ in range(23):
                next(batches)
            torch.save(batches.state(), tmp_path / "state.pt")
            expected = [next(batches) for _ in range(230)]  # over the end of an epoch
        assert (tmp_path / "state.pt").stat().st_size < 30_000
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        with shuffled(source, **settings, state=state) as resumed:
            assert same([next(resumed) for _ in range(230)], expected)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_stored_formats_come_out_as_the_store_reads_them(
    subject: Subject, corpus: Corpus, tmp_path: Path, storage: str
) -> None:
    made = harvest(subject, corpus, SITES, tmp_path / "s", tokens=2000, storage=storage)
    with shuffled(made, batch_size=300, buffer=700, sites=SITES[:1]) as batches:
        for batch in batches:
            assert list(batch.values) == SITES[:1]
            assert torch.equal(batch[SITE], made.activations(SITE)[batch.row])


def test_a_store_is_mixed_within_a_window_of_random_runs(store: Store) -> None:
    with shuffled(store, batch_size=100, buffer=3000, seed=1) as batches:
        windows = list(batches)
    measured = mixing(windows)
    assert measured.document_share < 0.15
    # 3,000 rows drawn as runs of 37 from all over 6,000; neighbours come from one shard of 1,000.
    assert measured.neighbour_distance > 200
    first = torch.cat([batch.row for batch in windows[:30]])
    assert len((first // 37).unique()) >= 3000 // 37


def test_the_seed_decides(store: Store) -> None:
    def first(seed: int) -> torch.Tensor:
        with shuffled(store, batch_size=64, buffer=1000, seed=seed) as batches:
            return next(batches).row

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_epochs_differ(store: Store) -> None:
    with shuffled(store, batch_size=3000, buffer=6000, epochs=2) as batches:
        found = list(batches)
    assert not torch.equal(found[0].row, found[2].row)


class Ordered:
    """A source whose rows come in order, ten a chunk, eighty a document."""

    sites = (SITE,)
    device = torch.device("cpu")

    def __init__(self, rows: int) -> None:
        self.rows, self.given = rows, 0

    def identity(self) -> str:
        return "ordered"

    def chunks(self, place: dict | None = None) -> Iterator[Chunk]:
        for first in range(0, self.rows, 10):
            row = torch.arange(first, first + 10)
            self.given += 10
            yield Chunk({SITE: row[:, None].float()}, row, row // 80, {})


def test_a_full_buffer_mixes_as_well_as_chance() -> None:
    with shuffled(Ordered(20_000), batch_size=100, buffer=4000) as batches:
        found = list(batches)
    measured = mixing(found[20:160])  # the ring is full from the start to the drain
    # Rows of a batch are drawn from a window of about `buffer` rows: a third of it apart on average.
    assert measured.neighbour_distance == pytest.approx(4000 / 3, rel=0.1)
    assert measured.document_share < 0.09
    plain = [Batch({}, torch.arange(i, i + 100), torch.arange(i, i + 100) // 80) for i in range(0, 4000, 100)]
    unmixed = mixing(plain)
    assert unmixed.neighbour_distance == 1
    assert unmixed.document_share >= 0.6
    assert isinstance(unmixed, Mixing)


def test_the_source_is_read_no_further_than_needed() -> None:
    source = Ordered(20_000)
    with shuffled(source, batch_size=100, buffer=1000) as batches:
        next(batches)
        assert source.given <= 1000 + 100 + 30


def test_closing_stops_the_thread_and_removes_the_hooks(subject: Subject, corpus: Corpus) -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.module.modules())

    threads, hooked = set(threading.enumerate()), hooks()
    with shuffled(live(subject, corpus, SITES), batch_size=64, buffer=256) as batches:
        next(batches)
    assert set(threading.enumerate()) <= threads
    assert hooks() == hooked


def test_the_model_can_be_used_meanwhile(subject: Subject, corpus: Corpus) -> None:
    """Another thread's forwards neither end early nor enter the batches."""
    tokens = torch.randint(3, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = subject.logits(tokens)
    with shuffled(live(subject, corpus, SITES, batch=4), batch_size=64, buffer=256) as batches:
        alone = list(batches)
    with shuffled(live(subject, corpus, SITES, batch=4), batch_size=64, buffer=256) as batches:
        together = []
        for batch in batches:
            together.append(batch)
            assert torch.equal(subject.logits(tokens), expected)
    assert same(alone, together)


def test_an_error_of_the_source_reaches_the_reader(subject: Subject, tmp_path: Path) -> None:
    from mechlab.data.corpus import open_corpus

    (tmp_path / "a.jsonl").write_text('{"text": "the cat sat on a mat ."}\n' * 200 + "{broken\n")
    with (
        shuffled(live(subject, open_corpus(tmp_path / "a.jsonl"), SITES), batch_size=8, buffer=64) as batches,
        pytest.raises(MechlabError, match="line 201"),
    ):
        list(batches)


def test_mistakes(store: Store) -> None:
    for name in ("batch_size", "buffer", "epochs"):
        with pytest.raises(MechlabError, match=f"{name} must be positive: 0"):
            shuffled(store, **{name: 0})
    with pytest.raises(MechlabError, match="does not hold the site"):
        shuffled(store, sites=["hook_embed"])
    with shuffled(store, batch_size=64) as batches:
        state = batches.state()
    with pytest.raises(MechlabError, match="belongs to other data or settings"):
        shuffled(store, batch_size=32, state=state)
    with pytest.raises(MechlabError, match="no batch to measure"):
        mixing([])
