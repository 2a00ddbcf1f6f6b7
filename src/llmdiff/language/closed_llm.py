"""Ask a closed LLM behind an OpenAI-compatible address to reword prompts.

The open LLM then encodes prompt and answer together, so that its block states include the closed LLM's knowledge. A
failing address never stops a generation: after a bounded time the prompt is drawn without an answer.

Source: Dong et al. 2024 (arXiv 2502.04412) name closed LLMs, whose states are not accessible, as a limit of their
method; using their answers is ours.
"""

import hashlib
import ipaddress
import json
import logging
import os
import random
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import httpx2
from pydantic import Field, model_validator

from llmdiff.checks.validation import Settings
from llmdiff.errors import ClosedLLMError, ConfigError, LLMDiffError
from llmdiff.files import write_whole
from llmdiff.language.chat_completions import RefusedAnswer, checked_answer, request_answer

KEY_VARIABLE = "LLMDIFF_REWORD_API_KEY"
DESCRIBE = (
    "You help a painter who knows only simple words. Rewrite the description of a picture in one short, plain "
    "sentence: call every object by its most common name, keep every number, colour, size and position, add "
    "nothing. Answer with that sentence alone."
)

_log = logging.getLogger(__name__)


class ClosedLLMSettings(Settings):
    """Address and model of a closed LLM, with limits for its answers.

    Fields:
        url: "https://host/v1"; "/chat/completions" is added to it.
        instruction: the system message.
        answers: number of answers to a prompt, each requested with another seed.
        timeout_s: limit of one request from first to last byte, in seconds.
        budget_s: limit of all requests for one answer, in seconds.
        max_characters: a longer answer is refused, not cut, because a cut sentence may describe another picture.

    Raises:
        ConfigError: a value is out of range, or `url` is not an http(s) address.
    """

    url: str
    model: str
    instruction: str = DESCRIBE
    answers: Annotated[int, Field(ge=1)] = 1
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    budget_s: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 3
    max_characters: Annotated[int, Field(ge=1)] = 400
    temperature: float = 0.0
    seed: int = 0

    @model_validator(mode="after")
    def _names_an_address(self) -> Self:
        wrong = f"reword_url is {self.url!r}, expected an address like https://host/v1"
        try:
            parts = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"{wrong} ({error})") from error
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ValueError(wrong)
        if parts.userinfo:
            raise ValueError(
                f"reword_url contains a password: put the key into ${KEY_VARIABLE} and leave it out of the address"
            )
        if not self.model.strip():
            raise ValueError("reword_model is blank, expected the name of a model that the address serves")
        return self


@dataclass
class ClosedLLM:
    """A closed LLM that rewords prompts. Answers are cached on disk, so each prompt is sent once.

    The key comes only from $LLMDIFF_REWORD_API_KEY. It is sent over https or to this machine; it is not logged, not
    saved and not part of the representation.

    Fields:
        settings: address, model and limits.
        cache: folder for answers; None keeps them in memory only.
    """

    settings: ClosedLLMSettings
    cache: Path | None = None
    _key: str | None = field(default_factory=lambda: os.environ.get(KEY_VARIABLE), repr=False)
    _known: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self._key and not _is_private(httpx2.URL(self.settings.url)):
            raise ConfigError(
                f"reword_url {self.settings.url!r} would send the key of ${KEY_VARIABLE} unencrypted: use https, or "
                "unset it"
            )

    def answers(self, prompt: str) -> tuple[str, ...]:
        """Return the model's answers to a prompt without duplicates: `settings.answers`, or fewer after a failure.

        A failure is a warning, not an error: the picture is then drawn from the prompt alone.
        """
        found: list[str] = []
        for number in range(self.settings.answers):
            try:
                found.append(self.answer(prompt, number))
            except ClosedLLMError as error:
                warnings.warn(f"{error}; going on without it", stacklevel=2)
                break  # the next request would probably fail after the same time
        return tuple(dict.fromkeys(found))

    def answer(self, prompt: str, number: int = 0) -> str:
        """Return one answer, from the cache if possible.

        Raises:
            ClosedLLMError: no usable answer was received within the budget.
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
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            try:
                # Another seed each time: the same seed would give the same unusable answer.
                content = request_answer(
                    settings.url,
                    self._body(prompt, settings.seed + 1000 * attempt + number),
                    key=self._key,
                    timeout_s=min(left_s, settings.timeout_s),
                )
                return checked_answer(content, settings.max_characters)
            except RefusedAnswer as error:
                reason = str(error)
                wait_s = max(min(2.0**attempt, 8.0) * random.uniform(0.5, 1.0), error.wait_s)
                last = not error.retryable or attempt == settings.retries
            if last or time.monotonic() + wait_s >= deadline:
                break
            time.sleep(wait_s)
        raise ClosedLLMError(
            f"reword_url {settings.url!r}: no answer from {settings.model!r} ({reason or 'out of time'})"
        )

    def _body(self, prompt: str, seed: int) -> dict[str, Any]:
        settings = self.settings
        return {
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

    def _cache_key(self, prompt: str, number: int) -> str:
        settings = self.settings
        asked = [settings.url, settings.model, settings.instruction, settings.max_characters]
        asked += [settings.temperature, settings.seed, number, prompt]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _load(self, key: str) -> str | None:
        if self.cache is None:
            return None
        try:
            saved: Any = json.loads((self.cache / f"{key}.json").read_text(encoding="utf-8"))
            return checked_answer(saved["answer"], self.settings.max_characters)
        except (OSError, ValueError, KeyError, TypeError, RefusedAnswer):
            return None  # missing or damaged: request it again

    def _save(self, key: str, prompt: str, answer: str) -> None:
        if self.cache is None:
            return
        try:
            record = {"model": self.settings.model, "prompt": prompt, "answer": answer}
            write_whole(self.cache / f"{key}.json", json.dumps(record, indent=1))
        except LLMDiffError as error:
            _log.warning("answers are not saved: %s", error)


def _is_private(url: httpx2.URL) -> bool:
    """Return whether requests are encrypted or stay on this machine."""
    if url.scheme == "https" or url.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False
