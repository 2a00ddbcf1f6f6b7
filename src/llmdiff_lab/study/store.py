"""The SQLite file of a study: its settings, pairs, raters and answers."""

import json
import random
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from llmdiff.errors import ConfigError
from llmdiff_lab.study.model import (
    Answer,
    InvalidAnswerError,
    Pair,
    Progress,
    ShownPair,
    StudyFullError,
    StudySettings,
    UnknownRaterError,
)

STORE_NAME = "study.sqlite"
# Raters first see normal pairs.
_PAIRS_BEFORE_CHECKS = 5
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


class StudyStore:
    """Assigns pairs to raters and stores their answers in one file.

    Safe to use from several threads. Committed data survives a killed process.
    """

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

    def new_rater(self, *, max_raters: int) -> str:
        """Return the token of a new rater; this fixes the rater's pairs, their order and sides.

        Pairs that were given to the fewest raters go first, so that all get equally many answers. Raters without
        answers do not count towards `max_raters`; of those, the last `max_raters` are kept.

        Raises:
            StudyFullError: `max_raters` raters have answered.
        """
        token, rng = secrets.token_urlsafe(16), random.SystemRandom()
        with self._writing() as cursor:
            _check_room(cursor, max_raters)
            idle = cursor.execute(
                "SELECT id FROM raters WHERE id NOT IN (SELECT rater FROM answers) ORDER BY id DESC LIMIT -1 OFFSET ?",
                (max_raters - 1,),
            ).fetchall()
            cursor.executemany("DELETE FROM places WHERE rater = ?", idle)
            cursor.executemany("DELETE FROM raters WHERE id = ?", idle)
            rater = cursor.execute("INSERT INTO raters (token) VALUES (?)", (token,)).lastrowid
            given = cursor.execute(
                "SELECT pairs.id, count(places.pair) FROM pairs LEFT JOIN places ON places.pair = pairs.id "
                "WHERE pairs.first IS NOT NULL GROUP BY pairs.id"
            ).fetchall()
            rng.shuffle(given)
            given.sort(key=lambda row: row[1])
            chosen = [pair for pair, _ in given[: self.settings.pairs_per_rater or len(given)]]
            checks = [row[0] for row in cursor.execute("SELECT id FROM pairs WHERE first IS NULL")]
            cursor.executemany(
                "INSERT INTO places VALUES (?, ?, ?, ?)",
                [
                    (rater, at, pair, rng.randrange(2))
                    for at, pair in enumerate(_with_checks(chosen, checks, rng))
                ],
            )
        return token

    def progress(self, token: str) -> Progress:
        """Return the progress of a rater.

        Raises:
            UnknownRaterError: there is no such rater.
        """
        with self._lock:
            rater = self._rater(token)
            positions = [row[0] for row in self._read("SELECT position FROM places WHERE rater = ?", rater)]
            done = {row[0] for row in self._read("SELECT position FROM answers WHERE rater = ?", rater)}
        left = sorted(set(positions) - done)
        return Progress(total=len(positions), done=len(done), next=left[0] if left else None)

    def shown(self, token: str, position: int) -> ShownPair:
        """Return what the rater sees at a position.

        Raises:
            UnknownRaterError: there is no such rater or position.
        """
        with self._lock:
            rater = self._rater(token)
            rows = self._read(
                "SELECT text, first_picture, second_picture, first_is_left FROM places "
                "JOIN pairs ON pairs.id = places.pair JOIN prompts ON prompts.id = pairs.prompt "
                "WHERE rater = ? AND position = ?",
                rater,
                position,
            )
            if not rows:
                raise UnknownRaterError(f"there is no pair at position {position}")
            query = "SELECT question, choice FROM answers WHERE rater = ? AND position = ?"
            choices = dict(self._read(query, rater, position))
        prompt, first, second, first_is_left = rows[0]
        left, right = (first, second) if first_is_left else (second, first)
        return ShownPair(
            position=position, prompt=prompt, left_picture=left, right_picture=right, choices=choices
        )

    def answer(
        self, token: str, position: int, choices: Mapping[str, str], *, max_raters: int | None = None
    ) -> None:
        """Store the rater's choices at a position; all are on disk when this returns.

        A second answer replaces the first, so a client may repeat a request without a reply.

        Raises:
            UnknownRaterError: there is no such rater or position.
            InvalidAnswerError: not every question has exactly one valid choice.
            StudyFullError: it would be the rater's first answer, and `max_raters` others have answered.
        """
        questions = self.settings.questions
        allowed = ("left", "right", "tie") if self.settings.ties else ("left", "right")
        if set(choices) != set(questions) or not all(choice in allowed for choice in choices.values()):
            raise InvalidAnswerError(
                f"choices: expected one of {', '.join(allowed)} for each of {', '.join(questions)}"
            )
        with self._writing() as cursor:
            rater = self._rater(token)
            if not self._read("SELECT 1 FROM places WHERE rater = ? AND position = ?", rater, position):
                raise UnknownRaterError(f"there is no pair at position {position}")
            begun = self._read("SELECT 1 FROM answers WHERE rater = ? LIMIT 1", rater)
            if not begun and max_raters is not None:
                _check_room(cursor, max_raters)
            cursor.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
                [(rater, position, question, choice) for question, choice in choices.items()],
            )

    def has_picture(self, name: str) -> bool:
        """Return whether the study has a picture of this name."""
        query = "SELECT 1 FROM pairs WHERE first_picture = ?1 OR second_picture = ?1 LIMIT 1"
        return bool(self._read(query, name))

    def answers(self) -> list[Answer]:
        """Return all answers, including those to attention checks."""
        names = ("rater", "pair", "prompt", "question", "first", "second", "first_is_left", "choice")
        rows = self._read(
            f"SELECT answers.{', '.join(names)} "
            "FROM answers JOIN places USING (rater, position) JOIN pairs ON pairs.id = pair "
            "ORDER BY answers.rater, position, question"
        )
        fields = [dict(zip(names, row, strict=True)) for row in rows]
        return [Answer(**{**one, "first_is_left": bool(one["first_is_left"])}) for one in fields]

    def prompts(self) -> list[str]:
        """Return the prompt of every row of pictures."""
        return [text for (text,) in self._read("SELECT text FROM prompts ORDER BY id")]

    def pictures(self) -> dict[tuple[int, str], str]:
        """Return the name of every system's picture: (prompt, system) => name."""
        found: dict[tuple[int, str], str] = {}
        rows = self._read(
            "SELECT prompt, first, second, first_picture, second_picture FROM pairs WHERE first IS NOT NULL"
        )
        for prompt, first, second, first_picture, second_picture in rows:
            found |= {(prompt, first): first_picture, (prompt, second): second_picture}
        return found

    def raters(self) -> int:
        """Return the number of raters, including the kept ones without answers."""
        return int(self._read("SELECT count(*) FROM raters")[0][0])

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

    def _rater(self, token: str) -> int:
        rows = self._read("SELECT id FROM raters WHERE token = ?", token)
        if not rows:
            raise UnknownRaterError("there is no rater with this link: open the study's first page")
        return int(rows[0][0])


def _with_checks(pairs: list[int], checks: list[int], rng: random.Random) -> list[int]:
    """Return the pairs with the attention checks at random positions after the first few pairs."""
    order = list(pairs)
    rng.shuffle(order)
    for check in checks:
        first = min(_PAIRS_BEFORE_CHECKS, len(order))
        order.insert(rng.randint(first, len(order)), check)
    return order


def _check_room(cursor: sqlite3.Cursor, max_raters: int) -> None:
    if cursor.execute("SELECT count(DISTINCT rater) FROM answers").fetchone()[0] >= max_raters:
        raise StudyFullError(f"{max_raters} people take part already, no more are needed: thank you")


def _connect(path: Path) -> sqlite3.Connection:
    # Autocommit: `_writing` begins and ends the transactions.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL instead of WAL's default NORMAL: a commit survives a power cut, not only a killed process.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection
