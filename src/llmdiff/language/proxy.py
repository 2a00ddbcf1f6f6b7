"""Closed LLMs by proxy: a model behind an OpenAI-compatible address reads the prompt and answers in words.

The open LLM then encodes prompt and answer together, so that its block states carry what the closed one knows.
Nothing here may break a generation: whatever the address does, after a bounded time there is an answer or none.

Source: Dong et al. 2024 (arXiv 2502.04412) name closed LLMs, whose states nobody sees, as their method's limit;
asking them for words is ours.
"""

import hashlib
import ipaddress
import json
import logging
import os
import random
import time
import unicodedata
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from llmdiff.errors import ConfigError, LLMDiffError
from llmdiff.files import is_blank, text_lines, write_whole

KEY_VARIABLE = "LLMDIFF_REWORD_API_KEY"
DESCRIBE = (
    "You help a painter who knows only simple words. Rewrite the description of a picture in one short, plain "
    "sentence: call every object by its most common name, keep every number, colour, size and position, add "
    "nothing. Answer with that sentence alone."
)
_MAX_ANSWER_BYTES = 1_000_000
_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504})

_log = logging.getLogger(__name__)


class ProxyError(LLMDiffError):
    """The closed LLM gave no usable answer."""


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """Which closed LLM to ask, and how patiently.

    `url` is the address that "/chat/completions" is added to ("https://host/v1"). `answers` above 1 asks as
    often, with another seed each, for an ensemble. `instruction` is the system message.

    Units: `timeout_s` bounds one request from first to last byte, `budget_s` all requests for one answer.
        `max_characters`: a longer answer is refused, not cut: half a sentence would describe another picture.

    Raises:
        ConfigError: a value out of range, or an address that is no http(s) address.
    """

    url: str
    model: str
    instruction: str = DESCRIBE
    answers: int = 1
    timeout_s: float = 30.0
    budget_s: float = 60.0
    retries: int = 3
    max_characters: int = 400
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            parts = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ConfigError(
                f"reword_url is {self.url!r}, expected an address like https://host/v1 ({error})"
            ) from error
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ConfigError(f"reword_url is {self.url!r}, expected an address like https://host/v1")
        if parts.userinfo:
            raise ConfigError(
                f"reword_url holds a password: put the key into ${KEY_VARIABLE} and leave it out of the address"
            )
        if not self.model.strip():
            raise ConfigError("reword_model is blank, expected the name of a model that the address serves")
        for name, value, least in (
            ("answers", self.answers, 1),
            ("retries", self.retries, 0),
            ("max_characters", self.max_characters, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}, expected at least {least}")
        if min(self.timeout_s, self.budget_s) <= 0:
            raise ConfigError(
                f"timeout_s, budget_s are {self.timeout_s}, {self.budget_s}, expected more than 0"
            )


@dataclass
class ClosedLLM:
    """A closed LLM that answers prompts; answers are kept on disk, so that the same question is asked once.

    The key comes from $LLMDIFF_REWORD_API_KEY alone. It is sent over https, or to this machine; it is not logged,
    not saved and not part of the representation.

    Fields:
        settings: which model, and how patiently.
        cache: the folder for answers; None keeps them in memory only.
    """

    settings: ProxySettings
    cache: Path | None = None
    _key: str | None = field(default_factory=lambda: os.environ.get(KEY_VARIABLE), repr=False)
    _known: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self._key and not self._is_private(httpx2.URL(self.settings.url)):
            raise ConfigError(
                f"reword_url {self.settings.url!r} would send the key of ${KEY_VARIABLE} unencrypted: use https, or "
                "unset it"
            )

    def answers(self, prompt: str) -> tuple[str, ...]:
        """The model's answers to a prompt, `settings.answers` of them, fewer where it failed; each asked for once.

        A failure is a warning, not an error: the picture is then drawn from the prompt alone.
        """
        found: list[str] = []
        for number in range(self.settings.answers):
            try:
                found.append(self.answer(prompt, number))
            except ProxyError as error:
                warnings.warn(f"{error}; going on without it", stacklevel=2)
                break  # the next one would make the user wait as long again
        return tuple(dict.fromkeys(found))

    def answer(self, prompt: str, number: int = 0) -> str:
        """One answer, from the cache where it is known.

        Raises:
            ProxyError: none came within the budget, or none of those that came could be used.
        """
        key = self._cache_key(prompt, number)
        if key not in self._known:
            saved = self._load(key)
            if saved is None:
                saved = self._fetch(prompt, number)
                self._save(key, prompt, saved)
            self._known[key] = saved
        return self._known[key]

    def _fetch(self, prompt: str, number: int) -> str:
        settings = self.settings
        deadline = time.monotonic() + settings.budget_s
        reason = ""
        for attempt in range(settings.retries + 1):
            wait_s: float = min(2.0**attempt, 8.0) * random.uniform(0.5, 1.0)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            try:
                # Another seed each time: a model that rambled once would ramble the same way again.
                content = self._request(
                    prompt, settings.seed + 1000 * attempt + number, min(left_s, settings.timeout_s)
                )
                return checked_answer(content, settings.max_characters)
            except _Refused as error:
                reason = str(error)
                if not error.retryable:
                    break
                wait_s = max(wait_s, error.wait_s)
            if attempt < settings.retries and time.monotonic() + wait_s < deadline:
                time.sleep(wait_s)
            elif attempt < settings.retries:
                break
        raise ProxyError(
            f"reword_url {settings.url!r}: no answer from {settings.model!r} ({reason or 'out of time'})"
        )

    def _request(self, prompt: str, seed: int, timeout_s: float) -> str:
        settings = self.settings
        body = {
            "model": settings.model,
            "messages": [
                {"role": "system", "content": settings.instruction},
                {"role": "user", "content": prompt},
            ],
            "max_tokens": max(16, settings.max_characters // 2),
            "temperature": settings.temperature,
            "seed": seed,
            "stream": False,
        }
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        deadline = time.monotonic() + timeout_s
        try:
            with (
                # No redirects: the key belongs to the address that was given.
                httpx2.Client(timeout=timeout_s, follow_redirects=False, trust_env=False) as client,
                client.stream(
                    "POST", settings.url.rstrip("/") + "/chat/completions", json=body, headers=headers
                ) as response,
            ):
                if response.status_code != 200:
                    raise _Refused(
                        f"status {response.status_code}",
                        retryable=response.status_code in _RETRYABLE,
                        wait_s=_retry_after_s(response.headers.get("retry-after")),
                    )
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > _MAX_ANSWER_BYTES:
                        raise _Refused(f"more than {_MAX_ANSWER_BYTES:,} bytes")
                    if time.monotonic() > deadline:
                        raise _Refused(f"nothing whole within {timeout_s:.0f} s")
        except httpx2.TimeoutException as error:
            raise _Refused(f"nothing within {timeout_s:.0f} s") from error
        except httpx2.HTTPError as error:
            raise _Refused(type(error).__name__) from error
        try:
            choice = json.loads(received)["choices"][0]
            content, ended = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise _Refused("an answer that is not in OpenAI's format") from error
        if not isinstance(content, str):
            raise _Refused("an answer without text")
        if ended == "length":
            raise _Refused("an answer that was cut off")
        return content

    def _cache_key(self, prompt: str, number: int) -> str:
        settings = self.settings
        asked = [
            settings.url,
            settings.model,
            settings.instruction,
            settings.max_characters,
            settings.temperature,
            settings.seed,
            number,
            prompt,
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _load(self, key: str) -> str | None:
        if self.cache is None:
            return None
        try:
            saved: Any = json.loads((self.cache / f"{key}.json").read_text(encoding="utf-8"))
            return checked_answer(saved["answer"], self.settings.max_characters)
        except (OSError, ValueError, KeyError, TypeError, _Refused):
            return None  # not there or damaged: asked for again

    def _save(self, key: str, prompt: str, answer: str) -> None:
        if self.cache is None:
            return
        try:
            record = {"model": self.settings.model, "prompt": prompt, "answer": answer}
            write_whole(self.cache / f"{key}.json", json.dumps(record, indent=1))
        except LLMDiffError as error:
            _log.warning("answers are not kept: %s", error)

    @staticmethod
    def _is_private(url: httpx2.URL) -> bool:
        """Whether nobody on the way can read what is sent."""
        if url.scheme == "https" or url.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(url.host).is_loopback
        except ValueError:
            return False


def checked_answer(content: str, max_characters: int) -> str:
    """An answer as one line of plain text: quotes around it and a leading "Picture:" or "- " are taken off.

    Raises:
        ProxyError: it is empty, longer than allowed, of several lines, or holds control characters.
    """
    lines = [line.strip() for line in text_lines(content) if not is_blank(line)]
    if len(lines) != 1:
        raise _Refused(f"{len(lines)} lines, expected one")
    text = " ".join(lines[0].split())
    for start in ("- ", "* ", "Picture:", "Description:", "Answer:"):
        text = text.removeprefix(start).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1].strip()
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co") for letter in text):
        raise _Refused("control characters")
    if not any(letter.isalnum() for letter in text):
        raise _Refused("an answer without words")
    if len(text) > max_characters:
        raise _Refused(f"{len(text)} characters, expected at most {max_characters}")
    return text


class _Refused(ProxyError):
    def __init__(self, reason: str, *, retryable: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retryable, self.wait_s = retryable, wait_s


def _retry_after_s(header: str | None) -> float:
    """Seconds that a server asks to wait; dates and nonsense count as none, and a minute is the most."""
    try:
        return min(max(float(header or 0), 0.0), 60.0)
    except ValueError:
        return 0.0
