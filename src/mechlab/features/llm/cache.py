"""Answers that were paid for, kept on disk by what was asked."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from mechlab.errors import MechlabError
from mechlab.features.llm.client import Reply, Request
from mechlab.files import canonical_json, disk_errors

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, reply TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reserved (
    entry INTEGER PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, nanodollars INTEGER
);
CREATE TABLE IF NOT EXISTS paid (
    model TEXT PRIMARY KEY, answers INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, nanodollars INTEGER NOT NULL, unpriced INTEGER NOT NULL
) WITHOUT ROWID;
"""


class ResponseCache:
    """A SQLite file (write-ahead log) of answers and of what they cost.

    Several processes may use it at once; a process that is killed leaves every committed answer. Only
    the machine losing power can cost the last seconds of it: to wait for the disk, twice an answer,
    took 20 ms (measured on a busy one).
    The tables: ``answers`` (key, request and reply as JSON); ``reserved`` and ``paid`` are the ledger's.

    Raises MechlabError when the path is no such file or cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            # Used by one thread at a time, not always the one that opened it.
            self.connection = sqlite3.connect(
                self.path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self.connection.execute("PRAGMA synchronous=NORMAL")
            self._prepare()

    def _prepare(self) -> None:
        """Make the tables. Two processes that do so at once are not made to wait, but turned away."""
        for tries_left in reversed(range(200)):
            try:
                self.connection.execute("PRAGMA journal_mode=WAL")
                self.connection.executescript(_TABLES)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or not tries_left:
                    raise
            time.sleep(0.05)

    def get(self, key: str) -> Reply | None:
        """The answer kept under a key."""
        with self._errors():
            try:
                found = self.connection.execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
                return None if found is None else Reply.from_dict(json.loads(found[0]))
            except (ValueError, TypeError, LookupError) as error:
                raise sqlite3.DatabaseError(f"an answer in it is damaged: {error}") from error

    def put(self, key: str, request: Request, reply: Reply) -> None:
        """Keep an answer; one that is there already stays."""
        asked, told = canonical_json(request.to_dict()), canonical_json(reply.to_dict())
        with self._errors():
            self.connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, asked, told))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is written, or nothing; other processes wait."""
        with self._errors():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # a full disk has ended it already
                    self.connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeError) as error:  # UnicodeError: damage where a name stood
            remedy = f"{error}; name another file, or free it"
            raise MechlabError("cache of answers cannot be used", self.path, remedy) from error
