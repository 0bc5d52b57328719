"""Files are whole or not there, whichever way they are written."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from mechlab.files import replacing, streaming


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_streams_of_any_pieces_give_the_same_bytes(tmp_path: Path, seed: int, place: str) -> None:
    if place == "memory":  # no way past the page cache there
        if not Path("/dev/shm").is_dir():
            pytest.skip("no file system in memory")
        tmp_path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    draw = random.Random(seed)
    sizes = [draw.choice([0, 1, 7, 4095, 4096, 2**20 - 1, 2**20, 3 * 2**20 + 5]) for _ in range(6)]
    pieces = [draw.randbytes(size) for size in sizes]
    with streaming(tmp_path / "s") as stream:
        for piece in pieces:
            stream.write(memoryview(piece) if draw.random() < 0.5 else piece)
    with replacing(tmp_path / "r") as handle:
        for piece in pieces:
            handle.write(piece)
    found = (tmp_path / "s").read_bytes()
    assert found == b"".join(pieces) == (tmp_path / "r").read_bytes()
    shutil.rmtree(tmp_path)


def test_a_refused_write_past_the_cache_goes_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = os.write, []

    def refusing(descriptor: int, data: bytes) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(len(data))
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", refusing)
    content = random.Random(0).randbytes(10**7)
    with streaming(tmp_path / "f") as stream:
        stream.write(content)
    assert (tmp_path / "f").read_bytes() == content
    assert len(refused) == 1


@pytest.mark.parametrize("way", [replacing, streaming])
def test_an_error_leaves_the_old_file_alone(tmp_path: Path, way) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(RuntimeError), way(tmp_path / "f") as handle:
        handle.write(b"new" * 10**6)
        raise RuntimeError
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["f"]
