"""Real processes: killed, crowded out of the disk, racing each other, and sharing the work."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.process
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import kill_target
import pytest
import torch
from slow_way import SITE

from mechlab.activations.store import open_store
from mechlab.artifacts import exists
from mechlab.cli.main import main
from tiny import WORDS

# Small shards, so that a kill can fall anywhere; everything else as the command does it.
PROGRAM = """
import sys
from mechlab.activations import harvest
harvest._SHARD_ROWS = 128
from mechlab.cli.main import main
print("ready", file=sys.stderr, flush=True)
main(sys.argv[1:])
"""


def words(model: Path, corpus: Path, out: Path, tokens: int = 8000, *more: str) -> list[str]:
    sites = f"{SITE},blocks.0.attn.hook_z"
    return [
        "activations", "harvest", "--model", str(model), "--data", str(corpus), "--out", str(out),
        "--sites", sites, "--tokens", str(tokens), "--batch", "4", "--device", "cpu", *more,
    ]  # fmt: skip


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)


def kill_after(shards: int, arguments: list[str]) -> None:
    """Start the command and kill it once it has written so many shards."""
    work = Path(arguments[arguments.index("--out") + 1]) / ".partial"
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while len(list(work.glob("shard-*"))) < shards:
        time.sleep(0.002)
        assert child.poll() is None
    child.kill()
    child.wait()


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed harvest."""
    out = tmp_path_factory.mktemp("whole") / "s"
    done = run(words(tiny_model, tiny_corpus, out))
    assert done.returncode == 0, done.stderr
    return out


def test_the_command(whole: Path) -> None:
    store = open_store(whole)
    assert store.n_rows == 8000
    assert len(store.shards) > 50
    store.artifact.verify()


@pytest.mark.chaos
def test_twenty_kills_at_random_moments_change_no_byte(tiny_model: Path, tmp_path: Path) -> None:
    draw, seen = random.Random(0), [0]
    lines = [" ".join(draw.choices(WORDS[3:], k=draw.randint(10, 60))) for _ in range(4000)]
    (tmp_path / "c.txt").write_text("\n\n".join(lines))
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["kill_target", "transformers.models.gpt2.modeling_gpt2"])

    def start(out: Path) -> multiprocessing.process.BaseProcess:
        arguments = words(tiny_model, tmp_path / "c.txt", out, 60_000)
        child = forks.Process(target=kill_target.harvest, args=(arguments, tmp_path / "log"))
        child.start()
        return child

    child, out, kills = start(tmp_path / "whole"), tmp_path / "s", 0
    child.join()
    assert child.exitcode == 0, (tmp_path / "log").read_text()
    for _ in range(100):
        child = start(out)
        work = out / ".partial"
        while child.is_alive() and len(list(work.glob("shard-*"))) <= seen[-1]:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.1))
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        seen.append(len(list(work.glob("shard-*"))))
        if kills >= 20 and exists(out):
            break
        if exists(out):  # it got to the end: begin again
            shutil.rmtree(out)
    assert kills >= 20
    assert any(0 < a < b for a, b in itertools.pairwise(seen))  # some went on from others' work
    child = start(out)
    child.join()
    assert child.exitcode == 0, (tmp_path / "log").read_text()
    expected, found = open_store(tmp_path / "whole"), open_store(out)
    found.artifact.verify()
    assert found.artifact.manifest.fingerprint == expected.artifact.manifest.fingerprint
    assert found.artifact.manifest.facts == expected.artifact.manifest.facts


@pytest.mark.slow
def test_broken_shards_of_an_unfinished_harvest_are_made_again(
    whole: Path, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    kill_after(8, words(tiny_model, tiny_corpus, out))
    shards = sorted((out / ".partial").glob("shard-*"))[:6]
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    shards[3].unlink()
    flipped = bytearray(shards[5].read_bytes())
    flipped[-7] ^= 1
    shards[5].write_bytes(flipped)
    assert run(words(tiny_model, tiny_corpus, out)).returncode == 0
    expected = open_store(whole).artifact.manifest
    assert open_store(out).artifact.manifest.fingerprint == expected.fingerprint


@pytest.mark.chaos
def test_two_writers_on_one_directory(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, *words(tiny_model, tiny_corpus, tmp_path / "s", 3000)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [each.communicate()[1] for each in both]
    codes = [each.returncode for each in both]
    # One may come when the other has finished, and then finds its work done.
    assert sorted(codes) in ([0, 0], [0, 2])
    for code, text in zip(codes, said, strict=True):
        assert (code == 2) == ("another process is writing this directory" in text)
        assert "Traceback" not in text
    open_store(tmp_path / "s").artifact.verify()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_the_work_goes_on_elsewhere(
    whole: Path, tiny_model: Path, tiny_corpus: Path, small_disk: Path, tmp_path: Path
) -> None:
    done = run(words(tiny_model, tiny_corpus, small_disk / "s"))
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(f"mechlab: no room on disk: {small_disk / 's'}")
    assert "Traceback" not in done.stderr
    kept = len(list((small_disk / "s" / ".partial").glob("shard-*")))
    assert kept > 3
    # What was whole is good: moved to a larger disk, the harvest goes on from it.
    shutil.copytree(small_disk / "s", tmp_path / "s")
    assert run(words(tiny_model, tiny_corpus, tmp_path / "s")).returncode == 0
    assert (
        open_store(tmp_path / "s").artifact.manifest.fingerprint
        == open_store(whole).artifact.manifest.fingerprint
    )


def torchrun(arguments: list[str], ranks: int = 2) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
        str(Path(__file__).parent / "ranks_program.py"), *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_ranks_make_the_store_of_one(
    whole: Path, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    done = torchrun(words(tiny_model, tiny_corpus, tmp_path / "s", 8000, "--json"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"rows": 8000') == 1  # the first rank speaks for all
    expected, found = open_store(whole), open_store(tmp_path / "s")
    for column in ("document", "context", "position", "tokens"):
        assert torch.equal(found.column(column), expected.column(column))
    for site in expected.sites:
        assert torch.equal(found.activations(site), expected.activations(site))
    assert found.artifact.manifest.fingerprint == expected.artifact.manifest.fingerprint
    assert found.artifact.manifest.facts == expected.artifact.manifest.facts
    work = [int(line) for line in (tmp_path / "made").read_text().split()]
    assert sorted(work) == [0, 1]  # both had a share


@pytest.mark.chaos
def test_ranks_go_on_from_what_one_process_left(
    whole: Path, tiny_model: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    kill_after(5, words(tiny_model, tiny_corpus, out))
    done = torchrun(words(tiny_model, tiny_corpus, out))
    assert done.returncode == 0, done.stderr
    assert open_store(out).artifact.manifest.fingerprint == open_store(whole).artifact.manifest.fingerprint


def test_ranks_without_torchrun_are_one_line(
    tiny_model: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(words(tiny_model, tiny_corpus, tmp_path / "s", 10))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("mechlab: processes do not find each other: ")
    assert len(said.strip().splitlines()) == 1


@pytest.mark.chaos
def test_a_mistake_ends_all_ranks_with_one_line(tiny_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    done = torchrun(words(tiny_model, tiny_corpus, tmp_path / "s", 8000, "--n-ctx", "99"))
    assert done.returncode != 0
    assert done.stderr.count("mechlab: context length is out of range: 99") == 1
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine.txt").write_text("something else")
    done = torchrun(words(tiny_model, tiny_corpus, tmp_path / "t"))
    assert done.stderr.count("mechlab: output directory is not empty") == 1
