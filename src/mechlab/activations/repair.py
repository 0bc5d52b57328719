"""Making a store's missing and damaged shards again, without touching the whole ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mechlab.activations.harvest import Plan, make_plan, making, open_stream, picked_rows
from mechlab.activations.selection import Selection
from mechlab.activations.store import KIND, Store
from mechlab.activations.verify import damaged_shards
from mechlab.artifacts import open_artifact
from mechlab.data.corpus import Corpus
from mechlab.data.stream import Position
from mechlab.errors import MechlabError
from mechlab.files import disk_errors, is_whole, sync_directory
from mechlab.models.subject import Subject

_SCRATCH = ".repair"


def damaged_store(path: Path | str) -> Store:
    """Open a store some of whose shards may be missing or cut short."""
    return Store(open_artifact(path, KIND, whole=False))


def repair(
    store: Store,
    subject: Subject,
    corpus: Corpus,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Make missing and damaged shards again; returns their names.

    A shard follows from model, corpus and settings, so the new one must have the old one's
    checksum; it takes the old one's place only then.

    Args:
        subject, corpus: what the store was made from.
        progress: called with (shards made, shards to make).

    Raises MechlabError when model or corpus are others, when the list of shards itself is lost,
    or when a shard comes out differently (another machine may round otherwise).
    """
    manifest, path = store.artifact.manifest, store.artifact.path
    for role, now in (("model", subject.fingerprint), ("corpus", corpus.fingerprint)):
        if manifest.inputs[role] != now:
            raise MechlabError(
                f"store was made from another {role}",
                f"fingerprint {manifest.inputs[role][:12]}, not {now[:12]}",
                "repair needs the one it was made from",
            )
    damaged = damaged_shards(store)
    if not damaged:
        return []
    plan = _plan(store, subject)
    scratch = path / _SCRATCH
    with disk_errors(path):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            with making(subject, plan, scratch, scratch / "journal.jsonl") as make:
                for shard in damaged:
                    config, entry = manifest.config, shard.entry
                    stream = open_stream(
                        subject, corpus, config["split"], plan, pack=config["pack"], bos=config["bos"],
                        start=Position(**entry["start"]),
                    )  # fmt: skip
                    group = []
                    for batch in stream:
                        group.append(batch)
                        if sum(len(each.tokens) for each in group) >= entry["contexts"]:
                            break
                    stream.close()
                    # The limit it was made under: batches without rows may follow the last row.
                    limit = config["tokens"] - entry["first_row"]
                    for _ in make(picked_rows(subject, plan, group, limit), entry):
                        pass
            for done, shard in enumerate(damaged, 1):
                _replace(scratch / shard.path.name, shard.path, manifest.files[shard.path.name])
                if progress:
                    progress(done, len(damaged))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return [shard.path.name for shard in damaged]


def _replace(made: Path, old: Path, expected: Mapping[str, Any]) -> None:
    if not is_whole(made, expected):
        raise MechlabError(
            "shard came out differently from the one that was lost", old.name,
            "this machine rounds otherwise; delete the store and harvest again",
        )  # fmt: skip
    os.replace(made, old)
    sync_directory(old.parent)


def _plan(store: Store, subject: Subject) -> Plan:
    config = store.artifact.manifest.config
    return make_plan(
        subject,
        config["sites"],
        n_ctx=config["n_ctx"],
        batch=config["batch"],
        storage=config["storage"],
        select=Selection(**config["select"]),
    )
