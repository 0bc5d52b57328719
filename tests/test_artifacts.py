"""Artifacts: all or nothing, whatever kills the writer."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mechlab import artifacts, files
from mechlab.artifacts import exists, open_artifact, writing
from mechlab.errors import MechlabError
from mechlab.files import write_atomic

PLAN = {"config": {"k": 3}, "seed": 0, "inputs": {"model": "a" * 64}}


def make(path: Path, content: str = "data", **changes: object) -> artifacts.Artifact:
    plan = {**PLAN, "kind": "thing", **changes}
    with writing(path, **plan) as writer:  # type: ignore[arg-type]
        if writer.finished is None:
            (writer.work / "data.txt").write_text(content)
            writer.commit(["data.txt"], facts={"n": 1})
    return open_artifact(path)


def test_round_trip_lists_files_with_size_and_checksum(tmp_path: Path) -> None:
    made = make(tmp_path / "a", "hello")
    assert made.file("data.txt").read_text() == "hello"
    entry = made.manifest.files["data.txt"]
    assert entry["bytes"] == 5
    assert entry["sha256"].startswith("2cf24dba5fb0a30e")  # sha256("hello")
    assert made.manifest.versions["python"]
    assert made.manifest.facts == {"n": 1}
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["data.txt", "manifest.json"]
    made.verify()


def test_fingerprint_depends_on_content_and_not_on_time(tmp_path: Path) -> None:
    first, again, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", "other")
    assert first.manifest.fingerprint == again.manifest.fingerprint != other.manifest.fingerprint


def test_same_plan_is_found_finished(tmp_path: Path) -> None:
    make(tmp_path / "a", "first")
    assert make(tmp_path / "a", "second").file("data.txt").read_text() == "first"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "other"}, "another kind of artifact: thing"),
        ({"inputs": {"model": "b" * 64}}, "another model: fingerprint aaaaaaaaaaaa, not bbbbbbbbbbbb"),
        ({"config": {"k": 4}}, "another k: 3, not 4"),
        ({"seed": 1}, "another seed: 0, not 1"),
    ],
)
def test_another_artifact_is_refused_by_name_and_survives(tmp_path: Path, changes: dict, named: str) -> None:
    make(tmp_path / "a", "first")
    with pytest.raises(MechlabError, match=named):
        make(tmp_path / "a", "second", **changes)
    assert open_artifact(tmp_path / "a").file("data.txt").read_text() == "first"


def test_overwrite_replaces_and_drops_old_files(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with writing(tmp_path / "a", "thing", config={"k": 4}, seed=0, inputs={}, overwrite=True) as writer:
        assert writer.finished is None
        (writer.work / "new.txt").write_text("new")
        writer.commit(["new.txt"])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["manifest.json", "new.txt"]


def test_foreign_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(MechlabError, match="not empty"):
        make(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_run_directory_may_hold_artifacts(tmp_path: Path) -> None:
    make(tmp_path / "stage")
    assert make(tmp_path).manifest.kind == "thing"
    assert exists(tmp_path / "stage")


def test_missing_damaged_and_foreign_artifacts_are_named(tmp_path: Path) -> None:
    with pytest.raises(MechlabError, match="no thing here"):
        open_artifact(tmp_path / "none", "thing")
    made = make(tmp_path / "a", "hello")
    with pytest.raises(MechlabError, match="another kind of artifact: thing"):
        open_artifact(tmp_path / "a", "dictionary")
    with pytest.raises(MechlabError, match="no data file"):
        made.file("nothing.bin")
    made.file("data.txt").write_text("jello")  # same size
    open_artifact(tmp_path / "a")
    with pytest.raises(MechlabError, match="damaged"):
        made.verify()
    made.file("data.txt").write_text("he")
    with pytest.raises(MechlabError, match="cut short"):
        open_artifact(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(MechlabError, match="manifest cannot be read"):
        open_artifact(tmp_path / "a")


def test_unfinished_work_is_resumed_only_under_the_same_plan(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writing(tmp_path / "a", "thing", **PLAN) as writer:
        (writer.work / "part").write_text("half")
        raise RuntimeError
    assert not exists(tmp_path / "a")
    with pytest.raises(MechlabError, match="unfinished"):
        open_artifact(tmp_path / "a")
    with (
        pytest.raises(MechlabError, match="holds the unfinished thing made with another seed: 0, not 9"),
        writing(tmp_path / "a", "thing", **{**PLAN, "seed": 9}),
    ):
        pass
    with writing(tmp_path / "a", "thing", **PLAN) as writer:
        assert (writer.work / "part").read_text() == "half"
    with writing(tmp_path / "a", "thing", **{**PLAN, "seed": 9}, overwrite=True) as writer:
        assert not (writer.work / "part").exists()


@pytest.mark.parametrize("damage", ["manifest", "schema", "file"])
def test_a_damaged_artifact_can_be_made_again(tmp_path: Path, damage: str) -> None:
    made = make(tmp_path / "a", "hello")
    manifest = tmp_path / "a" / "manifest.json"
    if damage == "manifest":
        manifest.write_text("{")
    elif damage == "schema":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 0}))
    else:
        made.file("data.txt").write_text("he")
    with pytest.raises(MechlabError):
        make(tmp_path / "a", "again")
    with writing(tmp_path / "a", "thing", **PLAN, overwrite=True) as writer:
        assert writer.finished is None
        (writer.work / "data.txt").write_text("again")
        writer.commit(["data.txt"])
    assert open_artifact(tmp_path / "a").file("data.txt").read_text() == "again"


def test_withdrawing_takes_the_manifest_first(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with writing(tmp_path / "a", "thing", **{**PLAN, "seed": 2}, overwrite=True) as writer:
        writer.withdraw()
        assert not exists(tmp_path / "a")
        assert not (tmp_path / "a" / "data.txt").exists()


def test_paths_that_cannot_be_made(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300), Path("/proc/nope/x")):
        with pytest.raises(MechlabError, match="output directory cannot be made"):
            make(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MechlabError, match="not a directory"):
        make(tmp_path / "file")


def test_refusals_and_failures_before_any_work_leave_no_litter(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writing(tmp_path / "a", "thing", **PLAN):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "a")
    with pytest.raises(MechlabError):
        make(tmp_path / "a", kind="other")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["data.txt", "manifest.json"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    with pytest.raises(MechlabError):
        make(tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["letter.txt"]


def test_two_writers_on_one_directory(tmp_path: Path) -> None:
    with (
        writing(tmp_path / "a", "thing", **PLAN),
        pytest.raises(MechlabError, match="another process"),
        writing(tmp_path / "a", "thing", **PLAN),
    ):
        pass


def test_full_disk_is_one_line_and_the_old_artifact_stays(tmp_path: Path) -> None:
    make(tmp_path / "a", "first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with (
            pytest.raises(MechlabError, match="no room on disk"),
            writing(tmp_path / "a", "thing", config={}, seed=0, inputs={}, overwrite=True) as writer,
        ):
            write_atomic(writer.work / "big", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert open_artifact(tmp_path / "a").file("data.txt").read_text() == "first"


def test_a_real_full_filesystem(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip("cannot mount a small tmpfs here")
    try:
        with (
            pytest.raises(MechlabError, match="no room on disk"),
            writing(disk / "a", "thing", **PLAN) as writer,
        ):
            write_atomic(writer.work / "big", b"x" * 1_000_000)
        assert not exists(disk / "a")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_atomic(file, "old")
    with pytest.raises(RuntimeError), files.replacing(file) as handle:
        handle.write(b"half of the n")
        raise RuntimeError
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


WRITER = """
import sys
from pathlib import Path
from mechlab.artifacts import write_atomic, writing
path, version = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
with writing(path, "thing", config={"v": version}, seed=0, inputs={}, overwrite=True) as writer:
    if writer.finished is None:
        for name in "abc":
            write_atomic(writer.work / name, version * 200_000)
        if version == "2":
            write_atomic(writer.work / "d", version)
        writer.commit(list("abc") + (["d"] if version == "2" else []))
"""


def state(path: Path) -> str:
    """Which version is there; every file must agree."""
    if not exists(path):
        return "none"
    made = open_artifact(path)
    made.verify()
    versions = {made.file(name).read_text()[0] for name in "abc"}
    assert versions == {made.manifest.config["v"]}
    assert ("d" in made.manifest.files) == (versions == {"2"})
    return versions.pop()


def kill_after(path: Path, version: str, delay: float) -> None:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path), version], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    child.wait()


def test_kills_at_random_moments_leave_old_new_or_none(tmp_path: Path) -> None:
    generator, seen = random.Random(0), set()
    path = tmp_path / "a"
    subprocess.run([sys.executable, "-c", WRITER, str(path), "1"], check=True, capture_output=True)
    assert state(path) == "1"
    for i in range(20):
        kill_after(path, "2" if i % 2 == 0 else "1", generator.uniform(0, 0.03))
        seen.add(state(path))
        assert state(path) in ("1", "2")
    subprocess.run([sys.executable, "-c", WRITER, str(path), "2"], check=True, capture_output=True)
    assert state(path) == "2"


@pytest.mark.parametrize("step", range(40))
def test_a_kill_before_any_system_call_leaves_old_or_new(tmp_path: Path, step: int) -> None:
    """Die exactly before the n-th change to the file system while version 2 replaces version 1."""
    path = tmp_path / "a"
    trap = """
import os, shutil
count = [int(sys.argv[3])]
def trapped(real):
    def call(*a, **k):
        if count[0] == 0:
            os.kill(os.getpid(), 9)
        count[0] -= 1
        return real(*a, **k)
    return call
for name in ("replace", "unlink", "fsync", "mkdir", "rename", "rmdir"):
    setattr(os, name, trapped(getattr(os, name)))
"""
    subprocess.run([sys.executable, "-c", WRITER, str(path), "1"], check=True, capture_output=True)
    code = WRITER.replace("print(", trap + "\nprint(")
    died = subprocess.run(
        [sys.executable, "-c", code, str(path), "2", str(step)], capture_output=True, check=False
    )
    assert died.returncode in (0, -9), died.stderr.decode()
    after = state(path)
    assert after == "2" if died.returncode == 0 else after in ("1", "2")
    subprocess.run([sys.executable, "-c", WRITER, str(path), "2"], check=True, capture_output=True)
    assert state(path) == "2"
    assert json.loads((path / "manifest.json").read_text())["config"] == {"v": "2"}
    assert not (path / ".partial").exists()
