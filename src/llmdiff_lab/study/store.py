"""A study's pairs, raters and answers in SQLite; acknowledged answers survive a killed process."""

import json
import random
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Self

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
_VERSION = 1
# A rater first sees what the study is about.
_PAIRS_BEFORE_CHECKS = 5
# Only a random token and the answers are stored of a rater: no names, no addresses, no times.
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
    """One open study; safe to use from several threads."""

    def __init__(self, connection: sqlite3.Connection, settings: StudySettings) -> None:
        self.settings = settings
        self._connection = connection
        self._lock = threading.Lock()

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
            ConfigError: there is none, or it is of another version.
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
            facts = json.loads(text)
            settings = StudySettings(**{**facts, "systems": tuple(facts["systems"])})
        except (sqlite3.Error, TypeError, KeyError, json.JSONDecodeError) as error:
            raise ConfigError(
                f"study {path} is damaged or no study ({error}): use a copy, or create it"
            ) from error
        return cls(connection, settings)

    def new_rater(self, *, max_raters: int) -> str:
        """Return the token of a new rater, whose pairs, their order and sides are fixed from now on.

        Pairs that were given to the fewest raters go first, so that all get equally many answers. Whoever has not
        answered yet takes nobody's place: of those, the last `max_raters` are kept.

        Raises:
            StudyFullError: `max_raters` have answered already.
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
            order = _with_checks(chosen, checks, rng)
            cursor.executemany(
                "INSERT INTO places VALUES (?, ?, ?, ?)",
                [(rater, at, pair, rng.randrange(2)) for at, pair in enumerate(order)],
            )
        return token

    def progress(self, token: str) -> Progress:
        """Return how far the rater is.

        Raises:
            UnknownRaterError: there is no such rater.
        """
        with self._lock:
            rater = self._rater(token)
            total = self._one("SELECT count(*) FROM places WHERE rater = ?", rater)
            done = self._one("SELECT count(DISTINCT position) FROM answers WHERE rater = ?", rater)
            after = self._one(
                "SELECT min(position) FROM places WHERE rater = ? AND position NOT IN "
                "(SELECT position FROM answers WHERE rater = places.rater)",
                rater,
            )
        return Progress(total=total or 0, done=done or 0, next_position=after)

    def shown(self, token: str, position: int) -> ShownPair:
        """Return what the rater sees at a position.

        Raises:
            UnknownRaterError: there is no such rater or position.
        """
        with self._lock:
            rater = self._rater(token)
            row = self._connection.execute(
                "SELECT text, first_picture, second_picture, first_is_left FROM places "
                "JOIN pairs ON pairs.id = places.pair JOIN prompts ON prompts.id = pairs.prompt "
                "WHERE rater = ? AND position = ?",
                (rater, position),
            ).fetchone()
            if row is None:
                raise UnknownRaterError(f"there is no pair at position {position}")
            choices = dict(
                self._connection.execute(
                    "SELECT question, choice FROM answers WHERE rater = ? AND position = ?", (rater, position)
                )
            )
        prompt, first, second, first_is_left = row
        left, right = (first, second) if first_is_left else (second, first)
        return ShownPair(
            position=position, prompt=prompt, left_picture=left, right_picture=right, choices=choices
        )

    def answer(
        self, token: str, position: int, choices: Mapping[str, str], *, max_raters: int | None = None
    ) -> None:
        """Store the rater's choices at a position, all of them on disk when this returns.

        Answering again replaces the answer, so that a client may repeat what was not acknowledged.

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
            found = cursor.execute(
                "SELECT 1 FROM places WHERE rater = ? AND position = ?", (rater, position)
            ).fetchone()
            if found is None:
                raise UnknownRaterError(f"there is no pair at position {position}")
            begun = cursor.execute("SELECT 1 FROM answers WHERE rater = ? LIMIT 1", (rater,)).fetchone()
            if begun is None and max_raters is not None:
                _check_room(cursor, max_raters)
            cursor.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
                [(rater, position, question, choice) for question, choice in choices.items()],
            )

    def has_picture(self, name: str) -> bool:
        """Return whether a picture of this name belongs to the study."""
        with self._lock:
            found = self._connection.execute(
                "SELECT 1 FROM pairs WHERE first_picture = ?1 OR second_picture = ?1 LIMIT 1", (name,)
            ).fetchone()
        return found is not None

    def answers(self) -> list[Answer]:
        """Return all answers, those to attention checks included."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT answers.rater, pair, prompt, question, first, second, first_is_left, choice "
                "FROM answers JOIN places USING (rater, position) JOIN pairs ON pairs.id = pair "
                "ORDER BY answers.rater, position, question"
            ).fetchall()
        names = ("rater", "pair", "prompt", "question", "first", "second")
        return [
            Answer(**dict(zip(names, row[:6], strict=True)), first_is_left=bool(row[6]), choice=row[7])
            for row in rows
        ]

    def prompts(self) -> list[str]:
        """Return the prompt of every row of pictures."""
        with self._lock:
            return [text for (text,) in self._connection.execute("SELECT text FROM prompts ORDER BY id")]

    def pictures(self) -> dict[tuple[int, str], str]:
        """Return the name of every system's picture: (prompt, system) => name."""
        found: dict[tuple[int, str], str] = {}
        with self._lock:
            rows = self._connection.execute(
                "SELECT prompt, first, second, first_picture, second_picture FROM pairs WHERE first IS NOT NULL"
            )
            for prompt, first, second, first_picture, second_picture in rows:
                found |= {(prompt, first): first_picture, (prompt, second): second_picture}
        return found

    def raters(self) -> int:
        """Return the number of people who began; of those without an answer the last ones are kept."""
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM raters").fetchone()[0])

    def close(self) -> None:
        """Close the study."""
        with self._lock:
            self._connection.close()

    def _rater(self, token: str) -> int:
        row = self._connection.execute("SELECT id FROM raters WHERE token = ?", (token,)).fetchone()
        if row is None:
            raise UnknownRaterError("there is no rater with this link: open the study's first page")
        return int(row[0])

    def _one(self, query: str, rater: int) -> int | None:
        value: int | None = self._connection.execute(query, (rater,)).fetchone()[0]
        return value

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        """Return a cursor in a transaction: all of it is on disk at the end, or none."""
        with self._lock:
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")


def _with_checks(pairs: list[int], checks: list[int], rng: random.Random) -> list[int]:
    """Return the pairs with the attention checks at random places, none of them among the first few pairs."""
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
    # Autocommit: transactions begin and end where `_writing` says.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL, not WAL's usual NORMAL: a commit then survives a power cut, not only a killed process.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection
