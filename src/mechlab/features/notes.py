"""A person's notes and labels on features, kept beside the index.

``notes.jsonl`` in the index's directory, one note a line, only ever appended to. It is none of the
artifact's data files: the artifact's checksums and fingerprint do not know it, it stays when the
index is made again, and every note names the index (by fingerprint) that it was made on. Of
labels the last one counts; notes add up.

An append is one write under a lock on the file, on a line of its own even where a kill tore the
line before; so processes can append at once and readers need no lock.
"""

from __future__ import annotations

import fcntl
import functools
import getpass
import json
import os
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mechlab.artifacts import Artifact, open_artifact
from mechlab.errors import MechlabError
from mechlab.features.building import KIND
from mechlab.features.explanations import PERSON, Explanation
from mechlab.features.rules import parse_rule
from mechlab.files import disk_errors

NOTES = "notes.jsonl"


@dataclass(frozen=True)
class Note:
    """What one person wrote on one feature.

    Attributes:
        feature: its number in the index.
        text: the note, or None.
        label: the feature's new label, or None; an empty one takes the label away.
        author: who wrote it.
        date: when, UTC, ISO 8601.
        index: fingerprint of the index.
    """

    feature: int
    text: str | None
    label: str | None
    author: str
    date: str
    index: str


@dataclass(frozen=True)
class Notes:
    """All notes on an index, in the order in which they were written.

    Attributes:
        items: the notes.
        elsewhere: notes in the file that were made on another index in this place, and are left out.
    """

    items: tuple[Note, ...]
    elsewhere: int = 0

    @functools.cached_property
    def labels(self) -> dict[int, str]:
        """Feature → its label, by feature."""
        found: dict[int, str] = {}
        for note in self.items:
            if note.label is not None:
                found[note.feature] = note.label
        return {feature: label for feature, label in sorted(found.items()) if label}

    def of(self, feature: int) -> tuple[Note, ...]:
        """All notes on one feature, oldest first."""
        return tuple(note for note in self.items if note.feature == feature)


def add_note(
    index: Path | str,
    feature: int,
    *,
    text: str | None = None,
    label: str | None = None,
    author: str | None = None,
) -> Note:
    """Append a note to an index.

    Args:
        index: the index's directory.
        author: the user's name on this machine by default.

    Raises MechlabError when there is no index, it has no such feature, there is nothing to write,
    or the directory cannot be written.
    """
    artifact = open_artifact(index, KIND)
    n_features = int(artifact.manifest.config["n_features"])
    if not 0 <= feature < n_features:
        raise MechlabError("feature does not exist", feature, f"give a number from 0 to {n_features - 1}")
    if not (text and text.strip()) and label is None:
        raise MechlabError("note is empty", None, "give a text, a label, or both")
    note = Note(
        feature,
        _clean(text) if text and text.strip() else None,
        None if label is None else _clean(label),
        _clean(author or _user()),
        datetime.now(UTC).isoformat(timespec="seconds"),
        artifact.manifest.fingerprint,
    )
    _append(artifact.path / NOTES, json.dumps(asdict(note), ensure_ascii=False))
    return note


def read_notes(index: Path | str) -> Notes:
    """All notes on an index. MechlabError when there is none; warns of lines that cannot be read."""
    artifact = open_artifact(index, KIND)
    path = artifact.path / NOTES
    if not path.exists():
        return Notes(())
    found, torn = [], 0
    for line in path.read_bytes().splitlines():
        try:
            found.append(Note(**json.loads(line)))
        except (ValueError, TypeError):
            torn += bool(line.strip())
    if torn:
        warnings.warn(f"{torn} lines of {path} cannot be read and are left out", stacklevel=2)
    here = tuple(note for note in found if _on(artifact, note))
    return Notes(here, len(found) - len(here))


def person_explanations(notes: Notes) -> list[Explanation]:
    """Labels as explanations by a person; one that is the sentence of a rule can be executed."""
    last = {note.feature: note for note in notes.items if note.label is not None}
    found = []
    for feature, label in notes.labels.items():
        try:
            rule = parse_rule(label)
        except MechlabError:
            rule = None
        about = {"author": last[feature].author, "date": last[feature].date}
        found.append(Explanation(feature, PERSON, label, rule, about))
    return found


def _clean(text: str) -> str:
    """Without spaces around it; what a shell could not decode becomes an escape, which can be written."""
    return text.strip().encode("utf-8", "backslashreplace").decode()


def _on(artifact: Artifact, note: Note) -> bool:
    return note.index == artifact.manifest.fingerprint


def _append(path: Path, line: str) -> None:
    with disk_errors(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            data = ("\n" if torn else "").encode() + line.encode() + b"\n"
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return "unknown"
