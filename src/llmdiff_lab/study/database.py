"""The SQLite file of a study: tables, settings, transactions."""

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from llmdiff.errors import ConfigError
from llmdiff_lab.study.model import Pair, StudySettings

_VERSION = 1
# Only a random token and the answers of a rater are stored: no names, no addresses, no times.
_SCHEMA = """
CREATE TABLE study (version INTEGER NOT NULL, settings TEXT NOT NULL);
CREATE TABLE prompts (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE pairs (
    id INTEGER PRIMARY KEY,
    prompt INTEGER NOT NULL REFERENCES prompts,
    first TEXT, second TEXT,
    first_picture TEXT NOT NULL, second_picture TEXT NOT NULL
);
CREATE TABLE raters (id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE);
CREATE TABLE places (
    rater INTEGER NOT NULL REFERENCES raters,
    position INTEGER NOT NULL,
    pair INTEGER NOT NULL REFERENCES pairs,
    first_is_left INTEGER NOT NULL,
    PRIMARY KEY (rater, position)
);
CREATE TABLE answers (
    rater INTEGER NOT NULL, position INTEGER NOT NULL, question TEXT NOT NULL, choice TEXT NOT NULL,
    PRIMARY KEY (rater, position, question),
    FOREIGN KEY (rater, position) REFERENCES places
);
"""


class StudyDatabase:
    """One open study file; safe to use from several threads. Committed data survives a killed process."""

    def __init__(self, connection: sqlite3.Connection, settings: StudySettings) -> None:
        self.settings = settings
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def create(
        cls, path: Path, settings: StudySettings, prompts: Sequence[str], pairs: Sequence[Pair]
    ) -> Self:
        """Return a new study, stored at `path`."""
        connection = _connect(path)
        connection.executescript(_SCHEMA)
        store = cls(connection, settings)
        with store._writing() as cursor:
            cursor.execute("INSERT INTO study VALUES (?, ?)", (_VERSION, json.dumps(asdict(settings))))
            cursor.executemany("INSERT INTO prompts VALUES (?, ?)", enumerate(prompts))
            cursor.executemany(
                "INSERT INTO pairs VALUES (NULL, :prompt, :first, :second, :first_picture, :second_picture)",
                [asdict(pair) for pair in pairs],
            )
        return store

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the study stored at `path`.

        Raises:
            ConfigError: there is none, it is damaged, or it has another version.
        """
        if not path.is_file():
            raise ConfigError(
                f"study {path.parent} holds no {path.name}: make one with `llmdiff-lab study create`"
            )
        try:
            connection = _connect(path)
            version, text = connection.execute("SELECT version, settings FROM study").fetchone()
            if version != _VERSION:
                raise ConfigError(f"study {path} has version {version}, expected {_VERSION}: create it again")
            fields = json.loads(text)
            settings = StudySettings(**{**fields, "systems": tuple(fields["systems"])})
        except (sqlite3.Error, TypeError, KeyError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"study {path} is damaged or no study ({error}): use a copy, or create it"
            ) from error
        return cls(connection, settings)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        """Return a cursor in a transaction, which is written to disk as a whole or not at all."""
        with self._lock:
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    # Autocommit: `_writing` begins and ends the transactions.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL instead of WAL's default NORMAL: a commit survives a power cut, not only a killed process.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection
