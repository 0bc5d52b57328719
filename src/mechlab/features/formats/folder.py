"""Folders that appear whole or not at all, and the small files in them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mechlab.artifacts import MANIFEST
from mechlab.errors import MechlabError
from mechlab.features.index import FeatureIndex
from mechlab.files import disk_errors


@contextlib.contextmanager
def new_folder(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes its place at ``path`` when the block ends without an error.

    Raises MechlabError where something other than an empty folder is there, unless ``overwrite``, and
    when there is no room or no leave to write.
    """
    path = Path(path)
    require_free(path, overwrite=overwrite)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            (work / "new").mkdir()
            yield work / "new"
            if path.exists():
                os.rename(path, work / "old")
            os.rename(work / "new", path)
        finally:
            if (work / "old").exists() and not path.exists():
                os.rename(work / "old", path)
            shutil.rmtree(work, ignore_errors=True)


def require_free(path: Path, *, overwrite: bool = False) -> None:
    """MechlabError where something but an empty folder is there; with ``overwrite``, what is no folder.

    A folder with an artifact of ours in it (the index itself, say) is no export and is never replaced.
    """
    there = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if there and (not overwrite or not path.is_dir()):
        raise MechlabError("something is there already", path, "choose another --out, or --overwrite")
    if there and any(path.rglob(MANIFEST)):
        raise MechlabError("folder holds an artifact, no export", path, "choose another --out")


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """A JSON file inside a folder that is being filled. Infinities and NaN are a mistake of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent), encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file holds. MechlabError when it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise MechlabError("file cannot be read", path, "is this the right folder?") from None
    except ValueError as error:
        raise MechlabError("file is not JSON", path, str(error)) from None


def required(record: dict[str, Any], names: Sequence[str], where: object) -> dict[str, Any]:
    """``record`` itself. MechlabError when a field is missing."""
    missing = [name for name in names if name not in record]
    if missing:
        raise MechlabError(f"field {missing[0]} is missing", where, "another version of the format?")
    return record


def alive(index: FeatureIndex, features: Sequence[int] | None) -> list[int]:
    """Those of the chosen features that are active anywhere. MechlabError when none is."""
    found = [feature for feature in chosen(index, features) if index.active[feature]]
    if not found:
        raise MechlabError("no feature to write is active anywhere", None, "choose others: --features")
    return found


def chosen(index: FeatureIndex, features: Sequence[int] | None) -> list[int]:
    """The features to write, ascending; all by default. MechlabError for one that does not exist."""
    if features is None:
        return list(range(index.n_features))
    wanted = sorted(set(features))
    for feature in wanted:
        if not 0 <= feature < index.n_features:
            raise MechlabError("feature does not exist", feature, f"there are {index.n_features}")
    return wanted
