"""A study's raters and answers."""

import random
import secrets
import sqlite3
from collections.abc import Mapping

from llmdiff_lab.study.database import StudyDatabase
from llmdiff_lab.study.model import (
    Answer,
    InvalidAnswerError,
    Progress,
    ShownPair,
    StudyFullError,
    UnknownRaterError,
)

STORE_NAME = "study.sqlite"
# Raters first see normal pairs.
_PAIRS_BEFORE_CHECKS = 5


class StudyStore(StudyDatabase):
    """Assigns pairs to raters and stores their answers."""

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
