"""The results of a sweep: one SQLite file, readable while the sweep runs and safe under parallel writers.

    about(key, value)    what the sweep is: value is JSON
    runs(id, ...)        one row per finished training: columns to filter by, and all of it as JSON

Write-ahead logging lets readers look on while somebody writes; a writer that finds the file locked waits. A row is
written in one transaction when its training has ended, so that an interruption loses what was still running, no more.
The first result of a training stands: results are reproducible, and nothing may be tried again until it looks better.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fisheropt_lab.record import HeldOut, Record
from fisheropt_lab.spec import Trial
from fisheropt_lab.sweeps.job import Result

WAIT_SECONDS = 60.0  # for another writer

TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, optimizer TEXT NOT NULL, lr REAL NOT NULL, seed INTEGER NOT NULL, options TEXT NOT NULL,
    validation REAL, test REAL, diverged_at INTEGER, seconds REAL NOT NULL, finished TEXT NOT NULL,
    record TEXT NOT NULL, tested TEXT
);
"""
COLUMNS = ("id", "optimizer", "lr", "seed", "options", "validation", "test", "diverged_at", "seconds", "finished")


class Store:
    """The file of one sweep. Opens a connection per call: processes and threads may share the object."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make the file and its tables, where they are not there."""
        with self._open() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(TABLES)

    def exists(self) -> bool:
        return self.path.exists()

    def describe(self, key: str, value: Any) -> None:
        """Write something about the sweep, in place of what was written under this key."""
        with self._open() as connection:
            connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, json.dumps(value, allow_nan=False)))

    def about(self, key: str) -> Any:
        """What was written under this key, or None."""
        with self._open() as connection:
            row = connection.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def add(self, result: Result) -> bool:
        """Keep the result of a training; False if there is one already, which stays."""
        record, tested = result.record, result.tested
        trial = record.trial
        row = (
            trial.id,
            trial.optimizer,
            trial.lr,
            trial.seed,
            json.dumps(dict(trial.options + trial.settings)),
            record.validation_loss,
            tested.loss if tested else None,
            record.diverged_at_step,
            record.seconds,
            record.finished,
            json.dumps(record.to_json(), allow_nan=False),
            json.dumps(tested.to_json(), allow_nan=False) if tested else None,
        )
        with self._open() as connection:
            done = connection.execute(
                f"INSERT OR IGNORE INTO runs VALUES ({', '.join('?' * len(row))})",
                row,
            )
            return done.rowcount == 1

    def results(self) -> dict[Trial, Result]:
        """Everything that is finished, in the order it did."""
        with self._open() as connection:
            rows = connection.execute("SELECT record, tested FROM runs ORDER BY rowid").fetchall()
        found = (
            Result(Record.from_json(json.loads(record)), tested and HeldOut.from_json(json.loads(tested)))
            for record, tested in rows
        )
        return {result.record.trial: result for result in found}

    def records(self) -> dict[Trial, Record]:
        """What choices may be made of: everything but what the test split said."""
        return {trial: result.record for trial, result in self.results().items()}

    def rows(self, condition: str = "1", values: tuple[Any, ...] = (), order: str = "rowid") -> list[tuple[Any, ...]]:
        """The columns a reader filters by, in the order of COLUMNS. `condition` and `order` are SQL."""
        with self._open() as connection:
            query = f"SELECT {', '.join(COLUMNS)} FROM runs WHERE {condition} ORDER BY {order}"
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
        try:
            with connection:  # a transaction
                yield connection
        finally:
            connection.close()
