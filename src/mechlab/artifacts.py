"""Artifacts: directories that exist exactly when their ``manifest.json`` does.

An artifact is a directory of immutable data files plus a manifest that lists them with size
and checksum and records what they are made of.

How a write survives a kill at any byte:

1. Unfinished work lives in ``DIR/.partial/`` and stays there between attempts; the
   next writer with the same plan (kind, config, seed, inputs) finds it and resumes.
2. ``Writer.commit`` writes the finished manifest into ``.partial/`` (temporary file,
   fsync, rename). That rename is the commit point: before it a reader sees the old
   artifact, or none; after it the new one.
3. Rolling forward then withdraws the old manifest, moves the data files into place
   and publishes the new manifest last. A kill in between leaves no manifest, and
   whoever opens the directory next finishes the moves, which can be repeated safely.

Artifacts may stand inside one another; a manifest lists only its own files.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError
from mechlab.files import (
    canonical_json,
    disk_errors,
    file_sha256,
    fingerprint,
    is_whole,
    sync_directory,
    write_atomic,
)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"
_PLAN = "plan.json"
_LOCK = "lock"
_WITHDRAWN = "withdrawn.json"
Sums = Mapping[str, Mapping[str, str]]
_NONE: Sums = {}
_LIBRARIES = ("mechlab", "torch", "transformers", "transformer-lens", "numpy", "datasets")


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what it was made of.

    Attributes:
        kind: what the directory holds ("activations", "dictionary", "circuit", …).
        config: the settings that made it, as plain JSON values.
        seed: the one seed of the job.
        inputs: role → fingerprint of everything it was made from ({"model": …}).
        facts: measured results worth reading without opening data files (JSON values).
        files: name → {"bytes", "sha256" or "xxh3_128"} of every data file, sorted by name.
        fingerprint: SHA-256 over kind, config, seed, inputs and file checksums. Equal
            fingerprints mean equal content; time, versions and command do not enter.
    """

    kind: str
    config: dict[str, Any]
    seed: int
    inputs: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    fingerprint: str = ""
    schema: int = SCHEMA_VERSION
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)

    def same_plan(self, other: Manifest) -> bool:
        """True when both were asked to make the same thing from the same inputs."""
        return self._plan() == other._plan()

    def _plan(self) -> str:
        return canonical_json(
            {"kind": self.kind, "config": self.config, "seed": self.seed, "inputs": self.inputs}
        )


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its directory and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of data file ``name``; MechlabError when the manifest does not list it."""
        if name not in self.manifest.files:
            raise MechlabError(
                f"artifact {self.path} has no data file", name, f"it has: {', '.join(self.manifest.files)}"
            )
        return self.path / name

    def verify(self) -> None:
        """Re-read every data file; MechlabError names the first that is missing or altered."""
        for name, expected in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise MechlabError("data file is missing", path, "make the artifact again")
            if not is_whole(path, expected):
                raise MechlabError("data file is damaged (checksum differs)", path, "make the artifact again")


def exists(path: Path | str) -> bool:
    """True when ``path`` holds a finished artifact (after completing an interrupted publish)."""
    path = Path(path)
    _roll_forward(path)
    return (path / MANIFEST).is_file()


def open_artifact(path: Path | str, kind: str | None = None, *, whole: bool = True) -> Artifact:
    """Open the artifact at ``path``.

    Where it must be ``whole``, every listed file is checked to be there with its size (not its
    checksum; see ``Artifact.verify``). Raises MechlabError when there is none, when it is of another
    kind, when its manifest cannot be read, or when a file is missing or cut short.
    """
    path = Path(path)
    _roll_forward(path)
    if not (path / MANIFEST).is_file():
        unfinished = " (an unfinished one is there)" if (path / PARTIAL).is_dir() else ""
        raise MechlabError(f"no {kind or 'artifact'} here{unfinished}", path, "run the command that makes it")
    manifest = _read_manifest(path / MANIFEST)
    if kind is not None and manifest.kind != kind:
        raise MechlabError(f"{path} holds another kind of artifact", manifest.kind, f"needed: {kind}")
    for name, expected in manifest.files.items() if whole else ():
        data = path / name
        if not data.is_file() or data.stat().st_size != expected["bytes"]:
            raise MechlabError("data file is missing or cut short", data, "make the artifact again")
    return Artifact(path, manifest)


class Writer:
    """Makes one artifact. Use through ``writing``.

    Attributes:
        finished: the artifact, when it was already there under the same plan.
        work: the directory to write data files into (``DIR/.partial``); files left by
            an interrupted attempt with the same plan are still in it.
    """

    def __init__(self, path: Path, plan: Manifest, finished: Artifact | None) -> None:
        self.path = path
        self.plan = plan
        self.finished = finished
        self.work = path / PARTIAL

    def withdraw(self) -> None:
        """Take back what is published here now, before the finished work replaces it.

        For an artifact whose parts are artifacts of their own: while those are replaced one
        by one, the old manifest must not vouch for them.
        """
        current = self.path / MANIFEST
        if current.is_file():
            with contextlib.suppress(MechlabError):
                names = list(_read_manifest(current).files)
                current.unlink()
                for name in names:
                    (self.path / name).unlink(missing_ok=True)
            current.unlink(missing_ok=True)

    def commit(
        self, files: list[str], facts: Mapping[str, Any] | None = None, sums: Sums = _NONE
    ) -> Artifact:
        """Publish ``files`` of ``work`` (``sums``: checksums known already); all else in it is dropped."""
        if self.finished is not None:
            raise MechlabError("artifact is already finished", self.path, "commit once")
        listed: dict[str, dict[str, Any]] = {}
        with disk_errors(self.path):
            for name in sorted(files):
                data = self.work / name
                with data.open("rb") as handle:
                    os.fsync(handle.fileno())
                known = sums[name] if name in sums else {"sha256": file_sha256(data)}
                listed[name] = {"bytes": data.stat().st_size, **known}
            content = {**json.loads(self.plan._plan()), "files": listed}
            manifest = Manifest(
                kind=self.plan.kind,
                config=self.plan.config,
                seed=self.plan.seed,
                inputs=self.plan.inputs,
                facts=dict(facts or {}),
                files=listed,
                fingerprint=fingerprint(content),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                versions=library_versions(),
                command=list(sys.argv),
            )
            write_atomic(self.work / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")
            _roll_forward(self.path, locked=True)
        self.finished = Artifact(self.path, manifest)
        return self.finished


@contextlib.contextmanager
def writing(
    path: Path | str,
    kind: str,
    *,
    config: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, str],
    overwrite: bool = False,
) -> Iterator[Writer]:
    """Open ``path`` for writing an artifact of ``kind``; yields a ``Writer``.

    If the same artifact is already there, ``writer.finished`` is set and nothing needs
    doing. A directory that holds another kind of artifact, or one made from other
    inputs (another model, say) or another config, is refused by name unless
    ``overwrite``; another process writing the same directory is refused too. A full
    disk becomes a MechlabError and leaves what was there before.
    """
    path = Path(path)
    plan = Manifest(kind=kind, config=_plain(config), seed=seed, inputs=dict(inputs))
    with disk_errors(path), _locked(path) as work:
        try:
            writer = Writer(path, plan, _prepare(path, work, plan, overwrite))
            yield writer
            if writer.finished is not None:
                shutil.rmtree(work)
        finally:
            _leave_no_litter(path, work)


def _prepare(path: Path, work: Path, plan: Manifest, overwrite: bool) -> Artifact | None:
    """The artifact if ``plan`` is already carried out, else None with ``work`` ready for it."""
    try:
        _roll_forward(path, locked=True)
        if (path / MANIFEST).is_file() and (not overwrite or _read_manifest(path / MANIFEST).same_plan(plan)):
            current = open_artifact(path)
            _refuse_difference(path, current.manifest, plan)
            return current
    except MechlabError:
        if not overwrite:
            raise
        _clear(work)  # what is there is damaged; it is to be made again
    if not overwrite:
        refuse_foreign(path)
    asked = work / _PLAN
    if not (asked.is_file() and asked.read_text() == plan._plan()):
        if not overwrite and {entry.name for entry in work.iterdir()} > {_LOCK, _PLAN}:
            _refuse_difference(path, _read_plan(asked), plan, "the unfinished ")
        _clear(work)
        write_atomic(asked, plan._plan())
    return None


def refuse_foreign(path: Path) -> None:
    """MechlabError when a directory that is there holds files of somebody else."""
    if path.is_dir() and not all(_is_ours(entry) for entry in path.iterdir()):
        raise MechlabError("output directory is not empty and holds no artifact", path, "choose an empty one")


def _leave_no_litter(path: Path, work: Path) -> None:
    """Bad input must not leave directories behind; unfinished work must stay."""
    if work.is_dir() and {entry.name for entry in work.iterdir()} <= {_LOCK, _PLAN}:
        shutil.rmtree(work)
        with contextlib.suppress(OSError):  # it holds something, or it was there before and is ours to keep
            path.rmdir()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _read_manifest(path: Path) -> Manifest:
    try:
        fields = json.loads(path.read_text())
        schema = fields.get("schema")
        if schema != SCHEMA_VERSION:
            raise MechlabError(
                f"manifest {path} has another schema version", schema, f"this mechlab reads {SCHEMA_VERSION}"
            )
        return Manifest(**fields)
    except (ValueError, TypeError, AttributeError) as error:
        raise MechlabError("manifest cannot be read", path, "make the artifact again") from error


def _refuse_difference(path: Path, there: Manifest, plan: Manifest, state: str = "the ") -> None:
    if there.kind != plan.kind:
        raise MechlabError(f"{path} holds another kind of artifact", there.kind, "choose another --out")
    for role in sorted(there.inputs.keys() | plan.inputs.keys()):
        old, new = there.inputs.get(role), plan.inputs.get(role)
        if old != new:
            raise MechlabError(
                f"{path} holds {state}{there.kind} made from another {role}",
                f"fingerprint {_short(old)}, not {_short(new)}",
                "choose another --out, or pass --overwrite",
            )
    old_config, new_config = {**there.config, "seed": there.seed}, {**plan.config, "seed": plan.seed}
    for key in [*new_config, *sorted(old_config.keys() - new_config.keys())]:
        if old_config.get(key) != new_config.get(key):
            raise MechlabError(
                f"{path} holds {state}{there.kind} made with another {key}",
                f"{old_config.get(key)}, not {new_config.get(key)}",
                "choose another --out, or pass --overwrite",
            )


def _short(value: str | None) -> str:
    return "none" if value is None else value[:12]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return plain


def _is_ours(entry: Path) -> bool:
    return entry.name == PARTIAL or (entry / MANIFEST).is_file() or (entry / PARTIAL).is_dir()


def _read_plan(path: Path) -> Manifest:
    try:
        return Manifest(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise MechlabError("plan of unfinished work cannot be read", path, "pass --overwrite") from error


def _clear(work: Path) -> None:
    for entry in work.iterdir():
        if entry.name == _LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Hold ``.partial/lock``; the kernel drops the lock when the process dies, however it dies."""
    work = path / PARTIAL
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock = (work / _LOCK).open("w")
        except FileNotFoundError:  # the previous holder has just removed the directory
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MechlabError(
                    "another process is writing this directory", path, "wait for it, or choose another --out"
                ) from None
            # The file may have been removed by the previous holder between open and lock.
            if not (work / _LOCK).exists() or os.fstat(lock.fileno()).st_ino != (work / _LOCK).stat().st_ino:
                continue
            yield work
            return


def _roll_forward(path: Path, *, locked: bool = False) -> None:
    """Finish a publish that was interrupted after its commit point; do nothing otherwise."""
    committed = path / PARTIAL / MANIFEST
    if not committed.is_file():
        return
    if not locked:
        # A live writer is between its commit point and the end: let it finish.
        with contextlib.suppress(MechlabError, OSError), _locked(path):
            _roll_forward(path, locked=True)
        return
    new = _read_manifest(committed)
    withdrawn = path / PARTIAL / _WITHDRAWN
    if (path / MANIFEST).is_file():
        os.replace(path / MANIFEST, withdrawn)
    for name in new.files:
        source = path / PARTIAL / name
        if source.exists():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, path / name)
    if withdrawn.is_file():
        with contextlib.suppress(MechlabError):
            for name in _read_manifest(withdrawn).files.keys() - new.files.keys():
                (path / name).unlink(missing_ok=True)
    os.replace(committed, path / MANIFEST)
    sync_directory(path)
