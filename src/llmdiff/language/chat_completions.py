"""One request to an OpenAI-compatible address, and the checks of its answer."""

import json
import time
import unicodedata
from typing import Any

import httpx2

from llmdiff.errors import ClosedLLMError
from llmdiff.files import is_blank, text_lines

_MAX_ANSWER_BYTES = 1_000_000
_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class RefusedAnswer(ClosedLLMError):
    """One request failed, or its answer cannot be used.

    Fields:
        retryable: whether another request may succeed.
        wait_s: seconds that the server asks to wait before it.
    """

    def __init__(self, reason: str, *, retryable: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retryable, self.wait_s = retryable, wait_s


def request_answer(url: str, body: dict[str, Any], *, key: str | None, timeout_s: float) -> str:
    """Post `body` to `url`/chat/completions and return the text of the answer.

    Units: `timeout_s` bounds the request from its first to its last byte, in seconds.

    Raises:
        RefusedAnswer: the request failed, or the answer is not a complete text in OpenAI's format.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    deadline = time.monotonic() + timeout_s
    try:
        with (
            # No redirects: they would send the key to another address.
            httpx2.Client(timeout=timeout_s, follow_redirects=False, trust_env=False) as client,
            client.stream(
                "POST", url.rstrip("/") + "/chat/completions", json=body, headers=headers
            ) as response,
        ):
            if response.status_code != 200:
                raise RefusedAnswer(
                    f"status {response.status_code}",
                    retryable=response.status_code in _RETRYABLE,
                    wait_s=_retry_after_s(response.headers.get("retry-after")),
                )
            received = bytearray()
            for chunk in response.iter_bytes():
                received += chunk
                if len(received) > _MAX_ANSWER_BYTES:
                    raise RefusedAnswer(f"more than {_MAX_ANSWER_BYTES:,} bytes")
                if time.monotonic() > deadline:
                    raise RefusedAnswer(f"no complete answer within {timeout_s:.0f} s")
    except httpx2.TimeoutException as error:
        raise RefusedAnswer(f"no answer within {timeout_s:.0f} s") from error
    except httpx2.HTTPError as error:
        raise RefusedAnswer(type(error).__name__) from error
    try:
        choice = json.loads(received)["choices"][0]
        content, ended = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedAnswer("an answer that is not in OpenAI's format") from error
    if not isinstance(content, str):
        raise RefusedAnswer("an answer without text")
    if ended == "length":
        raise RefusedAnswer("an answer that was cut off")
    return content


def checked_answer(content: str, max_characters: int) -> str:
    """Return an answer as one line of plain text, without quotes around it and a leading "Picture:" or "- ".

    Raises:
        RefusedAnswer: it is empty, has several lines, is too long or contains control characters.
    """
    lines = [line.strip() for line in text_lines(content) if not is_blank(line)]
    if len(lines) != 1:
        raise RefusedAnswer(f"{len(lines)} lines, expected one")
    text = " ".join(lines[0].split())
    for start in ("- ", "* ", "Picture:", "Description:", "Answer:"):
        text = text.removeprefix(start).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1].strip()
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co") for letter in text):
        raise RefusedAnswer("control characters")
    if not any(letter.isalnum() for letter in text):
        raise RefusedAnswer("an answer without words")
    if len(text) > max_characters:
        raise RefusedAnswer(f"{len(text)} characters, expected at most {max_characters}")
    return text


def _retry_after_s(header: str | None) -> float:
    """Return the seconds of a Retry-After header, at most 60; 0 for dates and invalid values."""
    try:
        return min(max(float(header or 0), 0.0), 60.0)
    except ValueError:
        return 0.0
